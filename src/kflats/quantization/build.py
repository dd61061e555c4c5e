"""build_codes: pack the coefficients of rows whose bits are chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from kflats.factors.shape import STORED, label_dtype
from kflats.linalg import row_blocks
from kflats.quantization.axes import Axes
from kflats.quantization.codebooks import fit_levels, gaussian_levels
from kflats.quantization.codes import Codes
from kflats.quantization.records import Books, encode, fit_gains, make_books
from kflats.quantization.shape import BASIS_DTYPES, CodeShape, Runs, coded_in

_SAMPLE = 1 << 20
_ROOM = 0.3
"""Fitted gains may lie so far, in logarithms, beyond the rough ones."""

Groups = list[tuple[int, Runs, Tensor]]


def build_codes(
    axes: Axes, groups: Groups, free: Tensor, exact: Tensor | None, dtype: torch.dtype
) -> Codes:
    """Return the packed table.

    Parameters
    ----------
    axes : Axes
        Coefficients of the rows that are coded.
    groups : list of (basis, runs, mask)
        See :func:`kflats.quantization.rates.choose_rungs`.
    free : Tensor of shape (num_embeddings,), bool
        Which rows of the table are coded.
    exact : Tensor of shape (n_exact, embedding_dim), optional
        The others.
    dtype : torch.dtype
        Of scales and code books.
    """
    device = axes.rows.device
    labels = torch.full((len(free),), len(groups), dtype=torch.int64, device=device)
    own = torch.zeros(len(axes.rows), dtype=torch.int64, device=device)
    for number, (_, _, mask) in enumerate(groups):
        own[mask] = number
    labels[free] = own
    shape = _shape(axes, groups, labels, exact is not None)
    bases, scales = _stored_bases(axes, shape, dtype)
    numbers = _books(axes, groups, shape).to(dtype)  # encoding uses what is stored
    books = Books(numbers, shape.widths)
    empty = torch.zeros(0, dtype=torch.uint8, device=device)
    records = [_records(axes, group, books).reshape(-1) for group in groups if group[1]]
    kind = label_dtype(len(shape.counts))
    return Codes(
        shape=shape,
        coefficients=torch.cat([empty, *records]),
        labels=None if kind is None else labels.to(kind),
        bases=bases,
        scales=scales,
        books=numbers,
        exact=exact,
    )


def _shape(axes: Axes, groups: Groups, labels: Tensor, has_exact: bool) -> CodeShape:
    settings = axes.settings
    return CodeShape(
        num_embeddings=len(labels),
        embedding_dim=axes.rows.shape[1],
        counts=tuple(torch.bincount(labels, minlength=len(groups) + has_exact).tolist()),
        runs=(*(runs for _, runs, _ in groups), *((),) * has_exact),
        basis_ids=(*(basis for basis, _, _ in groups), *(STORED,) * has_exact),
        rotated=(settings.rotated,) * settings.n_clusters,
        basis_bits=settings.basis_bits,
    )


def _stored_bases(axes: Axes, shape: CodeShape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    directions, columns = [], []
    for basis, vectors in enumerate(axes.vectors):
        directions.append(axes.means[basis][None])
        deviations = axes.variances[basis].sqrt()
        if vectors is None:
            columns.append(deviations.to(dtype))
        else:
            directions.append((vectors * deviations).T[: shape.basis_ranks[basis]])
    stacked = torch.cat(directions)
    codes, scales = round_directions(stacked, shape.basis_bits, dtype)
    return codes, torch.cat([scales, *columns])


def round_directions(rows: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return rows as whole numbers of so many bits, and one scale for each in ``dtype``."""
    kind = BASIS_DTYPES[bits]
    most = torch.iinfo(kind).max
    scales = _scales(rows.abs().amax(1), most, dtype)
    wide = scales.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return (rows / wide).round().clamp(-most, most).to(kind), scales


def _scales(largest: Tensor, most: int, dtype: torch.dtype) -> Tensor:
    """Return the scales with which codes up to ``most`` reach ``largest``, rounded up."""
    scales = (largest / most).to(dtype)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    short = scales.to(largest) * most < largest
    return (scales.view(whole) + short.to(whole)).view(dtype)


def _books(axes: Axes, groups: Groups, shape: CodeShape) -> Tensor:
    """Return the code books, fitted to the coefficients that use them."""
    kind, levels = axes.settings.levels, {}
    for width in shape.widths:
        levels[width] = gaussian_levels(width, kind).to(axes.rows.device)
        if kind != "uniform" and width < 8:
            levels[width] = fit_levels(*_sample(axes, groups, width), levels[width])
    coded = torch.zeros(len(axes.rows), dtype=torch.bool, device=axes.rows.device)
    for _, runs, mask in groups:
        if runs:
            coded |= mask
    return make_books(axes.gains[coded], levels, room=_ROOM)


def _sample(axes: Axes, groups: Groups, width: int) -> tuple[Tensor, Tensor]:
    """Return coefficients in units of their gain that have this width, and their weights."""
    values, weights = [], []
    for basis, runs, mask in groups:
        start = 0
        for bits, count in runs:
            if bits == width:
                rows = mask.nonzero().squeeze(1)
                rows = rows[:: max(1, len(rows) * count // _SAMPLE)]
                columns = slice(start, start + count)
                gains = axes.gains[rows, None]
                power = axes.variances[basis][columns] * gains.square()
                values.append((axes.values[rows, columns] / gains).reshape(-1))
                weights.append((power * axes.weights[rows, None]).reshape(-1))
            start += count
    return torch.cat(values), torch.cat(weights)


def _records(axes: Axes, group: tuple[int, Runs, Tensor], books: Books) -> Tensor:
    basis, runs, mask = group
    coded = coded_in(runs)
    rows, importance = mask.nonzero().squeeze(1), axes.variances[basis][:coded]
    parts = []
    for block in row_blocks(len(rows), 4 * coded):
        values = axes.values[rows[block], :coded]
        gains = fit_gains(values, importance, runs, books)
        parts.append(encode(values, gains, runs, books))
    return torch.cat(parts)
