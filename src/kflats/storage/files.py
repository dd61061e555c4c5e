"""Looking at the files of a checkpoint before anything is loaded from them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from kflats.errors import CheckpointError
from kflats.layers.stored import FILE_NAMES
from kflats.storage.manifest import Manifest

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


class TensorHeader(NamedTuple):
    """Shape and dtype of a tensor in a file; the dtype as safetensors writes it, such as F32."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor; its dtype ends with its bits."""
        bits = int(re.sub(r"_.*|\D", "", self.dtype) or 8)  # BOOL is a byte
        return math.prod(self.shape) * bits // 8


def read_headers(paths: Iterable[Path]) -> dict[str, TensorHeader]:
    """Return what the tensors in safetensors files are, without reading them.

    Raises
    ------
    CheckpointError
        If a file is damaged or no safetensors file, or pickles lie beside it.
    """
    found: dict[str, TensorHeader] = {}
    folders = set()
    for path in paths:
        if path.parent not in folders:
            refuse_pickles(path.parent)
            folders.add(path.parent)
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  no mapping
                    part = file.get_slice(key)
                    found[key] = TensorHeader(tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
    return found


def check_tensors(
    manifest: Manifest, found: dict[str, TensorHeader], folder: Path, where: str
) -> None:
    """Compare the description of the factorised tables with the tensors in the files.

    Raises
    ------
    CheckpointError
        Naming the folder and the tensor, if one is missing or has a wrong shape.
    """
    blobs = manifest.blobs
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
        kind, fits = _needed(name.rpartition(".")[2], tensor.dtype)
        if not header.dtype.startswith(fits):
            raise CheckpointError(
                f"{folder}: tensor {name!r} has dtype {header.dtype}; {kind} is needed."
            )


def _needed(leaf: str, dtype: torch.dtype) -> tuple[str, tuple[str, ...]]:
    """Return the kind of numbers that a tensor holds, and how the names of its dtypes begin."""
    if leaf == FILE_NAMES["labels"]:
        return "whole numbers", ("U", "I")
    if dtype == torch.uint8:
        return "U8 (bytes)", ("U8",)
    if not dtype.is_floating_point:
        name = f"I{8 * dtype.itemsize}"
        return name, (name,)
    return "floating point", ("F", "BF")


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
