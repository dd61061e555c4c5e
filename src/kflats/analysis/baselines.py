"""What plain casting and rounding of a table cost, to stand beside every factorisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kflats.errors import InputError
from kflats.linalg import check_table, row_blocks


@dataclass(frozen=True)
class Baseline:
    """A table stored in fewer bits.

    Attributes
    ----------
    name : str
        'fp16', 'int8' or 'int4'.
    table : Tensor of shape (num_embeddings, embedding_dim)
        What comes back, in the dtype of the original.
    num_bytes : int
        On disk, scales included.
    """

    name: str
    table: Tensor
    num_bytes: int


def half(table: Tensor) -> Baseline:
    """Return the table cast to float16."""
    check_table(table)
    stored = table.to(torch.float16)
    check_table(stored, "the table cast to float16")
    return Baseline("fp16", stored.to(table.dtype), 2 * table.numel())


def rounded(table: Tensor, bits: int) -> Baseline:
    """Return the table rounded to integers of ``bits`` bits with one float16 scale per row.

    Symmetric: the largest magnitude of a row maps to ``2 ** (bits - 1) - 1``. Two 4-bit values
    share a byte.

    Parameters
    ----------
    table : Tensor of shape (num_embeddings, embedding_dim)
        Finite floating values.
    bits : int
        2 to 8.

    Raises
    ------
    InputError
        If ``bits`` is out of range or the table is not a finite matrix.
    """
    check_table(table)
    if not 2 <= bits <= 8:
        raise InputError(f"bits={bits} must be between 2 and 8.")
    largest = 2 ** (bits - 1) - 1
    result = torch.empty_like(table)
    for block in row_blocks(*table.shape):
        rows = table[block].to(torch.float32)
        scale = (rows.abs().amax(1, keepdim=True) / largest).to(torch.float16)
        check_table(scale, "the column of float16 scales")
        # The largest row value can round the scale down: keep its code within the range.
        safe = scale.to(torch.float32).clamp_min(torch.finfo(torch.float16).smallest_normal)
        codes = (rows / safe).round_().clamp_(-largest, largest)
        result[block] = (codes * safe).to(table.dtype)
    per_row = (table.shape[1] * bits + 7) // 8 + 2
    return Baseline(f"int{bits}", result, table.shape[0] * per_row)


BASELINES: dict[str, Callable[[Tensor], Baseline]] = {
    "fp16": half,
    "int8": lambda table: rounded(table, 8),
    "int4": lambda table: rounded(table, 4),
}
"""The rows that every comparison of kflats shows."""
