"""Product and residual quantisation by faiss: what vector codes of the same size would cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kflats.errors import BudgetError, MissingExtraError
from kflats.units import Unit

_WORDS = 256
_BOOK_BYTES = 2  # code books are counted as float16
_TRAINING_ROWS = 65536
_MOST_STAGES = 16
"""Residual quantisation beyond takes minutes and its books outweigh its codes."""


@dataclass(frozen=True)
class VectorCodes:
    """Rows from vector codes, and their bytes on disk."""

    table: Tensor
    num_bytes: int


def product_quantized(table: Tensor, target_bytes: int, seed: int = 0) -> VectorCodes:
    """Return the table by product quantisation with 256 words (Jegou et al. 2011).

    The number of parts is the largest that fits; where it does not divide the columns, the first
    parts have one column more than the others.

    Raises
    ------
    BudgetError
        If not even one part fits.
    MissingExtraError
        If faiss is not installed.
    """
    n, d = table.shape
    book = _WORDS * d * _BOOK_BYTES
    parts = min(d, (target_bytes - book) // n)
    if parts < 1:
        raise BudgetError(f"product quantisation needs {n + book} bytes.")
    faiss = _faiss()
    wide = d % parts
    split = wide * (d // parts + 1)
    coded = []
    for columns, count in ((table[:, :split], wide), (table[:, split:], parts - wide)):
        if count:
            quantizer = faiss.ProductQuantizer(columns.shape[1], count, 8)
            quantizer.cp.seed = seed + 1
            coded.append(_coded(quantizer, columns))
    return VectorCodes(torch.cat(coded, 1), n * parts + book)


def residual_quantized(table: Tensor, target_bytes: int, seed: int = 0) -> VectorCodes:
    """Return the table by residual quantisation with 256 words (Chen et al. 2010).

    Raises
    ------
    BudgetError
        If not even one stage fits, or more than 16 would.
    MissingExtraError
        If faiss is not installed.
    """
    n, d = table.shape
    stage = n + _WORDS * d * _BOOK_BYTES
    stages = target_bytes // stage
    if not 1 <= stages <= _MOST_STAGES:
        raise BudgetError(
            f"residual quantisation takes from {stage} to {_MOST_STAGES * stage} bytes."
        )
    faiss = _faiss()
    quantizer = faiss.ResidualQuantizer(d, stages, 8)
    quantizer.cp.seed = seed + 1
    quantizer.max_beam_size = 1
    return VectorCodes(_coded(quantizer, table), stages * stage)


def _coded(quantizer: Any, table: Tensor) -> Tensor:
    unit = Unit.of(table.detach())
    rows = unit.divide(table.detach()).float().cpu().contiguous().numpy()
    quantizer.cp.min_points_per_centroid = 1
    quantizer.cp.max_points_per_centroid = _TRAINING_ROWS // _WORDS
    quantizer.train(rows)
    decoded = quantizer.decode(quantizer.compute_codes(rows))
    return unit.multiply(torch.from_numpy(decoded).to(table))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "faiss") from error
    return faiss
