"""The look-up of a factorised table as one operator that PyTorch can compile and differentiate.

Ids repeat (text is Zipf distributed), so each distinct id is computed once. The coefficients are
stored group by group; sorted by place the distinct ids fall into one run per group, and every run
is one matrix product. No basis is copied per token and nothing is padded. Because the number of
distinct ids depends on the data, the whole is a custom operator: ``torch.compile`` sees one node
and does not break its graph. An exported program must not need kflats, so
:func:`lookup_exported` does the same in plain operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kflats.layers.basis import Basis, mean_of, numbers_of, width_of
from kflats.layers.groups import Group, layout, occurring
from kflats.layers.places import distinct


@torch.library.custom_op("kflats::lookup", mutates_args=())
def lookup(
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    columns: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
    padding_idx: int,  # noqa: ARG001  only the gradient needs it
) -> Tensor:
    """Return the rows of ``ids``: coefficients times basis (plus mean), or the stored row.

    Parameters
    ----------
    ids : Tensor of any shape, integers
        Rows to look up.
    coefficients : Tensor of shape (num_coefficients,)
        Those of the first group row by row, then those of the second, ...
    bases : Tensor of shape (sum of the basis ranks, embedding_dim)
        All bases, one below the other. In echelon form of shape (sum of rank * (embedding_dim -
        rank),): the columns of each basis that are no pivots, row by row, basis after basis.
    places : Tensor of shape (num_embeddings,) or None
        Place of every row in the order of the groups; None where it is its id.
    means : Tensor of shape (n_clusters, embedding_dim) or None
        Added where given, one per basis. In echelon form of shape (sum of embedding_dim - rank,).
    columns : Tensor of shape (n_clusters, embedding_dim), int32, or None
        In echelon form the place of every column among the pivots and then the others.
    counts, ranks, basis_ids : sequences of int
        See :class:`kflats.FactorShape`.
    padding_idx : int
        Id that gives no gradient; -1 for none.

    Returns
    -------
    Tensor of shape (*ids.shape, embedding_dim)
        In the dtype of the factors.
    """
    unique, inverse = _distinct_places(ids, places, counts)
    d = width_of(bases, columns)
    rows = coefficients.new_empty(len(unique), d)
    # Made in its shape: a view as the output of an operator must not be changed in place.
    result = coefficients.new_empty(*ids.shape, d)
    # Until all rows are there, the result is where every group in turn puts its columns in order.
    flat = result.view(len(inverse), d)
    groups = layout(counts, ranks, basis_ids)
    # Rows are looked up in the dtype of the factors, as those of nn.Embedding are.
    with torch.autocast(rows.device.type, enabled=False):
        for group, run, numbers in occurring(groups, unique):
            table = group.coefficients(coefficients)
            if group.directions is None:
                torch.index_select(table, 0, numbers, out=rows[run])
            else:
                basis = Basis.of(group, bases, means, columns)
                basis.write_rows(table, numbers, rows[run], flat[: len(numbers)])
    torch.index_select(rows, 0, inverse, out=flat)
    return result


def _distinct_places(
    ids: Tensor, places: Tensor | None, counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    flat = ids.reshape(-1)
    return distinct(flat if places is None else places.index_select(0, flat), sum(counts))


@lookup.register_fake
def _(ids: Tensor, coefficients: Tensor, bases: Tensor, *others: Any) -> Tensor:
    return coefficients.new_empty(*ids.shape, width_of(bases, others[2]))


@torch.library.custom_op("kflats::lookup_backward", mutates_args=())
def lookup_backward(
    grad: Tensor,
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    columns: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
    padding_idx: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of coefficients, bases and means; empty where not ``wanted``.

    Sums over repeated ids in float32 at least.
    """
    results = empty_gradients((coefficients, bases, means), wanted)
    to_coefficients, to_bases, to_means = results
    wide = torch.promote_types(grad.dtype, torch.float32)
    unique, inverse = _distinct_places(ids, places, counts)
    d = width_of(bases, columns)
    outer = grad.new_zeros(len(unique), d, dtype=wide)
    outer.index_add_(0, inverse, grad.reshape(-1, d).to(wide))
    if padding_idx >= 0:
        outer[unique == (padding_idx if places is None else places[padding_idx])] = 0.0
    for group, run, rows in occurring(layout(counts, ranks, basis_ids), unique):
        part = outer[run]
        basis = None
        if group.directions is not None:
            basis = Basis.of(group, bases, None, columns)
            part = basis.in_order(part)
        if wanted[0]:
            inner = part if basis is None else basis.to(wide).project(part)
            place = group.coefficients(to_coefficients)
            place.index_copy_(0, rows.long(), inner.to(place.dtype))
        if basis is None:
            continue
        stored = basis.stored(part)
        if wanted[1]:
            inner = group.coefficients(coefficients).index_select(0, rows).to(wide)
            sums = numbers_of(group, to_bases, columns)
            sums += (inner.T @ stored).to(sums.dtype)
        if wanted[2]:
            sums = mean_of(group, to_means, columns)
            sums += stored.sum(0).to(sums.dtype)
    return results


@lookup_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    ids: Tensor,  # noqa: ARG001
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,  # noqa: ARG001
    means: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients((coefficients, bases, means), others[-1])


def empty_gradients(
    factors: tuple[Tensor, Tensor, Tensor | None], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return zeros for the gradients of coefficients, bases and means; empty if not wanted."""
    like = factors[0]
    one, two, three = (
        like.new_zeros(each.shape if want and each is not None else (0,))
        for each, want in zip(factors, wanted, strict=True)
    )
    return one, two, three


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:6])
    ctx.sizes = inputs[6:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [ctx.needs_input_grad[index] for index in (1, 2, 4)]
    gradients = lookup_backward(grad, *ctx.saved_tensors, *ctx.sizes, wanted)
    one, two, three = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    return None, one, two, None, three, None, None, None, None, None


lookup.register_autograd(_backward, setup_context=_setup_context)


def lookup_exported(
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    columns: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
) -> Tensor:
    """Return the same as :func:`lookup` in plain operators, for ``torch.export`` and ONNX."""
    flat = ids.reshape(-1)
    wanted = flat if places is None else places.index_select(0, flat)
    factors = (coefficients, bases, means, columns)
    d = width_of(bases, columns)
    rows = coefficients.new_zeros(flat.shape[0], d)
    for group in layout(counts, ranks, basis_ids):
        if len(counts) == 1:
            return _group_rows(group, wanted, *factors).view(*ids.shape, d)
        hits = ((wanted >= group.rows.start) & (wanted < group.rows.stop)).nonzero().squeeze(1)
        part = _group_rows(group, wanted[hits] - group.rows.start, *factors)
        rows = rows.index_copy(0, hits, part)
    return rows.view(*ids.shape, d)


def _group_rows(
    group: Group,
    rows: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    means: Tensor | None,
    columns: Tensor | None,
) -> Tensor:
    inner = group.coefficients(coefficients).index_select(0, rows)
    if group.directions is None:
        return inner
    return Basis.of(group, bases, means, columns).rows(inner)
