"""Saving a compressed model as a folder of safetensors and JSON, and loading it again.

Models of transformers and sentence-transformers are written by their own ``save_pretrained``; a
plain module becomes ``model.safetensors`` and ``kflats.json``. A folder appears only when it is
complete, and loading never builds a dense table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from kflats.errors import CheckpointError, InputError
from kflats.extras import need
from kflats.files import temporary_folder
from kflats.report import CompressionReport
from kflats.report.card import base_model, model_card
from kflats.storage.architecture import load_saved, model_class
from kflats.storage.check import check_folder, read_manifest, readable
from kflats.storage.entropy import check_codes, entropy_code
from kflats.storage.info import folder_info
from kflats.storage.manifest import factor_layers
from kflats.storage.plain import read_plain, write_plain
from kflats.storage.seal import check_config

REPORT = "kflats_report.json"
CARD = "README.md"


def check_new_folder(target: Path) -> None:
    """Raise CheckpointError if ``target`` exists or its place is not a writable folder.

    Called before long work too, so that it is not done in vain.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists already; give a new folder or remove it first.")
    place = next(parent for parent in target.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot write to {place}: give a place in a writable folder.")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes ``target`` when the block ends without error.

    Raises
    ------
    CheckpointError
        If ``target`` exists or cannot be made. Nothing is left behind in either case.
    """
    check_new_folder(target)
    fresh_parent = not target.parent.exists()
    try:
        with ExitStack() as stack:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = temporary_folder(target.parent, target.name)
                partial = stack.enter_context(temporary)
            except OSError as error:
                raise CheckpointError(
                    f"cannot write to {target.parent}: {error.strerror}."
                ) from error
            yield partial
            _open_up(partial)
            partial.rename(target)
    except BaseException:
        if fresh_parent:
            with suppress(OSError):
                target.parent.rmdir()
        raise


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    report: CompressionReport | None = None,
    extras: Callable[[Path], None] | None = None,
    entropy: bool = False,
    **options: Any,
) -> Path:
    """Write a compressed model with a model card to a new folder.

    Parameters
    ----------
    model : nn.Module
        A model with factorised layers: of transformers, of sentence-transformers, or plain.
    folder : path
        Must not exist.
    report : CompressionReport, optional
        Kept beside the weights as ``kflats_report.json``.
    extras : callable, optional
        Called with the unfinished folder to add files, such as a tokenizer.
    entropy : bool, default=False
        Whether tables in packed codes are entropy-coded in the file: fewer bytes to download, the
        same in memory, where they are packed again when they are loaded. It needs constriction,
        which the extra ``entropy`` brings. A table that would not become smaller stays as it is.
    **options
        Passed to the ``save_pretrained`` of the model, for instance ``max_shard_size``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        If the model has no factorised layer, or with ``entropy`` no table in packed codes.
    CheckpointError
        If the folder exists or cannot be written.
    MissingExtraError
        If ``entropy`` is true and constriction is not installed.
    """
    if not factor_layers(model):
        raise InputError(f"{type(model).__name__} has no factorised layer: run compress_ first.")
    if entropy:
        check_codes(model)
    return _save(model, Path(folder), report, extras, options, entropy=entropy)


def save_dense(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    extras: Callable[[Path], None] | None = None,
) -> Path:
    """Write a model without factorised layers by its own ``save_pretrained`` to a new folder.

    Raises
    ------
    InputError
        If the model has factorised layers or no ``save_pretrained``.
    CheckpointError
        If the folder exists or cannot be written.
    """
    if factor_layers(model) or not hasattr(model, "save_pretrained"):
        raise InputError(
            f"{type(model).__name__} has factorised layers or no save_pretrained: call to_dense_ "
            "first; a plain module is saved with safetensors.torch.save_model."
        )
    return _save(model, Path(folder), None, extras, {})


def _save(
    model: nn.Module,
    target: Path,
    report: CompressionReport | None,
    extras: Callable[[Path], None] | None,
    options: dict[str, Any],
    *,
    entropy: bool = False,
) -> Path:
    with new_folder(target) as partial:
        try:
            _write(model, partial, options)
            if entropy:
                entropy_code(partial)
            if extras is not None:
                extras(partial)
            if report is not None:
                _write_json(partial / REPORT, report.to_dict())
            if factor_layers(model):
                card = model_card(folder_info(partial), target.name, base_model(model))
                (partial / CARD).write_text(card, encoding="utf-8")
        except (OSError, SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"cannot write {target}: {error}") from error
    return target


def load(folder: str | os.PathLike[str], *, model: nn.Module | None = None, **options: Any) -> Any:
    """Load a folder that :func:`save` wrote.

    Parameters
    ----------
    folder : path
        With the files of one of the three kinds.
    model : nn.Module, optional
        Needed for plain modules, and changed in place: the dense model, whose embeddings are
        replaced. Build it under ``torch.device("meta")`` to never hold the table.
    **options
        Passed to ``from_pretrained`` or ``SentenceTransformer``.

    Returns
    -------
    SentenceTransformer, CrossEncoder, SparseEncoder, PreTrainedModel or nn.Module
        Of the class it was saved from; in evaluation mode except for plain modules, as those
        libraries do.

    Raises
    ------
    CheckpointError
        If the folder or a tensor is missing, a file is damaged, a shape is wrong, or the format
        version is not the one this kflats reads.
    MissingExtraError
        If the library of the model is not installed.
    """
    source = Path(folder)
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder; give one that kflats.save wrote.")
    manifest, _ = check_folder(source)
    if (source / "modules.json").exists():
        need("hf", "transformers", "sentence_transformers")
        from kflats.companions import sentence_class

        check_config(manifest, read_manifest(source)[1])
        with readable(source, with_options=bool(options)):
            return sentence_class(source)(str(source), **options)
    if (source / "config.json").exists():
        need("hf", "transformers")
        with readable(source, with_options=bool(options)):
            found = model_class(source)
            check_config(manifest, source / "config.json")
            return load_saved(found, source, manifest, options)
    if model is None:
        raise InputError(
            f"{source} holds a plain module: pass model=, the dense model to load into."
        )
    with readable(source):
        return read_plain(source, manifest, model)


def _write(model: nn.Module, folder: Path, options: dict[str, Any]) -> None:
    if hasattr(model, "save_pretrained"):
        cards = {"create_model_card": False} if (hasattr(model, "encode")) else {}
        writer: Any = model
        writer.save_pretrained(str(folder), **cards, **options)
        return
    write_plain(model, folder)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _open_up(folder: Path) -> None:
    """Give the usual permissions to what temporary folders and safetensors keep private."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)
