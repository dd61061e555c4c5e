"""Codes: the tensors of a table in packed codes, and its rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kflats.factors.shape import STORED
from kflats.linalg import row_blocks, working_dtype
from kflats.quantization.records import Books, decode
from kflats.quantization.shape import CodeShape, Runs, coded_in


@dataclass(frozen=True, eq=False)
class Codes:
    """A table in packed codes, see :class:`CodeShape`.

    Attributes
    ----------
    shape : CodeShape
        Its sizes.
    coefficients : Tensor, uint8, flat
        The records of all rows, group by group.
    labels : Tensor of shape (num_embeddings,), smallest integer type, or None
        Group of every row; None for one group. Rows of a group lie in the order of their ids.
    bases : Tensor of shape (sum of shape.directions, embedding_dim), int8 or int16
        For each basis its mean, if it has one, and its directions, if it is rotated.
    scales : Tensor of shape (shape.num_scales,), float
        One factor per row of ``bases``, then one per column of each identity.
    books : Tensor of shape (shape.book_size,), float
        See :class:`kflats.quantization.records.Books`.
    exact : Tensor of shape (n_exact, embedding_dim), float, or None
        Rows stored as they are, in the order of their ids.
    """

    shape: CodeShape
    coefficients: Tensor
    labels: Tensor | None
    bases: Tensor
    scales: Tensor
    books: Tensor
    exact: Tensor | None

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        tensors = (self.coefficients, self.labels, self.bases, self.scales, self.books, self.exact)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def order(self) -> Tensor:
        """Return the id of the row at every place."""
        if self.labels is None:
            return torch.arange(self.shape.num_embeddings, device=self.coefficients.device)
        return torch.argsort(self.labels, stable=True)

    def table(self) -> Tensor:
        """Return all rows, shape (num_embeddings, embedding_dim), float32 or float64."""
        n, d = self.shape.num_embeddings, self.shape.embedding_dim
        dtype, order = working_dtype(self.scales.dtype), self.order()
        result = self.scales.new_empty(n, d, dtype=dtype)
        for block in row_blocks(n, 2 * d):
            places = torch.arange(block.start, block.stop, device=result.device)
            result[order[block]] = rows_at(self, places)
        return result


def mean_of(codes: Codes, basis: int) -> Tensor | None:
    """Return the mean of a basis, shape (embedding_dim,), float32."""
    if not codes.shape.affine:
        return None
    row = sum(codes.shape.directions[:basis])
    return codes.bases[row].float() * codes.scales[row].float()


def directions_of(codes: Codes, basis: int) -> Tensor:
    """Return what coefficients multiply, float32.

    Of shape (rank, embedding_dim) for a rotation, (embedding_dim,) for the columns of an identity.
    """
    shape = codes.shape
    if not shape.rotated[basis]:
        before = shape.rotated[:basis].count(False)
        start = sum(shape.directions) + before * shape.embedding_dim
        return codes.scales[start : start + shape.embedding_dim].float()
    start = sum(shape.directions[:basis]) + int(shape.affine)
    rows = slice(start, start + shape.basis_ranks[basis])
    return codes.bases[rows].float() * codes.scales[rows, None].float()


def rows_at(codes: Codes, places: Tensor) -> Tensor:
    """Return the rows at ascending places that exist, shape (m, embedding_dim).

    In float32, or in float64 where the scales are, for the sake of exact rows. Only these rows
    are unpacked, group by group.
    """
    shape, dtype = codes.shape, working_dtype(codes.scales.dtype)
    rows = codes.scales.new_empty(len(places), shape.embedding_dim, dtype=dtype)
    books, bases = Books(codes.books, shape.widths), _Bases(codes, dtype)
    starts = torch.tensor(shape.row_starts, device=places.device, dtype=places.dtype)
    bounds = pairwise(torch.searchsorted(places, starts).tolist())
    with torch.autocast(rows.device.type, enabled=False):
        for group, (begin, end) in enumerate(bounds):
            if begin == end:
                continue
            wanted, out = places[begin:end] - shape.row_starts[group], rows[begin:end]
            if shape.basis_ids[group] == STORED and codes.exact is not None:
                torch.index_select(codes.exact.to(dtype), 0, wanted, out=out)
                continue
            records = records_of(codes, group).index_select(0, wanted)
            basis = bases[shape.basis_ids[group]]
            basis.write_rows(records, shape.runs[group], books, out)
    return rows


class _Bases(dict[int, "_Basis"]):
    """The bases that occur, each made once."""

    def __init__(self, codes: Codes, dtype: torch.dtype) -> None:
        super().__init__()
        self.codes, self.dtype = codes, dtype

    def __missing__(self, basis: int) -> _Basis:
        directions, mean = directions_of(self.codes, basis), mean_of(self.codes, basis)
        if mean is None:
            mean = directions.new_zeros(self.codes.shape.embedding_dim)
        self[basis] = _Basis(directions.to(self.dtype), mean.to(self.dtype))
        return self[basis]


@dataclass(frozen=True, eq=False)
class _Basis:
    """What coefficients multiply, see :func:`directions_of`, and the mean of the rows."""

    directions: Tensor
    mean: Tensor

    def write_rows(self, records: Tensor, runs: Runs, books: Books, out: Tensor) -> None:
        """Write the rows of records into ``out``."""
        coded = coded_in(runs)
        if self.directions.dim() == 2 and coded:
            inner = out.new_empty(len(out), coded)
            decode(records, runs, books, inner)
            torch.addmm(self.mean, inner, self.directions[:coded], out=out)
            return
        inner = out[:, :coded]
        if coded:
            decode(records, runs, books, inner)
            torch.addcmul(self.mean[:coded], inner, self.directions[:coded], out=inner)
        if coded < out.shape[1]:
            out[:, coded:] = self.mean[coded:]


def records_of(codes: Codes, group: int) -> Tensor:
    """Return the records of a group, shape (rows, record bytes), uint8."""
    start, stop = codes.shape.byte_starts[group : group + 2]
    flat = codes.coefficients[start:stop]
    return flat.view(codes.shape.counts[group], codes.shape.record_bytes[group])
