"""The product of hidden states with a table in packed codes, in coefficient space.

A row is ``gain * levels @ basis + mean``. The hidden states are projected on the bases once and
multiplied with the levels as they are unpacked, block by block; gains and means are applied to the
products. These come out group by group and are put into the order of the ids at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kflats.factors.shape import STORED
from kflats.layers.places import places_at
from kflats.linalg import row_blocks, working_dtype
from kflats.quantization.codes import Codes, directions_of, mean_of, records_of
from kflats.quantization.records import Books, level_runs
from kflats.quantization.shape import CodeShape


@torch.library.custom_op("kflats::multiply_codes", mutates_args=())
def multiply_codes(
    hidden: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    scales: Tensor,
    books: Tensor,
    exact: Tensor | None,
    labels: Tensor | None,
    offsets: Tensor | None,
    shape: str,
) -> Tensor:
    """Return ``hidden @ table.T``, shape (*, num_embeddings), in the dtype of ``hidden``.

    The other arguments are those of :func:`kflats.layers.coded.lookup_codes`.
    """
    codes = Codes(CodeShape.parse(shape), coefficients, labels, bases, scales, books, exact)
    flat = hidden.reshape(-1, hidden.shape[-1])
    # Made in its shape: a view as the output of an operator must not be changed in place.
    result = flat.new_empty(*hidden.shape[:-1], codes.shape.num_embeddings)
    out = result.view(len(flat), codes.shape.num_embeddings)
    is_ordered = labels is None or offsets is None
    products = out if is_ordered else torch.empty_like(out)
    with torch.autocast(hidden.device.type, enabled=False):
        inner = _Projected(codes, flat)
        for block in _blocks(codes):
            inner.write(block, products[:, block.rows])
    if labels is not None and offsets is not None:
        places = places_at(labels, offsets, codes.shape.row_starts)
        torch.gather(products, 1, places.long().expand(len(flat), -1), out=out)
    return result


@multiply_codes.register_fake
def _(hidden: Tensor, *others: Any) -> Tensor:
    return hidden.new_empty(*hidden.shape[:-1], CodeShape.parse(others[-1]).num_embeddings)


@torch.library.custom_op("kflats::multiply_codes_backward", mutates_args=())
def multiply_codes_backward(
    grad: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    scales: Tensor,
    books: Tensor,
    exact: Tensor | None,
    labels: Tensor | None,
    offsets: Tensor | None,
    shape: str,
) -> Tensor:
    """Return ``grad @ table``, the gradient of ``hidden``."""
    codes = Codes(CodeShape.parse(shape), coefficients, labels, bases, scales, books, exact)
    flat = grad.reshape(-1, grad.shape[-1])
    if labels is not None and offsets is not None:
        places = places_at(labels, offsets, codes.shape.row_starts)
        flat = torch.empty_like(flat).index_copy_(1, places.long(), flat)
    with torch.autocast(grad.device.type, enabled=False):
        total = _Gathered(codes, flat)
        for block in _blocks(codes):
            total.add(block, flat[:, block.rows])
        result = total.result()
    return result.to(grad.dtype).view(*grad.shape[:-1], result.shape[1])


@multiply_codes_backward.register_fake
def _(grad: Tensor, coefficients: Tensor, bases: Tensor, *others: Any) -> Tensor:  # noqa: ARG001
    return grad.new_empty(*grad.shape[:-1], bases.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[1:8])
    ctx.shape = inputs[8]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return multiply_codes_backward(grad, *ctx.saved_tensors, ctx.shape), *(None,) * 8


multiply_codes.register_autograd(_backward, setup_context=_setup_context)


@dataclass(frozen=True, eq=False)
class _Block:
    """Some rows of a group: their places, and their records, or the rows stored as they are."""

    group: int
    rows: slice
    records: Tensor
    exact: Tensor | None = None


def _blocks(codes: Codes) -> Iterator[_Block]:
    shape = codes.shape
    for group, count in enumerate(shape.counts):
        start, records = shape.row_starts[group], records_of(codes, group)
        is_exact = shape.basis_ids[group] == STORED
        for part in row_blocks(count, 2 * shape.embedding_dim):
            rows = slice(start + part.start, start + part.stop)
            exact = codes.exact[part] if is_exact and codes.exact is not None else None
            yield _Block(group, rows, records[part], exact)


class _Projected:
    """Hidden states of shape (m, embedding_dim) in the coefficients of every basis."""

    def __init__(self, codes: Codes, hidden: Tensor) -> None:
        self.codes, self.hidden = codes, hidden
        self.books = Books(codes.books, codes.shape.widths)
        wide = hidden.to(working_dtype(hidden.dtype))
        self.inner: list[Tensor] = []
        self.shifts: list[Tensor | None] = []
        for basis, rotated in enumerate(codes.shape.rotated):
            directions = directions_of(codes, basis).to(wide.dtype)
            inner = wide @ directions.T if rotated else wide * directions
            self.inner.append(inner.to(hidden.dtype))
            mean = mean_of(codes, basis)
            self.shifts.append(None if mean is None else wide @ mean.to(wide.dtype)[:, None])

    def write(self, block: _Block, out: Tensor) -> None:
        """Write the products with the rows of a block into ``out``, shape (m, rows)."""
        if block.exact is not None:
            torch.mm(self.hidden, block.exact.T.to(out.dtype), out=out)
            return
        shape = self.codes.shape
        basis, runs = shape.basis_ids[block.group], shape.runs[block.group]
        for columns, levels in level_runs(block.records, runs, self.books):
            inner, directions = self.inner[basis][:, columns], levels.T.to(out.dtype)
            if columns.start:
                torch.addmm(out, inner, directions, out=out)
            else:
                torch.mm(inner, directions, out=out)
        if runs:
            out *= self.books.gains(block.records[:, 0])
        else:
            out.zero_()
        shift = self.shifts[basis]
        if shift is not None:
            out += shift


class _Gathered:
    """The gradient of hidden states, gathered in the coefficients of every basis."""

    def __init__(self, codes: Codes, grad: Tensor) -> None:
        self.codes, self.dtype = codes, working_dtype(grad.dtype)
        self.books = Books(codes.books, codes.shape.widths)
        m, ranks = len(grad), codes.shape.basis_ranks
        self.inner = [grad.new_zeros(m, rank, dtype=self.dtype) for rank in ranks]
        self.shifts = [grad.new_zeros(m, 1, dtype=self.dtype) for _ in ranks]
        self.total = grad.new_zeros(m, codes.shape.embedding_dim, dtype=self.dtype)

    def add(self, block: _Block, grad: Tensor) -> None:
        """Add the products of ``grad``, shape (m, rows), with the rows of a block."""
        if block.exact is not None:
            self.total += grad @ block.exact.to(grad.dtype)
            return
        shape = self.codes.shape
        basis, runs = shape.basis_ids[block.group], shape.runs[block.group]
        self.shifts[basis] += grad.sum(1, keepdim=True, dtype=self.dtype)
        if runs:
            grad = (grad * self.books.gains(block.records[:, 0])).to(grad.dtype)
        for columns, levels in level_runs(block.records, runs, self.books):
            self.inner[basis][:, columns] += grad @ levels.to(grad.dtype)

    def result(self) -> Tensor:
        """Return the gradient, shape (m, embedding_dim)."""
        for basis, rotated in enumerate(self.codes.shape.rotated):
            directions, inner = directions_of(self.codes, basis).to(self.dtype), self.inner[basis]
            if rotated:
                self.total += inner @ directions
            else:
                self.total[:, : inner.shape[1]] += inner * directions[: inner.shape[1]]
            mean = mean_of(self.codes, basis)
            if mean is not None:
                self.total += self.shifts[basis] * mean.to(self.dtype)
        return self.total
