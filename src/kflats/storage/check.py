"""Reading and checking the description in a folder before anything is loaded from it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from kflats.errors import CheckpointError
from kflats.storage.files import TensorHeader, check_tensors, read_headers, refuse_pickles
from kflats.storage.locate import as_described
from kflats.storage.manifest import Manifest, manifest_of_block
from kflats.storage.plain import MANIFEST


def check_folder(folder: Path) -> tuple[Manifest, dict[str, TensorHeader]]:
    """Return the description of a folder and its tensors, after comparing the two.

    The tensors of tables have the names of the description.

    Raises
    ------
    CheckpointError
        Naming the file and the tensor, if one is missing, damaged or has a wrong shape, or if the
        folder holds pickles.
    """
    manifest, where = read_manifest(folder)
    refuse_pickles(folder)
    found = as_described(manifest, read_headers(sorted(where.parent.glob("*.safetensors"))))
    check_tensors(manifest, found, where.parent, where.name)
    return manifest, found


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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; CheckpointError if it holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return data
