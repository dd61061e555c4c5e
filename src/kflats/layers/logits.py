"""The product of hidden states with a factorised table, in factor space.

``hidden @ table.T`` costs n * d multiply-adds per token. Here the hidden state is projected on the
bases once (k * j * d) and every group multiplies its own coefficients (n * j). The columns come
out group by group and are put into the order of the ids at the end. The dense table never exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kflats.layers.basis import Basis, mean_of, numbers_of, product
from kflats.layers.groups import Group, layout, longest
from kflats.layers.lookup import empty_gradients


@torch.library.custom_op("kflats::logits", mutates_args=())
def logits(
    hidden: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    columns: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
) -> Tensor:
    """Return ``hidden @ table.T``, shape (*, num_embeddings), for hidden (*, embedding_dim).

    The other arguments are those of :func:`kflats.layers.lookup.lookup`.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    groups = layout(counts, ranks, basis_ids)
    # Made in its shape: a view as the output of an operator must not be changed in place.
    result = flat.new_empty(*hidden.shape[:-1], sum(counts))
    out = result.view(len(flat), sum(counts))
    products = out if places is None else torch.empty_like(out)
    inner, shifts = _projected(flat, groups, bases, means, columns)
    for group in groups:
        table, ours = group.coefficients(coefficients), products[:, group.rows]
        torch.mm(_inputs(group, flat, inner), table.T, out=ours)
        if shifts and group.directions is not None:
            ours += shifts[group.basis]
    if places is not None:
        torch.gather(products, 1, places.long().expand(len(flat), -1), out=out)
    return result


def _projected(
    hidden: Tensor,
    groups: Sequence[Group],
    bases: Tensor,
    means: Tensor | None,
    columns: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the products of hidden states with every basis and, as a column, with its mean."""
    inner, shifts = [], []
    for group in longest(groups):
        basis = Basis.of(group, bases, means, columns)
        ordered = basis.in_order(hidden)
        inner.append(basis.project(ordered))
        if basis.mean is not None:
            shifts.append(product(basis.stored(ordered), basis.mean[:, None]))
    return inner, shifts


def _inputs(group: Group, hidden: Tensor, inner: Sequence[Tensor]) -> Tensor:
    """Return what the coefficients of a group are multiplied with."""
    return hidden if group.directions is None else inner[group.basis][..., : group.rank]


@logits.register_fake
def _(hidden: Tensor, *others: Any) -> Tensor:
    return hidden.new_empty(*hidden.shape[:-1], sum(others[5]))


@torch.library.custom_op("kflats::logits_backward", mutates_args=())
def logits_backward(
    grad: Tensor,
    hidden: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    columns: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, coefficients, bases and means; empty where not wanted."""
    gradients = empty_gradients((coefficients, bases, means), wanted[1:])
    flat = hidden.reshape(-1, hidden.shape[-1])
    groups = layout(counts, ranks, basis_ids)
    products = grad.reshape(-1, grad.shape[-1])
    if places is not None:
        products = torch.empty_like(products).scatter_(
            1, places.long().expand(len(flat), -1), products
        )
    inner, _ = _projected(flat, groups, bases, None, columns)
    to_inner = [torch.zeros_like(each) for each in inner]
    totals = [flat.new_zeros(len(flat)) for _ in inner]
    to_hidden = torch.zeros_like(flat)
    for group in groups:
        part = products[:, group.rows]
        back = part @ group.coefficients(coefficients)
        if wanted[1]:
            torch.mm(part.T, _inputs(group, flat, inner), out=group.coefficients(gradients[0]))
        if group.directions is None:
            to_hidden += back
            continue
        to_inner[group.basis][:, : group.rank] += back
        if means is not None:
            totals[group.basis] += part.sum(1)
    for group, back, total in zip(longest(groups), to_inner, totals, strict=True):
        basis = Basis.of(group, bases, means, columns)
        stored = basis.stored(basis.in_order(flat))
        if wanted[2]:
            torch.mm(back.T, stored, out=numbers_of(group, gradients[1], columns))
        if wanted[3]:
            mean_of(group, gradients[2], columns).copy_(total @ stored)
        if wanted[0]:
            to_hidden += basis.rows(back, total)
    return to_hidden.view(hidden.shape), *gradients


@logits_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    hidden: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,  # noqa: ARG001
    means: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = empty_gradients((coefficients, bases, means), others[-1][1:])
    return hidden.new_empty(hidden.shape), *gradients


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:6])
    ctx.sizes = inputs[6:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [ctx.needs_input_grad[index] for index in (0, 1, 2, 4)]
    gradients = logits_backward(grad, *ctx.saved_tensors, *ctx.sizes, wanted)
    hidden, one, two, three = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    return hidden, one, two, None, three, None, None, None, None


logits.register_autograd(_backward, setup_context=_setup_context)


def logits_exported(
    hidden: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    columns: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
) -> Tensor:
    """Return the same as :func:`logits` in plain operators, for ``torch.export`` and ONNX."""
    groups = layout(counts, ranks, basis_ids)
    inner, shifts = _projected(hidden, groups, bases, means, columns)
    products = []
    for group in groups:
        part = product(_inputs(group, hidden, inner), group.coefficients(coefficients).T)
        shifted = shifts and group.directions is not None
        products.append(part + shifts[group.basis] if shifted else part)
    joined = torch.cat(products, -1)
    return joined if places is None else joined.index_select(-1, places)
