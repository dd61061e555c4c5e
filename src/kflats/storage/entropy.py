"""Entropy coding of the tables in a folder that was just written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from kflats.errors import InputError
from kflats.files import whole_file
from kflats.layers.coded import CodedTable
from kflats.layers.stored import FILE_NAMES
from kflats.quantization.entropy import coders, compress_records
from kflats.quantization.shape import CodeShape
from kflats.storage.check import read_manifest
from kflats.storage.files import read_headers
from kflats.storage.json_files import read_json
from kflats.storage.locate import as_described
from kflats.storage.manifest import ENTROPY, factor_layers
from kflats.storage.seal import seal


def check_codes(model: nn.Module) -> None:
    """Raise if a model has nothing to entropy-code, or the package for it is missing.

    Raises
    ------
    InputError
        If no table is in packed codes.
    MissingExtraError
        If constriction is not installed.
    """
    if not any(isinstance(layer, CodedTable) for layer in factor_layers(model).values()):
        raise InputError(
            f"entropy=True needs a table in packed codes, {type(model).__name__} has none: "
            "compress it with bits=... or method='codes', or leave out entropy."
        )
    coders()


def entropy_code(folder: Path) -> None:
    """Entropy-code the packed tables in a folder, in place.

    A table that would not become smaller stays as it is. A file of several, as of a sharded
    checkpoint, is written anew if it has one of the tables.
    """
    manifest, where = read_manifest(folder)
    headers = {path: read_headers([path]) for path in where.parent.glob("*.safetensors")}
    together = {key: header for each in headers.values() for key, header in each.items()}
    described = as_described(manifest, together)
    tables = {}
    for name, spec in manifest.tables.items():
        if isinstance(spec.shape, CodeShape):
            key = described[f"{name}.{FILE_NAMES['coefficients']}"].name
            tables[key] = name, spec.shape
    smaller: dict[str, int] = {}
    for path, found in headers.items():
        here = {key: tables[key][1] for key in found if key in tables}
        if here:
            smaller |= {tables[key][0]: size for key, size in _rewrite(path, here).items()}
    _describe(where, smaller)
    seal(where.parent)


def _rewrite(path: Path, shapes: dict[str, CodeShape]) -> dict[str, int]:
    """Entropy-code tensors of a file; return the bytes saved by each that became smaller."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors, saved = load_file(path), {}
    for key, shape in shapes.items():
        blob = compress_records(tensors[key], shape)
        if len(blob) < len(tensors[key]):
            saved[key] = len(tensors[key]) - len(blob)
            tensors[key] = blob
    if saved:
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata=metadata)
    return saved


def _describe(where: Path, smaller: dict[str, int]) -> None:
    """Say in the description, and in the index of a sharded checkpoint, what has become smaller."""
    data = read_json(where)
    block = data.get("quantization_config", data)
    for table in smaller:
        block["layers"]["tables"][table]["storage"]["coefficients"] = ENTROPY
    _write(where, data)
    for path in where.parent.glob("*.safetensors.index.json"):
        index = read_json(path)
        if "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] -= sum(smaller.values())
            _write(path, index)


def _write(path: Path, data: dict[str, Any]) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
