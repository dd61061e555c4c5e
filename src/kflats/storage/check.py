"""Reading and checking the description in a folder before anything is loaded from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from kflats.errors import CheckpointError, KflatsError
from kflats.storage.files import (
    TensorHeader,
    check_tensors,
    read_headers,
    refuse_pickles,
    weight_files,
)
from kflats.storage.json_files import read_any, read_json
from kflats.storage.locate import as_described
from kflats.storage.manifest import MANIFEST, Manifest, manifest_of_block
from kflats.storage.seal import check_checksums
from kflats.storage.values import check_values


def check_folder(folder: Path) -> tuple[Manifest, dict[str, TensorHeader]]:
    """Return the description of a folder and its tensors, after comparing the two.

    The tensors of tables have the names of the description.

    Raises
    ------
    CheckpointError
        Naming the file and the tensor or field, if one is missing, damaged or has a value that
        makes no sense, or if the folder holds pickles.
    """
    manifest, where = read_manifest(folder)
    refuse_pickles(folder)
    check_modules_file(folder)
    found = check_files(manifest, weight_files(where.parent), where.parent, where.name)
    return manifest, found


def check_files(
    manifest: Manifest, files: Iterable[Path], folder: Path, where: str
) -> dict[str, TensorHeader]:
    """Return what the tensors in files are, after comparing them with their description.

    Reads the tensors of the factorised tables once, and never holds more than one of them. They
    have the names of the description, see :func:`kflats.storage.locate.as_described`.

    Raises
    ------
    CheckpointError
        Naming the folder and the tensor, if one is missing, has a wrong shape or dtype, holds
        values that cannot be, or is not what was saved.
    """
    found = as_described(manifest, read_headers(files))
    check_tensors(manifest, found, folder, where)
    check_values(manifest, found)
    check_checksums(manifest, found, folder, where)
    return found


def check_modules_file(folder: Path) -> None:
    """Raise CheckpointError unless the modules.json of a folder, if any, lists its modules."""
    path = folder / "modules.json"
    if not path.exists():
        return
    data = read_any(path)
    for entry in data if isinstance(data, list) and data else [data]:
        place, kind = (
            (entry.get("path"), entry.get("type")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(place, str) or not isinstance(kind, str):
            raise CheckpointError(
                f"{path} must be a list of objects with the texts 'path' and 'type', one per "
                f"module; got {str(entry)[:80]}."
            )
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise CheckpointError(f"{path}: path {place!r} leads out of the folder.")


@contextmanager
def readable(source: str | Path, *, with_options: bool = False) -> Iterator[None]:
    """Turn what the loading libraries raise about a model into one clear error.

    What they say about options of the caller, a TypeError, goes through.
    """
    try:
        yield
    except (KflatsError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if with_options and isinstance(error, TypeError):
            raise
        text = str(error).strip() or type(error).__name__
        first = text.splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"cannot load {str(source)!r}: {first}. Give a folder with a model, or the name "
            "of one on the Hub that is reachable."
        ) from error


def read_manifest(folder: Path) -> tuple[Manifest, Path]:
    """Return the description of the factorised layers in a folder and the file that holds it.

    Raises
    ------
    CheckpointError
        If there is none, or it cannot be read by this kflats.
    """
    found = _description(folder)
    if found is None:
        raise CheckpointError(
            f"{folder} describes no factorised layer (no {MANIFEST}, no config.json with "
            f"quant_method kflats){did_you_mean(folder) or _OTHERS}"
        )
    block, path = found
    described = {"quant_method": "kflats", **block}
    described.pop("aliases", None)  # of plain modules
    return manifest_of_block(described, str(path)), path


def _description(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """Return the description of the factorised layers in a folder and the file that holds it."""
    for path in [place / name for place in model_folders(folder) for name in _DESCRIBED_IN]:
        if not path.exists():
            continue
        data = read_json(path)
        block = data if path.name == MANIFEST else data.get("quantization_config")
        if not isinstance(block, dict):
            continue
        if path.name == MANIFEST or block.get("quant_method") == "kflats":
            return block, path
    return None


_OTHERS = ": load it with the library that wrote it."
_DESCRIBED_IN = (MANIFEST, "config.json")


def model_folders(folder: Path) -> list[Path]:
    """Return the folders that hold parts of the model in a folder: itself, and what it names.

    sentence-transformers keeps modules in sub-folders, which ``modules.json`` names, and those of
    a router in sub-folders that ``router_config.json`` names. Others are models of their own.
    """
    found = [folder]
    listed = _json_or_none(folder / "modules.json")
    for each in listed if isinstance(listed, list) else []:
        found.append(folder / str(each.get("path", "") if isinstance(each, dict) else ""))
    for place in tuple(found):
        router = _json_or_none(place / "router_config.json")
        types = router.get("types") if isinstance(router, dict) else None
        found += [place / str(name) for name in types or ()] if isinstance(types, dict) else []
    top = folder.resolve()
    inside = [place for place in found if place.resolve().is_relative_to(top)]
    return list(dict.fromkeys(inside))


def _json_or_none(path: Path) -> Any:
    try:
        return read_any(path)
    except CheckpointError:
        return None


def did_you_mean(folder: Path) -> str:
    """Return the end of a message that names the compressed models in a folder that is none."""
    names = []
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(OSError):  # CheckpointError is one
            if child.is_dir() and _description(child) is not None:
                names.append(str(child))
    if not names:
        return ""
    more = f", or one of {len(names) - 5} others" if len(names) > 5 else ""
    return f": it is no model; did you mean {' or '.join(names[:5])}{more}?"
