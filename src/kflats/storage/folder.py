"""Saving a compressed model as a folder of safetensors and JSON, and loading it again.

Models of transformers and sentence-transformers are written by their own ``save_pretrained``; a
plain module becomes ``model.safetensors`` and ``kflats.json``. A folder appears only when it is
complete, and loading never builds a dense table.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from kflats.errors import CheckpointError, InputError
from kflats.report import CompressionReport
from kflats.storage.manifest import LayerSpec, check_version, specs_of, tensor_shapes
from kflats.storage.plain import MANIFEST, read_plain, write_plain

REPORT = "kflats_report.json"


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
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write to {target.parent}: {error.strerror}.") from error
    try:
        yield partial
        _open_up(partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
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
) -> Path:
    """Write a compressed model to a new folder.

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

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        If the model has no factorised layer.
    CheckpointError
        If the folder exists or cannot be written.
    """
    if not specs_of(model):
        raise InputError(f"{type(model).__name__} has no factorised layer: run compress_ first.")
    target = Path(folder)
    with new_folder(target) as partial:
        try:
            _write(model, partial)
            if extras is not None:
                extras(partial)
            if report is not None:
                _write_json(partial / REPORT, report.to_dict())
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
    SentenceTransformer, PreTrainedModel or nn.Module
        In evaluation mode for the first two, as those libraries do.

    Raises
    ------
    CheckpointError
        If the folder or a tensor is missing, a file is damaged, a shape is wrong, or the format
        version is not the one this kflats reads.
    """
    source = Path(folder)
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder; give one that kflats.save wrote.")
    check_folder(source)
    if (source / "modules.json").exists():
        from sentence_transformers import SentenceTransformer

        _register()
        return SentenceTransformer(str(source), **options)
    if (source / "config.json").exists():
        _register()
        return _architecture(source).from_pretrained(source, **options)
    if model is None:
        raise InputError(
            f"{source} holds a plain module: pass model=, the dense model to load into."
        )
    return read_plain(source, _described(source)[0], model)


def check_folder(folder: Path) -> None:
    """Compare the description of the factorised layers with the tensors in the files.

    Raises
    ------
    CheckpointError
        Naming the file and the tensor, if one is missing, damaged or has a wrong shape.
    """
    specs, where = _described(folder)
    found = {}
    for path in sorted(where.parent.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found.update({key: tuple(file.get_slice(key).get_shape()) for key in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
    for name, shape in tensor_shapes(specs).items():
        if name not in found:
            raise CheckpointError(
                f"{where.parent} has no tensor {name!r}, which {where.name} announces."
            )
        if found[name] != shape:
            raise CheckpointError(
                f"{where.parent}: tensor {name!r} has shape {found[name]}, {where.name} "
                f"announces {shape}."
            )


def _described(folder: Path) -> tuple[dict[str, LayerSpec], Path]:
    """Return the specs in a folder and the file that holds them."""
    for path in [folder / MANIFEST, folder / "config.json", *sorted(folder.glob("*/config.json"))]:
        if not path.exists():
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from error
        block = data if path.name == MANIFEST else data.get("quantization_config") or {}
        if path.name == MANIFEST or block.get("quant_method") == "kflats":
            check_version(block.get("format_version"), str(path))
            modules = block["modules"].items()
            return {name: LayerSpec.from_dict(spec) for name, spec in modules}, path
    raise CheckpointError(
        f"{folder} describes no factorised layer (no {MANIFEST}, no config.json with "
        "quant_method kflats): load it with the library that wrote it."
    )


def _write(model: nn.Module, folder: Path) -> None:
    if hasattr(model, "save_pretrained"):
        cards = {"create_model_card": False} if (hasattr(model, "encode")) else {}
        writer: Any = model
        writer.save_pretrained(str(folder), **cards)
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


def _register() -> None:
    from kflats.hf import register

    register()


def _architecture(folder: Path) -> Any:
    import transformers

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or ["AutoModel"]
    found = getattr(transformers, names[0], None)
    if found is None:
        raise CheckpointError(
            f"{folder / 'config.json'} asks for the architecture {names[0]!r}, which transformers "
            f"{transformers.__version__} does not have: install the version that does."
        )
    return found
