"""Looking at the files of a checkpoint before anything is loaded from them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kflats.errors import CheckpointError
from kflats.layers.stored import FILE_NAMES
from kflats.storage.json_files import read_json
from kflats.storage.manifest import Manifest

WEIGHTS = "model.safetensors"
_CHUNK = 1 << 20
_FLOATS = ("F32", "F16", "BF16", "F64")
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".joblib", ".dill")
_OF_TRAINER = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
"""What Trainer leaves beside a checkpoint for itself to resume from; kflats never opens them."""


def refuse_pickles(folder: Path) -> None:
    """Raise CheckpointError if a folder holds files that only unpickling can read.

    Raises
    ------
    CheckpointError
        Naming the file. The files that Trainer keeps for resuming are let be: nothing here reads
        them.
    """
    for path in sorted(folder.rglob("*")):
        ours = path.name in _OF_TRAINER or path.name.startswith("rng_state")
        if path.suffix.lower() in _PICKLES and path.is_file() and not ours:
            raise CheckpointError(
                f"{path} is a pickle, which can run any code when it is read: remove it, or "
                "convert it to safetensors. kflats writes and reads safetensors only."
            )


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that transformers reads the tensors from.

    That is ``model.safetensors``, else the shards that its index names, else all there are.

    Raises
    ------
    CheckpointError
        If the index is damaged or names a file that is not in the folder.
    """
    whole, index = folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"
    if whole.exists():
        return [whole]
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    places = read_json(index).get("weight_map")
    here = {path.name for path in folder.glob("*.safetensors")}
    names: list[Any] = list(places.values()) if isinstance(places, dict) else [places]
    wrong = [name for name in names if not isinstance(name, str) or name not in here]
    if wrong or not names:
        raise CheckpointError(
            f"{index}: weight_map must give the file of every tensor, one of {sorted(here)}; got "
            f"{str(wrong[:1])[:80]}."
        )
    return [folder / name for name in sorted(set(names))]


class TensorHeader(NamedTuple):
    """A tensor in a file.

    Attributes
    ----------
    shape : tuple of int
        Its sizes.
    dtype : str
        As safetensors writes it, such as F32.
    path : Path
        The file.
    begin, end : int
        Where its bytes lie in the file.
    name : str
        Its name in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    path: Path = Path()
    begin: int = 0
    end: int = 0
    name: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor; its dtype ends with its bits."""
        bits = int(re.sub(r"_.*|\D", "", self.dtype) or 8)  # BOOL is a byte
        return math.prod(self.shape) * bits // 8

    def chunks(self, ends: int | None = None) -> Iterator[bytes]:
        """Yield the bytes in the file, a mebibyte at most at a time.

        With ``ends``, only as many at the beginning and at the end.
        """
        size = self.end - self.begin
        parts = [(self.begin, size)]
        if ends is not None and size > 2 * ends:
            parts = [(self.begin, ends), (self.end - ends, ends)]
        with self.path.open("rb") as file:
            for start, left in parts:
                file.seek(start)
                while left > 0 and (chunk := file.read(min(left, _CHUNK))):
                    left -= len(chunk)
                    yield chunk


def read_headers(paths: Iterable[Path]) -> dict[str, TensorHeader]:
    """Return what the tensors in safetensors files are, without reading them.

    Raises
    ------
    CheckpointError
        If a file is damaged or no safetensors file, two files have a tensor of one name, or
        pickles lie beside them.
    """
    found: dict[str, TensorHeader] = {}
    folders = set()
    for path in paths:
        if path.parent not in folders:
            refuse_pickles(path.parent)
            folders.add(path.parent)
        for key, header in _headers(path).items():
            if key in found:
                raise CheckpointError(
                    f"{path} and {found[key].path.name} both have a tensor {key!r}: remove the "
                    "file that does not belong to the model."
                )
            found[key] = header
    return found


def _headers(path: Path) -> dict[str, TensorHeader]:
    try:
        with safe_open(path, framework="pt"):  # checks sizes and places
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size), object_pairs_hook=_distinct)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
    entries.pop("__metadata__", None)
    found = {}
    for key, entry in entries.items():
        begin, end = (8 + size + place for place in entry["data_offsets"])
        found[key] = TensorHeader(tuple(entry["shape"]), entry["dtype"], path, begin, end, key)
    return found


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("its header names something twice")
    return dict(pairs)


def read_tensor(header: TensorHeader) -> Tensor:
    """Return a tensor of a file; a view of the file where that is possible.

    Raises
    ------
    CheckpointError
        If it cannot be read.
    """
    try:
        with safe_open(header.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(header.name)
    except (SafetensorError, OSError, TypeError) as error:
        message = f"{header.path}: cannot read tensor {header.name!r}: {error}"
        raise CheckpointError(message) from error
    return tensor


def check_tensors(
    manifest: Manifest, found: dict[str, TensorHeader], folder: Path, where: str
) -> None:
    """Compare the description of the factorised tables with the tensors in the files.

    Raises
    ------
    CheckpointError
        Naming the folder and the tensor, if one is missing or has a wrong shape or dtype, or a
        module without a table of its own has a tensor all the same.
    """
    blobs = manifest.blobs
    floats: dict[str, tuple[str, str]] = {}
    for name, tensor in manifest.tensors().items():
        header, shape = find_header(name, found), tuple(tensor.shape)
        if header is None:
            raise CheckpointError(f"{folder} has no tensor {name!r}, which {where} announces.")
        if name in blobs:
            shape = (math.prod(header.shape),)
        if header.shape != shape:
            raise CheckpointError(
                f"{folder}: tensor {name!r} has shape {header.shape}, {where} announces {shape}."
            )
        kind, fits = _needed(tensor.dtype)
        if header.dtype not in fits:
            raise CheckpointError(
                f"{folder}: tensor {name!r} has dtype {header.dtype}; {kind} is needed."
            )
        if tensor.dtype.is_floating_point:
            first, dtype = floats.setdefault(name.rpartition(".")[0], (name, header.dtype))
            if header.dtype != dtype:
                raise CheckpointError(
                    f"{folder}: tensor {name!r} has dtype {header.dtype}, {first!r} has {dtype}: "
                    "all numbers of a table have one."
                )
    for name, module in manifest.modules.items():
        own = f"{name}.{FILE_NAMES['coefficients']}"
        if module.table != name and own in found:
            raise CheckpointError(
                f"{folder} has a tensor {own!r}, but {where} says that {name!r} reads the table "
                f"{module.table!r}."
            )


def _needed(dtype: torch.dtype) -> tuple[str, tuple[str, ...]]:
    """Return the kind of numbers that a tensor holds, and the names of its dtypes in a file."""
    if dtype.is_floating_point:
        return f"floating point ({', '.join(_FLOATS)})", _FLOATS
    if dtype == torch.uint8:
        return "U8 (bytes)", ("U8",)
    name = f"I{8 * dtype.itemsize}"
    return name, (name,)


def find_header(name: str, found: dict[str, TensorHeader]) -> TensorHeader | None:
    """Return the tensor of a module, also where a library wrote it with another prefix.

    transformers keeps the old names of some models in their files, such as
    ``language_model.model`` for ``model.language_model``; the last two parts are the same.
    """
    key = find_name(name, found)
    return None if key is None else found[key]


def find_name(name: str, found: dict[str, TensorHeader]) -> str | None:
    """Return the name in a file of the tensor that :func:`find_header` returns."""
    if name in found:
        return name
    tail = ".".join(name.split(".")[-2:])
    alike = [key for key in found if ("." + key).endswith("." + tail)]
    return alike[0] if len(alike) == 1 else None
