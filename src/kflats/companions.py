"""What lies beside the weights of a model: the class that reads the folder, and its processors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from kflats.errors import CheckpointError
from kflats.storage.json_files import read_json

_ENCODERS = ("SentenceTransformer", "CrossEncoder", "SparseEncoder", "MultiVectorEncoder")
_OF_SENTENCES = "config_sentence_transformers.json"


def sentence_class(folder: Path) -> Any:
    """Return the class of sentence-transformers that a folder with modules.json was saved from.

    Raises
    ------
    CheckpointError
        If the installed sentence-transformers has no such class.
    """
    import sentence_transformers

    path = folder / _OF_SENTENCES
    name = read_json(path).get("model_type", _ENCODERS[0]) if path.exists() else _ENCODERS[0]
    found = getattr(sentence_transformers, name, None) if name in _ENCODERS else None
    if found is None:
        raise CheckpointError(
            f"{path} has model_type={name!r}; sentence-transformers "
            f"{sentence_transformers.__version__} has {', '.join(_ENCODERS)}: install a newer one."
        )
    return found


def copy_processors(source: str, folder: Path) -> list[str]:
    """Copy the files of image, audio and video processors and chat templates; return their names.

    Parameters
    ----------
    source : str
        A folder, or a name on the Hub.
    folder : path
        Where to; files that are there already are left as they are.
    """
    from transformers import utils

    names = {
        utils.IMAGE_PROCESSOR_NAME,
        utils.FEATURE_EXTRACTOR_NAME,
        utils.PROCESSOR_NAME,
        utils.VIDEO_PROCESSOR_NAME,
        utils.CHAT_TEMPLATE_FILE,
        utils.LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
    }
    copied = []
    for name in sorted(names):
        found = utils.cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None and not (folder / name).exists():
            shutil.copyfile(found, folder / name)
            copied.append(name)
    return copied
