"""The look-up of a factorised table as one operator that PyTorch can compile and differentiate.

Ids repeat (text is Zipf distributed), so each distinct id is computed once; the distinct ids are
sorted by cluster and every cluster is one matrix product. No basis is copied per token and
nothing is padded to ``n_clusters * rank``. Because the number of distinct ids depends on the
data, the whole is a custom operator: ``torch.compile`` sees one node and does not break its graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kflats.linalg import by_cluster


def _groups(labels: Tensor | None, ids: Tensor, n_clusters: int) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(cluster, positions in ids)`` for the clusters that occur."""
    if labels is None:
        return iter([(0, torch.arange(len(ids), device=ids.device))])
    return by_cluster(labels.index_select(0, ids).to(torch.int64), n_clusters)


@torch.library.custom_op("kflats::lookup", mutates_args=())
def lookup(
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    labels: Tensor | None,
    means: Tensor | None,
    padding_idx: int,  # noqa: ARG001  only the gradient needs it
) -> Tensor:
    """Return ``coefficients[ids] @ bases[labels[ids]] (+ means[labels[ids]])``.

    Parameters
    ----------
    ids : Tensor of any shape, integers
        Rows to look up.
    coefficients : Tensor of shape (num_embeddings, rank)
        One row per id.
    bases : Tensor of shape (n_clusters, rank, embedding_dim)
        One basis per cluster.
    labels : Tensor of shape (num_embeddings,) or None
        Cluster of every row; None for one cluster.
    means : Tensor of shape (n_clusters, embedding_dim) or None
        Added where given.
    padding_idx : int
        Id that gives no gradient; -1 for none.

    Returns
    -------
    Tensor of shape (*ids.shape, embedding_dim)
        In the dtype of the factors.
    """
    unique, inverse = torch.unique(ids.reshape(-1), return_inverse=True)
    rows = coefficients.new_empty(len(unique), bases.shape[2])
    gathered = coefficients.index_select(0, unique)
    for cluster, positions in _groups(labels, unique, len(bases)):
        part = gathered[positions] @ bases[cluster]
        rows[positions] = part if means is None else part + means[cluster]
    return rows.index_select(0, inverse).view(*ids.shape, bases.shape[2])


@lookup.register_fake
def _(
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    labels: Tensor | None,  # noqa: ARG001
    means: Tensor | None,  # noqa: ARG001
    padding_idx: int,  # noqa: ARG001
) -> Tensor:
    return coefficients.new_empty(*ids.shape, bases.shape[2])


@torch.library.custom_op("kflats::lookup_backward", mutates_args=())
def lookup_backward(
    grad: Tensor,
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    labels: Tensor | None,
    padding_idx: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of coefficients, bases and means; empty where not ``wanted``.

    Sums over repeated ids in float32 at least.
    """
    to_coefficients, to_bases, to_means = _gradients(coefficients, bases, wanted)
    wide = torch.promote_types(grad.dtype, torch.float32)
    unique, inverse = torch.unique(ids.reshape(-1), return_inverse=True)
    outer = grad.new_zeros(len(unique), bases.shape[2], dtype=wide)
    outer.index_add_(0, inverse, grad.reshape(-1, bases.shape[2]).to(wide))
    outer[unique == padding_idx] = 0.0
    for cluster, positions in _groups(labels, unique, len(bases)):
        part, rows = outer[positions], unique[positions]
        if wanted[0]:
            to_coefficients[rows] = (part @ bases[cluster].to(wide).T).to(coefficients.dtype)
        if wanted[1]:
            inner = coefficients.index_select(0, rows).to(wide)
            to_bases[cluster] = (inner.T @ part).to(bases.dtype)
        if wanted[2]:
            to_means[cluster] = part.sum(0).to(bases.dtype)
    return to_coefficients, to_bases, to_means


@lookup_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    ids: Tensor,  # noqa: ARG001
    coefficients: Tensor,
    bases: Tensor,
    labels: Tensor | None,  # noqa: ARG001
    padding_idx: int,  # noqa: ARG001
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(coefficients, bases, wanted)


def _gradients(
    coefficients: Tensor, bases: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    clusters, rank, dim = bases.shape
    return (
        coefficients.new_zeros(len(coefficients) if wanted[0] else 0, rank),
        bases.new_zeros(clusters if wanted[1] else 0, rank, dim),
        bases.new_zeros(clusters if wanted[2] else 0, dim),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ids, coefficients, bases, labels, _, padding_idx = inputs
    ctx.save_for_backward(ids, coefficients, bases, labels)
    ctx.padding_idx = padding_idx


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ids, coefficients, bases, labels = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[index] for index in (1, 2, 4)]
    gradients = lookup_backward(grad, ids, coefficients, bases, labels, ctx.padding_idx, wanted)
    one, two, three = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    return None, one, two, None, three, None


lookup.register_autograd(_backward, setup_context=_setup_context)
