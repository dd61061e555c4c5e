"""Reading and checking the description in a folder before anything is loaded from it."""

from __future__ import annotations

import json
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
    names = (MANIFEST, "config.json")
    inner = [path for name in names for path in sorted(folder.glob(f"*/{name}"))]
    for path in [*(folder / name for name in names), *inner]:
        if not path.exists():
            continue
        data = read_json(path)
        block = data if path.name == MANIFEST else data.get("quantization_config")
        if not isinstance(block, dict):
            continue
        if path.name == MANIFEST or block.get("quant_method") == "kflats":
            described = {"quant_method": "kflats", **block}
            described.pop("aliases", None)  # of plain modules
            return manifest_of_block(described, str(path)), path
    raise CheckpointError(
        f"{folder} describes no factorised layer (no {MANIFEST}, no config.json with "
        "quant_method kflats): load it with the library that wrote it."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; CheckpointError if it holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return data
