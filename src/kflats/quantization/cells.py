"""start_in_cells: where within the cells of their codes the rows of a dense table lie."""

from __future__ import annotations

import torch
from torch import Tensor

from kflats.quantization.codebooks import nearest
from kflats.quantization.codes import Codes, directions_of, mean_of
from kflats.quantization.packing import HALF
from kflats.quantization.records import Books
from kflats.quantization.shape import Runs

_MARGIN = 1e-3
"""Least distance from the border of a cell, as a share of the distance of its levels."""


def start_in_cells(
    levels: Tensor, log_gains: Tensor, codes: Codes, group: int, table: Tensor
) -> Tensor:
    """Return coefficients that have the codes of a group and are near those of a dense table.

    Parameters
    ----------
    levels : Tensor of shape (m, coefficients)
        The levels of the rows of the group, exactly.
    log_gains : Tensor of shape (m,)
        Logarithms of their gains.
    codes : Codes
        Gives the basis of the group.
    group : int
        Its number.
    table : Tensor of shape (num_embeddings, embedding_dim)
        The rows before compression.

    Returns
    -------
    Tensor of shape (m, coefficients)
        Coefficients of the dense rows, divided by the gains, where they have the same code. Others
        lie at the border of the cell that is nearest. Those of 16 bits are the given ones.
    """
    shape = codes.shape
    begin, end = shape.row_starts[group : group + 2]
    rows = table[codes.order()[begin:end]].to(levels)
    wanted = _coefficients(codes, shape.basis_ids[group], rows)[:, : levels.shape[1]]
    wanted = wanted / log_gains.exp()[:, None]
    return _within(wanted, levels, shape.runs[group], Books(codes.books, shape.widths))


def _coefficients(codes: Codes, basis: int, rows: Tensor) -> Tensor:
    """Return the coefficients of least squares."""
    directions, mean = directions_of(codes, basis), mean_of(codes, basis)
    moved = rows if mean is None else rows - mean
    if directions.dim() == 1:
        return moved / torch.where(directions == 0, torch.inf, directions)
    inverse: Tensor = torch.linalg.pinv(directions)
    return moved @ inverse


def _within(wanted: Tensor, levels: Tensor, runs: Runs, books: Books) -> Tensor:
    """Return the nearest to the wanted numbers that are still rounded to these levels."""
    result, start = levels.clone(), 0
    for bits, count in runs:
        part = slice(start, start + count)
        start += count
        if bits == HALF:
            continue
        own = books.levels(bits)
        numbers = nearest(levels[:, part], own)
        gaps = own.diff()
        inner = (own[1:] + own[:-1]) / 2
        # The outer cells end as far beyond their level as they begin before it.
        low = torch.cat([own[:1] - gaps[:1] / 2, inner + _MARGIN * gaps])
        high = torch.cat([inner - _MARGIN * gaps, own[-1:] + gaps[-1:] / 2])
        result[:, part] = torch.clamp(wanted[:, part], low[numbers.long()], high[numbers.long()])
    return result
