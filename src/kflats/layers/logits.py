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

from kflats.layers.groups import Group, layout
from kflats.layers.lookup import empty_gradients


@torch.library.custom_op("kflats::logits", mutates_args=())
def logits(
    hidden: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
) -> Tensor:
    """Return ``hidden @ table.T``, shape (*, num_embeddings), for hidden (*, embedding_dim).

    The other arguments are those of :func:`kflats.layers.lookup.lookup`.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    inner = flat @ bases.T
    columns = flat.new_empty(len(flat), sum(counts))
    for group in layout(counts, ranks, basis_ids):
        table = group.coefficients(coefficients)
        torch.mm(_inputs(group, flat, inner), table.T, out=columns[:, group.rows])
        if means is not None and group.directions is not None:
            columns[:, group.rows] += (flat @ means[group.basis])[:, None]
    if places is not None:
        columns = columns.gather(1, places.long().expand(len(flat), -1))
    return columns.view(*hidden.shape[:-1], columns.shape[1])


def _inputs(group: Group, hidden: Tensor, inner: Tensor) -> Tensor:
    """Return what the coefficients of a group are multiplied with."""
    return hidden if group.directions is None else inner[:, group.directions]


@logits.register_fake
def _(hidden: Tensor, *others: Any) -> Tensor:
    return hidden.new_empty(*hidden.shape[:-1], sum(others[4]))


@torch.library.custom_op("kflats::logits_backward", mutates_args=())
def logits_backward(
    grad: Tensor,
    hidden: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, coefficients, bases and means; empty where not wanted."""
    to_coefficients, to_bases, to_means = empty_gradients(
        coefficients, bases, basis_ids, wanted[1:]
    )
    flat = hidden.reshape(-1, hidden.shape[-1])
    columns = grad.reshape(-1, grad.shape[-1])
    if places is not None:
        columns = torch.empty_like(columns).scatter_(
            1, places.long().expand(len(flat), -1), columns
        )
    inner = flat @ bases.T
    to_inner = torch.zeros_like(inner)
    to_hidden = torch.zeros_like(flat)
    for group in layout(counts, ranks, basis_ids):
        part = columns[:, group.rows]
        back = part @ group.coefficients(coefficients)
        if wanted[1]:
            torch.mm(part.T, _inputs(group, flat, inner), out=group.coefficients(to_coefficients))
        if group.directions is None:
            to_hidden += back
            continue
        to_inner[:, group.directions] += back
        if means is not None:
            total = part.sum(1)
            to_hidden += total[:, None] * means[group.basis]
            if wanted[3]:
                to_means[group.basis] += total @ flat
    if wanted[2]:
        torch.mm(to_inner.T, flat, out=to_bases)
    if wanted[0]:
        to_hidden += to_inner @ bases
    return to_hidden.view(hidden.shape), to_coefficients, to_bases, to_means


@logits_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    hidden: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = empty_gradients(coefficients, bases, others[4], others[5][1:])
    return hidden.new_empty(hidden.shape), *gradients


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:5])
    ctx.sizes = inputs[5:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [ctx.needs_input_grad[index] for index in (0, 1, 2, 4)]
    gradients = logits_backward(grad, *ctx.saved_tensors, *ctx.sizes, wanted)
    hidden, one, two, three = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    return hidden, one, two, None, three, None, None, None


logits.register_autograd(_backward, setup_context=_setup_context)


def logits_exported(
    hidden: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
) -> Tensor:
    """Return the same as :func:`logits` in plain operators, for ``torch.export`` and ONNX."""
    columns = []
    for group in layout(counts, ranks, basis_ids):
        table = group.coefficients(coefficients)
        if group.directions is None:
            columns.append(hidden @ table.T)
            continue
        part = (hidden @ bases[group.directions].T) @ table.T
        if means is not None:
            part = part + (hidden @ means[group.basis])[..., None]
        columns.append(part)
    joined = torch.cat(columns, -1)
    return joined if places is None else joined.index_select(-1, places)
