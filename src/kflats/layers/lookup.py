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

from kflats.layers.groups import Group, layout, occurring


@torch.library.custom_op("kflats::lookup", mutates_args=())
def lookup(
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
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
        All bases, one below the other.
    places : Tensor of shape (num_embeddings,) or None
        Place of every row in the order of the groups; None where it is its id.
    means : Tensor of shape (n_clusters, embedding_dim) or None
        Added where given, one per basis.
    counts, ranks, basis_ids : sequences of int
        See :class:`kflats.FactorShape`.
    padding_idx : int
        Id that gives no gradient; -1 for none.

    Returns
    -------
    Tensor of shape (*ids.shape, embedding_dim)
        In the dtype of the factors.
    """
    unique, inverse = _distinct_places(ids, places)
    rows = coefficients.new_empty(len(unique), bases.shape[1])
    for group, run in occurring(layout(counts, ranks, basis_ids), unique):
        table = group.coefficients(coefficients)
        inner = table.index_select(0, unique[run] - group.rows.start)
        if group.directions is None:
            rows[run] = inner
            continue
        torch.mm(inner, bases[group.directions], out=rows[run])
        if means is not None:
            rows[run] += means[group.basis]
    return rows.index_select(0, inverse).view(*ids.shape, bases.shape[1])


def _distinct_places(ids: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
    flat = ids.reshape(-1)
    wanted = flat if places is None else places.index_select(0, flat)
    unique, inverse = torch.unique(wanted, return_inverse=True)
    return unique, inverse


@lookup.register_fake
def _(ids: Tensor, coefficients: Tensor, bases: Tensor, *_: Any) -> Tensor:
    return coefficients.new_empty(*ids.shape, bases.shape[1])


@torch.library.custom_op("kflats::lookup_backward", mutates_args=())
def lookup_backward(
    grad: Tensor,
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
    padding_idx: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of coefficients, bases and means; empty where not ``wanted``.

    Sums over repeated ids in float32 at least.
    """
    results = empty_gradients(coefficients, bases, basis_ids, wanted)
    to_coefficients, to_bases, to_means = results
    wide = torch.promote_types(grad.dtype, torch.float32)
    unique, inverse = _distinct_places(ids, places)
    outer = grad.new_zeros(len(unique), bases.shape[1], dtype=wide)
    outer.index_add_(0, inverse, grad.reshape(-1, bases.shape[1]).to(wide))
    if padding_idx >= 0:
        outer[unique == (padding_idx if places is None else places[padding_idx])] = 0.0
    for group, run in occurring(layout(counts, ranks, basis_ids), unique):
        part, rows = outer[run], unique[run] - group.rows.start
        stored = group.directions is None
        if wanted[0]:
            inner = part if stored else part @ bases[group.directions].to(wide).T
            place = group.coefficients(to_coefficients)
            place.index_copy_(0, rows.long(), inner.to(place.dtype))
        if wanted[1] and not stored:
            inner = group.coefficients(coefficients).index_select(0, rows).to(wide)
            to_bases[group.directions] += (inner.T @ part).to(bases.dtype)
        if wanted[2] and not stored:
            to_means[group.basis] += part.sum(0).to(bases.dtype)
    return results


@lookup_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    ids: Tensor,  # noqa: ARG001
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,  # noqa: ARG001
    counts: Sequence[int],  # noqa: ARG001
    ranks: Sequence[int],  # noqa: ARG001
    basis_ids: Sequence[int],
    padding_idx: int,  # noqa: ARG001
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(coefficients, bases, basis_ids, wanted)


def empty_gradients(
    coefficients: Tensor, bases: Tensor, basis_ids: Sequence[int], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return zeros for the gradients of coefficients, bases and means; empty if not wanted."""
    n_clusters = max(basis_ids) + 1
    return (
        coefficients.new_zeros(coefficients.shape if wanted[0] else (0,)),
        bases.new_zeros(bases.shape if wanted[1] else (0, bases.shape[1])),
        bases.new_zeros(n_clusters if wanted[2] else 0, bases.shape[1]),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ids, coefficients, bases, places, _, *sizes, padding_idx = inputs
    ctx.save_for_backward(ids, coefficients, bases, places)
    ctx.sizes = sizes
    ctx.padding_idx = padding_idx


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [ctx.needs_input_grad[index] for index in (1, 2, 4)]
    gradients = lookup_backward(grad, *ctx.saved_tensors, *ctx.sizes, ctx.padding_idx, wanted)
    one, two, three = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    return None, one, two, None, three, None, None, None, None


lookup.register_autograd(_backward, setup_context=_setup_context)


def lookup_exported(
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    places: Tensor | None,
    means: Tensor | None,
    counts: Sequence[int],
    ranks: Sequence[int],
    basis_ids: Sequence[int],
) -> Tensor:
    """Return the same as :func:`lookup` in plain operators, for ``torch.export`` and ONNX."""
    flat = ids.reshape(-1)
    wanted = flat if places is None else places.index_select(0, flat)
    rows = coefficients.new_zeros(flat.shape[0], bases.shape[1])
    for group in layout(counts, ranks, basis_ids):
        if len(counts) == 1:
            return _group_rows(group, wanted, coefficients, bases, means).view(
                *ids.shape, bases.shape[1]
            )
        hits = ((wanted >= group.rows.start) & (wanted < group.rows.stop)).nonzero().squeeze(1)
        part = _group_rows(group, wanted[hits] - group.rows.start, coefficients, bases, means)
        rows = rows.index_copy(0, hits, part)
    return rows.view(*ids.shape, bases.shape[1])


def _group_rows(
    group: Group, rows: Tensor, coefficients: Tensor, bases: Tensor, means: Tensor | None
) -> Tensor:
    inner = group.coefficients(coefficients).index_select(0, rows)
    if group.directions is None:
        return inner
    part: Tensor = inner @ bases[group.directions]
    return part if means is None else part + means[group.basis]
