"""Codes: the tensors of a table in packed codes, and its rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kflats.linalg import row_blocks, working_dtype
from kflats.quantization.records import Books, decode
from kflats.quantization.shape import CodeShape
from kflats.shape import STORED


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
    """Return the rows at ascending places, shape (m, embedding_dim).

    In float32, or in float64 where the scales are, for the sake of exact rows. Only these rows
    are unpacked; those of one basis are multiplied with it together.

    Raises
    ------
    IndexError
        If a place is out of range.
    """
    shape = codes.shape
    if len(places) and not 0 <= int(places[0]) <= int(places[-1]) < shape.num_embeddings:
        raise IndexError("index out of range in self")
    books = Books(codes.books, shape.widths)
    dtype = working_dtype(codes.scales.dtype)
    rows = codes.scales.new_empty(len(places), shape.embedding_dim, dtype=dtype)
    starts, sizes = _starts(shape)
    ends = torch.tensor(starts[1:-1], device=places.device, dtype=places.dtype)
    bounds = [0, *torch.searchsorted(places, ends).tolist(), len(places)]
    group = 0
    for basis in range(shape.n_clusters):
        first = group
        while group < len(shape.counts) and shape.basis_ids[group] == basis:
            group += 1
        begin, end = bounds[first], bounds[group]
        if begin == end:
            continue
        inner = rows.new_empty(end - begin, shape.basis_ranks[basis])
        for number in range(first, group):
            run = slice(bounds[number], bounds[number + 1])
            if run.start < run.stop:
                records = _records(codes, number, sizes[number])
                wanted = records.index_select(0, places[run] - starts[number])
                part = inner[run.start - begin : run.stop - begin]
                coded = sum(count for _, count in shape.runs[number])
                part[:, coded:] = 0
                if coded:
                    decode(wanted, shape.runs[number], books, part)
        _finish(codes, basis, inner, rows[begin:end])
    if shape.basis_ids[-1] == STORED and codes.exact is not None:
        wanted = places[bounds[-2] :] - starts[-2]
        rows[bounds[-2] :] = codes.exact.index_select(0, wanted).to(dtype)
    return rows


def _finish(codes: Codes, basis: int, inner: Tensor, rows: Tensor) -> None:
    """Write ``inner @ basis + mean`` into ``rows``."""
    directions, mean = directions_of(codes, basis), mean_of(codes, basis)
    if directions.dim() == 2:
        with torch.autocast(rows.device.type, enabled=False):
            torch.mm(inner, directions.to(rows.dtype), out=rows)
        if mean is not None:
            rows += mean
        return
    rank = inner.shape[1]
    origin = rows.new_zeros(rows.shape[1]) if mean is None else mean
    torch.addcmul(origin[:rank], inner, directions[:rank], out=rows[:, :rank])
    if rank < rows.shape[1]:
        rows[:, rank:] = origin[rank:]


@lru_cache(maxsize=64)
def _starts(shape: CodeShape) -> tuple[list[int], list[int]]:
    """Return the first place of every group and the end, and the first byte of every group."""
    places, bytes_ = [0], [0]
    for count, size in zip(shape.counts, shape.record_bytes, strict=True):
        places.append(places[-1] + count)
        bytes_.append(bytes_[-1] + count * size)
    return places, bytes_


def _records(codes: Codes, group: int, start: int) -> Tensor:
    count, size = codes.shape.counts[group], codes.shape.record_bytes[group]
    flat = codes.coefficients.narrow(0, start, count * size)
    return flat.view(count, size)
