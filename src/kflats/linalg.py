"""Pure tensor functions on tables: row blocks, moments, eigenvectors, errors.

Every pass over a table goes through :func:`row_blocks`, so that the working memory stays a few
tens of megabytes whatever the number of rows, and half-precision tables are widened block by
block instead of as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from kflats.errors import InputError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What a table may hold."""

_BLOCK_ELEMENTS = 1 << 21
_SAFE_SQUARES = 2.0**-900, 2.0**1000


def row_blocks(n_rows: int, width: int) -> Iterator[slice]:
    """Yield slices that cover ``n_rows`` rows in blocks of about two million numbers.

    Parameters
    ----------
    n_rows : int
        Number of rows to cover.
    width : int
        Numbers that the caller holds per row while it works on a block.
    """
    step = max(256, _BLOCK_ELEMENTS // max(1, width))
    for begin in range(0, n_rows, step):
        yield slice(begin, min(begin + step, n_rows))


def by_cluster(labels: Tensor, n_clusters: int) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(cluster, positions)`` for each cluster that occurs in ``labels``."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels, minlength=n_clusters).tolist()
    for cluster, positions in enumerate(order.split(counts)):
        if len(positions):
            yield cluster, positions


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float64 stays, everything else becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def first_nonfinite_row(table: Tensor) -> int | None:
    """Return the index of the first row with a NaN or an infinity, or None."""
    for block in row_blocks(table.shape[0], table.shape[1]):
        rows = table[block]
        if bool(torch.isfinite(rows.sum(dtype=working_dtype(rows.dtype)))):
            continue  # a sum with a NaN or an infinity in it is not finite
        finite = torch.isfinite(rows).all(dim=1)
        if not bool(finite.all()):
            return int(block.start + torch.argmin(finite.to(torch.uint8)))
    return None


def check_dtype(table: Tensor, name: str = "table") -> None:
    """Raise :class:`InputError` unless ``table`` holds floats that can be computed with."""
    if table.dtype not in FLOATS:
        remedy = ".real or .abs()" if table.is_complex() else ".float()"
        raise InputError(
            f"{name} has dtype {table.dtype}; a floating dtype of 16, 32 or 64 bits is needed: "
            f"{', '.join(map(str, FLOATS))}. Call {remedy} first."
        )


def check_table(table: Tensor, name: str = "table") -> None:
    """Raise :class:`InputError` unless ``table`` is a finite, non-empty matrix of ``FLOATS``."""
    if table.ndim != 2 or 0 in table.shape:
        raise InputError(
            f"{name} has shape {tuple(table.shape)}; a matrix of shape (rows, columns) with at "
            "least one of each is needed."
        )
    check_dtype(table, name)
    row = first_nonfinite_row(table)
    if row is not None:
        raise InputError(
            f"{name} holds NaN or infinity, first in row {row}; all values must be finite: "
            "repair or drop that row."
        )


def weighted_mean(table: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the (weighted) mean row, shape (columns,), accumulated in float64."""
    total = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    for block in row_blocks(*table.shape):
        rows = table[block].to(torch.float64)
        total += rows.sum(0) if weights is None else weights[block].to(torch.float64) @ rows
    mass = table.shape[0] if weights is None else weights.sum(dtype=torch.float64)
    return (total / mass).to(dtype)


def squared_norm(table: Tensor, weights: Tensor | None = None) -> float:
    """Return the (weighted) sum of all squared entries, accumulated in float64."""
    total = 0.0
    for block in row_blocks(*table.shape):
        norms = table[block].to(torch.float64).square().sum(1)
        if weights is not None:
            norms *= weights[block]
        total += float(norms.sum())
    return total


def eigh_ascending(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Eigen-decompose symmetric matrices one by one, with reproducible signs.

    Parameters
    ----------
    moments : Tensor of shape (k, d, d)
        Symmetric, positive semi-definite up to rounding.

    Returns
    -------
    eigenvalues : Tensor of shape (k, d)
        Ascending; rounding below zero is cut off.
    eigenvectors : Tensor of shape (k, d, d)
        Columns; in each the entry of largest magnitude is positive.
    """
    values = torch.empty(moments.shape[:2], dtype=moments.dtype, device=moments.device)
    vectors = torch.empty_like(moments)
    for index, (found, columns) in enumerate(_each_eigh(moments)):
        values[index] = found
        peaks = columns.gather(0, columns.abs().argmax(0, keepdim=True))
        vectors[index] = columns * torch.where(peaks < 0, -1.0, 1.0).to(columns.dtype)
    return values.clamp_min_(0.0), vectors


def _each_eigh(moments: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the eigenvalues and eigenvectors of each matrix.

    On a CPU each matrix is left to one thread: a decomposition of this size has so many short
    parallel regions that several threads gain little, and wait long where cores are shared.
    """
    threads = torch.get_num_threads()
    if moments.device.type != "cpu" or threads == 1 or len(moments) == 1:
        yield from map(torch.linalg.eigh, moments)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, len(moments))) as pool:
            found = list(pool.map(torch.linalg.eigh, moments))
    finally:
        torch.set_num_threads(threads)
    yield from found


def echelon_form(basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return pivot columns and the basis of the same span that is the identity there.

    The pivots come from a QR decomposition with column pivoting, which keeps the other entries
    small (on token tables below 3), so that little accuracy is lost.

    Parameters
    ----------
    basis : Tensor of shape (rank, d)
        Linearly independent rows.

    Returns
    -------
    pivots : Tensor of shape (d,), bool
        True in ``rank`` columns.
    echelon : Tensor of shape (rank, d)
        In the dtype of ``basis``; computed in float64.

    Examples
    --------
    >>> import torch
    >>> pivots, echelon = echelon_form(torch.tensor([[3.0, 0.0, 6.0], [0.0, 1.0, 0.0]]))
    >>> pivots.tolist(), echelon.tolist()
    ([False, True, True], [[0.0, 1.0, 0.0], [0.5, 0.0, 1.0]])
    """
    rank, d = basis.shape
    wide = basis.detach().to("cpu", torch.float64).numpy()
    triangle, order = scipy.linalg.qr(wide, mode="r", pivoting=True)
    others = scipy.linalg.solve_triangular(triangle[:, :rank], triangle[:, rank:])
    result = np.zeros((rank, d))
    ascending = np.argsort(order[:rank])
    result[:, order[rank:]] = others[ascending]
    result[np.arange(rank), order[:rank][ascending]] = 1.0
    pivots = torch.zeros(d, dtype=torch.bool)
    pivots[torch.from_numpy(order[:rank].astype("int64"))] = True
    return pivots.to(basis.device), torch.from_numpy(result).to(basis)


def relative_error(table: Tensor, approximation: Tensor) -> float:
    """Return ``||A - B||_F / ||A||_F`` (not squared), accumulated in float64.

    Values whose squares leave the range of float64 are measured as well as others.

    Raises
    ------
    InputError
        If the shapes differ.

    Examples
    --------
    >>> import torch
    >>> relative_error(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]))
    0.8
    """
    if table.shape != approximation.shape:
        raise InputError(
            f"shapes differ: {tuple(table.shape)} and {tuple(approximation.shape)}; "
            "give two matrices of one shape."
        )
    error, norm = _squares(table, approximation, None)
    if are_safe(error, norm):
        return math.sqrt(error / norm)
    return scaled_error(table, approximation.__getitem__)


def squared_relative_error(
    table: Tensor, approximation: Tensor, weights: Tensor | None = None
) -> float:
    """Return the (weighted) squared error of the rows over their squared norms, in float64."""
    error, norm = _squares(table, approximation, weights)
    if are_safe(error, norm):
        return error / norm
    return scaled_error(table, approximation.__getitem__, weights) ** 2


def _squares(table: Tensor, approximation: Tensor, weights: Tensor | None) -> tuple[float, float]:
    error = 0.0
    for block in row_blocks(*table.shape):
        difference = table[block].to(torch.float64) - approximation[block].to(torch.float64)
        errors = difference.square_().sum(1)
        if weights is not None:
            errors *= weights[block]
        error += float(errors.sum())
    return error, squared_norm(table, weights)


def are_safe(*squares: float) -> bool:
    """Return whether sums of squares are neither 0 nor near the ends of the range of float64."""
    low, high = _SAFE_SQUARES
    return all(low <= square <= high for square in squares)


def scaled_error(
    table: Tensor, rows: Callable[[slice], Tensor], weights: Tensor | None = None
) -> float:
    """Return the (weighted) relative error, not squared, whatever the magnitudes.

    Slower than a plain sum of squares. 0 for a table of zeros that comes back, 1 for one that
    does not.

    Parameters
    ----------
    table : Tensor of shape (n, d)
        Finite values.
    rows : callable
        Returns the rows of the approximation for a slice of the table.
    weights : Tensor of shape (n,), optional
        Of the squared errors.
    """
    error, norm = (scaled_norm(norms) for norms in row_norms(table, rows, weights))
    return error / norm if norm else float(error > 0)


def row_norms(
    table: Tensor, rows: Callable[[slice], Tensor], weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the (weighted) norms of the errors and of the rows, not squared, in one unit.

    See :func:`scaled_error`. Both are of shape (n,), float64; the unit is a power of two, 1 unless
    the norms could overflow or be rounded.
    """
    peak = max(float(table[block].abs().amax()) for block in row_blocks(*table.shape))
    unit = 2.0**-64 if peak > 2.0**900 else 2.0**128 if peak < 2.0**-800 else 1.0
    found = torch.empty(2, len(table), dtype=torch.float64, device=table.device)
    for block in row_blocks(*table.shape):
        wide = table[block].to(torch.float64) * unit
        found[0, block] = _norms(wide - rows(block).to(torch.float64) * unit)
        found[1, block] = _norms(wide)
    if weights is not None:
        found *= weights.to(found).sqrt()
    return found[0], found[1]


def _norms(rows: Tensor) -> Tensor:
    largest = rows.abs().amax(1, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    return (rows / unit).square_().sum(1).sqrt_() * largest.squeeze(1)


def scaled_norm(values: Tensor) -> float:
    """Return the root of the sum of squares of a vector, which may lie out of range themselves."""
    largest = values.abs().amax()
    if float(largest) == 0 or not math.isfinite(float(largest)):
        return float(largest)
    return float(largest * (values / largest).square().sum().sqrt())
