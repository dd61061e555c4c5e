"""NumPy arrays and torch tensors in, tensors to compute with, the same kind out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kflats.clustering.rows import Rows
from kflats.errors import InputError
from kflats.linalg import check_table, working_dtype

Array = Any
"""A NumPy array or a torch tensor."""

_WORKING = {"float32": torch.float32, "float64": torch.float64}
FLOATS = (np.float64, np.float32, np.float16)


def as_tensor(array: Array) -> Tensor:
    """Return a tensor that shares the memory of a NumPy array (tensors pass through)."""
    if isinstance(array, Tensor):
        return array.detach()
    with warnings.catch_warnings():
        # Nothing here writes to the data, so a read-only array is fine.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(np.ascontiguousarray(array))


def like(tensor: Tensor, kind: Array) -> Array:
    """Return ``tensor`` as the kind of array that ``kind`` is, on its device."""
    if isinstance(kind, Tensor):
        return tensor.to(kind.device)
    return tensor.cpu().numpy()


def check_matrix(tensor: Tensor) -> Tensor:
    """Return a finite floating matrix (integers become float32) or raise InputError."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        tensor = tensor.to(torch.float32)
    check_table(tensor, "X")
    return tensor


def choose_dtype(dtype: torch.dtype | str | None, found: torch.dtype) -> torch.dtype:
    """Return the working dtype: the one asked for, else float64 for float64, else float32."""
    if dtype is None:
        return working_dtype(found)
    chosen = _WORKING.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in _WORKING.values():
        raise InputError(
            f"dtype={dtype!r} is not a working dtype; give 'float32', 'float64' or None "
            "(half-precision input is computed in float32)."
        )
    return chosen


def choose_search_dtype(dtype: str | None, rows: Rows) -> torch.dtype | None:
    """Return the dtype of the products that choose flats; None is the working dtype.

    'auto' is bfloat16 for float32 work on processors that multiply it in hardware.
    """
    if dtype is None or rows.dtype != torch.float32:
        return None
    if dtype == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(rows.table.device) else None
    return torch.bfloat16


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public name yet
    return bool(ask is not None and ask())


def choose_device(device: torch.device | str | None, found: torch.device) -> torch.device:
    """Return the device to compute on; None means where the data are."""
    if device is None:
        return found
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    allowed = {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}
    if chosen.type not in allowed:
        raise InputError(
            f"device={str(device)!r} cannot be used here; allowed are {sorted(allowed)} or None."
        )
    return chosen


def check_weights(
    sample_weight: Array, n_samples: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return one non-negative weight per row (a scalar is repeated), or raise InputError."""
    if not isinstance(sample_weight, Tensor):
        sample_weight = np.array(sample_weight, dtype=np.float64)
    weights = torch.as_tensor(sample_weight).detach().to(device, dtype)
    if weights.ndim == 0:
        weights = weights.repeat(n_samples)
    if weights.shape != (n_samples,):
        raise InputError(
            f"sample_weight has shape {tuple(weights.shape)}; one weight per row is needed: "
            f"({n_samples},)."
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise InputError("sample_weight holds a negative, infinite or NaN value; weights are >= 0.")
    if not bool((weights > 0).any()):
        raise InputError("sample_weight is zero everywhere; at least one row must count.")
    return weights


def check_labels(
    labels: Array, n_samples: int, n_clusters: int, device: torch.device, name: str
) -> Tensor:
    """Return one label per row as int64, or raise InputError."""
    index = torch.as_tensor(labels)
    if index.shape != (n_samples,) or index.is_floating_point():
        raise InputError(
            f"{name} has shape {tuple(index.shape)} and dtype {index.dtype}; one integer per row "
            f"is needed: ({n_samples},)."
        )
    index = index.to(device, torch.int64)
    if not bool(((index >= 0) & (index < n_clusters)).all()):
        raise InputError(f"{name} must hold values between 0 and {n_clusters - 1}.")
    return index
