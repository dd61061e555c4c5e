"""One basis with its mean, in either form it is stored in, and what the operators do with it.

Plain: ``rank`` whole rows and a whole mean. Echelon: the basis is the identity in its pivot columns
and the mean is zero there, so only the other columns are stored. In between, the columns of rows
lie *in order*: the pivots ascending, then the others ascending. Plain rows are always in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kflats.factors.shape import FactorShape
from kflats.layers.groups import Group


@dataclass(frozen=True)
class Basis:
    """Views of one basis.

    Attributes
    ----------
    numbers : Tensor of shape (rank, embedding_dim), in echelon form (rank, embedding_dim - rank)
        Its stored columns.
    mean : Tensor of shape (embedding_dim,), in echelon form (embedding_dim - rank,), or None
        The stored columns of the mean.
    columns : Tensor of shape (embedding_dim,), int32, or None
        Place of every column in order; None for a plain basis.
    """

    numbers: Tensor
    mean: Tensor | None
    columns: Tensor | None

    @classmethod
    def of(cls, group: Group, bases: Tensor, means: Tensor | None, columns: Tensor | None) -> Basis:
        """Return the directions that a group uses, see :func:`kflats.layers.lookup.lookup`."""
        return cls(
            numbers_of(group, bases, columns),
            None if means is None else mean_of(group, means, columns),
            None if columns is None else columns[group.basis],
        )

    def to(self, dtype: torch.dtype) -> Basis:
        """Return the basis without its mean in another dtype."""
        return Basis(self.numbers.to(dtype), None, self.columns)

    def in_order(self, rows: Tensor) -> Tensor:
        """Return rows of shape (*, embedding_dim) with their columns in order."""
        if self.columns is None:
            return rows
        if rows.shape[-1] != len(self.columns):
            raise RuntimeError(
                f"rows of {rows.shape[-1]} numbers and a basis of {len(self.columns)} columns: "
                "their shapes cannot be multiplied"
            )
        return rows.index_select(-1, self._order(self.columns))

    def stored(self, ordered: Tensor) -> Tensor:
        """Return the columns of ordered rows that the basis stores, a view."""
        return ordered if self.columns is None else ordered[..., len(self.numbers) :]

    def project(self, ordered: Tensor) -> Tensor:
        """Return the products of ordered rows with the directions, shape (*, rank)."""
        products = product(self.stored(ordered), self.numbers.T)
        if self.columns is None:
            return products
        return products + ordered[..., : len(self.numbers)]

    def rows(self, inner: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return ``inner @ basis + mean`` of shape (m, embedding_dim), for inner (m, rank).

        With ``weights`` of shape (m,) every row has so many times the mean.
        """
        part = product(inner, self.numbers)
        if self.mean is not None:
            part = part + (self.mean if weights is None else weights[:, None] * self.mean)
        if self.columns is None:
            return part
        return torch.cat([inner, part], -1).index_select(-1, self.columns)

    def write_rows(self, table: Tensor, numbers: Tensor, rows: Tensor, ordered: Tensor) -> None:
        """Write what :meth:`rows` returns for some rows of a table of coefficients into ``rows``.

        ``ordered``, as large as ``rows``, is overwritten: memory that is not new is faster.
        """
        if self.columns is None:
            self._multiply(table.index_select(0, numbers), rows)
            return
        rank, width = self.numbers.shape
        inner, part = ordered.split_with_sizes([rank, width], 1)
        torch.index_select(table, 0, numbers, out=inner)
        self._multiply(inner, part)
        torch.index_select(ordered, 1, self.columns, out=rows)

    def _multiply(self, inner: Tensor, rows: Tensor) -> None:
        if self.mean is None:
            torch.mm(inner, self.numbers, out=rows)
        else:
            torch.addmm(self.mean, inner, self.numbers, out=rows)

    def whole(self) -> Tensor:
        """Return all columns of the basis, shape (rank, embedding_dim)."""
        if self.columns is None:
            return self.numbers
        like = self.numbers
        identity = torch.eye(len(like), dtype=like.dtype, device=like.device)
        return torch.cat([identity, self.numbers], 1).index_select(1, self.columns)

    def whole_mean(self) -> Tensor:
        """Return all columns of the mean, shape (embedding_dim,); zeros without a mean."""
        d = self.numbers.shape[1] if self.columns is None else len(self.columns)
        if self.mean is None:
            return self.numbers.new_zeros(d)
        if self.columns is None:
            return self.mean
        zeros = self.mean.new_zeros(d - len(self.mean))
        return torch.cat([zeros, self.mean]).index_select(0, self.columns)

    @staticmethod
    def _order(columns: Tensor) -> Tensor:
        """Return the column at each place."""
        numbers = torch.arange(len(columns), device=columns.device)
        return torch.zeros_like(numbers).scatter(0, columns.long(), numbers)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right``; zeros for sums of nothing, which ONNX Runtime leaves undefined."""
    if right.shape[0]:
        return left @ right
    return left.new_zeros(*left.shape[:-1], right.shape[1])


def numbers_of(group: Group, bases: Tensor, columns: Tensor | None) -> Tensor:
    """Return the stored columns of the directions of a group, a view of ``bases``."""
    if group.directions is None:
        raise ValueError("rows that are stored as they are have no basis")
    if columns is None:
        return bases[group.directions]
    width = columns.shape[1] - group.rank
    start = group.directions.start * columns.shape[1] - group.omitted
    return bases[start : start + group.rank * width].view(group.rank, width)


def mean_of(group: Group, means: Tensor, columns: Tensor | None) -> Tensor:
    """Return the stored columns of the mean of a group, a view of ``means``."""
    if columns is None or group.directions is None:
        return means[group.basis]
    d = columns.shape[1]
    start = group.basis * d - group.directions.start
    return means[start : start + d - group.rank]


def stored_sizes(shape: FactorShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of all stored bases and of all stored means of a table."""
    ranks, d = shape.basis_ranks, shape.embedding_dim
    if not shape.echelon:
        return (sum(ranks), d), (len(ranks), d)
    return (sum(rank * (d - rank) for rank in ranks),), (sum(d - rank for rank in ranks),)


def width_of(bases: Tensor, columns: Tensor | None) -> int:
    """Return ``embedding_dim``."""
    return bases.shape[1] if columns is None else columns.shape[1]
