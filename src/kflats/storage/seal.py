"""Writing checksums into a folder that was just written, and comparing them.

They find damage and changes by hand, not forgeries. Of the factorised tables every byte counts; of
all other tensors the name, the dtype, the shape and the bytes at both ends, so that checking does
not read a large model twice.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kflats.errors import CheckpointError
from kflats.files import whole_file
from kflats.layers.stored import FILE_NAMES
from kflats.storage.checksums import FIELD, Checksums
from kflats.storage.files import TensorHeader, find_name, read_headers, weight_files
from kflats.storage.json_files import read_json
from kflats.storage.locate import as_described, locate_tensors
from kflats.storage.manifest import MANIFEST, NAMES, Manifest, manifest_of_block

_ENDS = 1024


def seal(
    folder: Path,
    locate: Callable[[Manifest, dict[str, TensorHeader]], dict[str, str]] | None = None,
) -> None:
    """Write the checksums of a folder into its description, if it has factorised tables.

    A folder with the weights in more than one form (``variant``) has one description for all of
    them, and stays without. ``locate`` knows the names of tensors in the files; those that could
    not be found without it are written too.
    """
    places = [path for name in (MANIFEST, "config.json") if (path := folder / name).exists()]
    if not places:
        return  # an adapter alone
    where = places[0]
    data = read_json(where)
    block = data if where.name == MANIFEST else data.get("quantization_config", {})
    block.pop(FIELD, None)
    files = weight_files(folder)
    if "layers" in block and set(files) == set(folder.glob("model*.safetensors")):
        manifest = manifest_of_block({"quant_method": "kflats", **_without(block)}, str(where))
        found = read_headers(files)
        if locate is not None:
            guessed = locate_tensors(manifest, found)
            names = locate(manifest, found)
            names = {name: key for name, key in names.items() if guessed.get(name) != key}
            manifest = replace(manifest, names=names)
            block |= {NAMES: names} if names else {}
        sums = _sums(manifest, as_described(manifest, found), data)
        block[FIELD] = asdict(sums)
    text = json.dumps(data, indent=2) + "\n"
    with whole_file(where) as partial:
        partial.write_text(text, encoding="utf-8")


def check_checksums(
    manifest: Manifest, found: dict[str, TensorHeader], folder: Path, where: str
) -> None:
    """Raise unless tables and tensors are those that were saved; old files do not say.

    Raises
    ------
    CheckpointError
        Naming the folder and the table.
    """
    if manifest.checksums is None:
        return
    for name, expected in manifest.checksums.tables.items():
        if _of_table(manifest, name, found) != expected:
            raise CheckpointError(
                f"{folder}: the table {name!r}, its description or one of its tensors, does not "
                f"have the checksum {expected} in {where}: {_REMEDY.format(where=where)}"
            )
    expected = manifest.checksums.tensors
    if _of_tensors(manifest, found) != expected:
        raise CheckpointError(
            f"{folder}: the tensors that belong to no table ({len(found)} with those that do) do "
            f"not have the checksum {expected} in {where}, some are missing, renamed, changed or "
            f"too many: {_REMEDY.format(where=where)}"
        )


def check_config(manifest: Manifest, where: Path) -> None:
    """Raise CheckpointError unless a folder says as it did that a model of that class is in it."""
    if manifest.checksums is None:
        return
    expected, data = manifest.checksums.config, read_json(where)
    if _of_config(data) != expected:
        raise CheckpointError(
            f"{where}: {_OF_CONFIG[where.name == MANIFEST]} not have the checksum {expected} that "
            f"was saved with it: {_REMEDY.format(where=where.name)}"
        )


_OF_CONFIG = ("architectures with model_type do", "aliases does")
_REMEDY = (
    "damaged, or changed after kflats has written it. Copy or download it again; if the change was "
    "meant, remove 'checksums' from {where}."
)


def _sums(manifest: Manifest, found: dict[str, TensorHeader], data: dict[str, Any]) -> Checksums:
    return Checksums(
        tables={name: _of_table(manifest, name, found) for name in manifest.tables},
        tensors=_of_tensors(manifest, found),
        config=_of_config(data),
    )


def _of_table(manifest: Manifest, name: str, found: dict[str, TensorHeader]) -> str:
    described = manifest.to_dict()
    readers = {n: each for n, each in described["modules"].items() if each["table"] == name}
    crc = _add_json(0, [name, described["tables"][name], readers])
    for key in _keys(manifest, name, found):
        crc = _add_tensor(crc, key, found[key])
    return f"{crc:08x}"


def _of_tensors(manifest: Manifest, found: dict[str, TensorHeader]) -> str:
    ours = {key for name in manifest.tables for key in _keys(manifest, name, found)}
    crc = 0
    for key in sorted(found.keys() - ours):
        crc = _add_tensor(crc, key, found[key], _ENDS)
    return f"{crc:08x}"


def _of_config(data: dict[str, Any]) -> str:
    return f"{_add_json(0, _config(data)):08x}"


def _config(data: dict[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in ("architectures", "model_type", "aliases") if key in data}


def _keys(manifest: Manifest, table: str, found: dict[str, TensorHeader]) -> list[str]:
    names = [f"{table}.{leaf}" for leaf in sorted(FILE_NAMES.values())]
    known = manifest.tensors()
    keys = (find_name(name, found) for name in names if name in known)
    return [key for key in keys if key is not None]


def _add_json(crc: int, data: Any) -> int:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode(), crc)


def _add_tensor(crc: int, key: str, header: TensorHeader, ends: int | None = None) -> int:
    crc = _add_json(crc, [key, header.dtype, header.shape])
    for chunk in header.chunks(ends):
        crc = zlib.crc32(chunk, crc)
    return crc


def _without(block: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key != "aliases"}
