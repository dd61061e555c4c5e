"""The dense table that a layer stands for, by arithmetic that shares no code with the layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from kflats import Factorization, FactorShape
from kflats.layers import FactorTable

Layer = TypeVar("Layer", bound=FactorTable)

KINDS: dict[str, dict[str, Any]] = {
    "svd": {"n_clusters": 1, "affine": False},
    "linear": {"n_clusters": 3, "affine": False},
    "affine": {"n_clusters": 3, "affine": True},
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def factors_of(table: Tensor, kind: str) -> Factorization:
    return Factorization.projective(table, rank=8, **KINDS[kind])


def dense_table(layer: FactorTable) -> Tensor:
    """Return the table row by row, differentiable in the factors."""
    return torch.stack(list(_rows(layer)))


def _rows(layer: FactorTable) -> Iterator[Tensor]:
    shape = layer.shape
    labels = [0] * shape.num_embeddings if layer.labels is None else layer.labels.tolist()
    sizes = [count * rank for count, rank in zip(shape.counts, shape.ranks, strict=True)]
    places = list(accumulate(sizes, initial=0))
    of_basis = [0] * (max(shape.basis_ids) + 1)
    for rank, basis in zip(shape.ranks, shape.basis_ids, strict=True):
        if basis >= 0:
            of_basis[basis] = max(of_basis[basis], rank)
    starts = list(accumulate(of_basis, initial=0))
    for group in labels:
        rank, basis = shape.ranks[group], shape.basis_ids[group]
        own = layer.coefficients[places[group] : places[group] + rank]
        places[group] += rank
        if basis < 0:
            yield own
            continue
        row = own @ layer.bases[starts[basis] : starts[basis] + rank]
        yield row if layer.means is None else row + layer.means[basis]


def wide_copy(layer: Layer) -> Layer:
    """Return the same layer in float64, for references and gradients."""
    twin = copy.deepcopy(layer).double()
    twin.zero_grad()
    return twin


def rounding(dtype: torch.dtype, *factors: Tensor) -> float:
    """Return the error to expect of sums of products of rows of these tensors."""
    size = 1.0
    for factor in factors:
        size *= float(factor.detach().double().norm(dim=-1).max())
    return 4 * torch.finfo(dtype).eps * size


def mixed_shape(affine: bool = False) -> FactorShape:
    """Return two groups on one basis, the second with a shorter rank, a third, and exact rows."""
    return FactorShape(
        num_embeddings=30,
        embedding_dim=6,
        counts=(9, 8, 7, 6),
        ranks=(4, 2, 3, 6),
        basis_ids=(0, 0, 1, -1),
        affine=affine,
    )


def filled(layer: Layer, seed: int = 0) -> Layer:
    """Fill a layer with random numbers and mix the rows of its groups."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if layer.labels is not None:
            order = torch.randperm(len(layer.labels), generator=generator)
            layer.labels.copy_(layer.labels[order])
    return layer.index_()


def assert_same_gradients(layer: FactorTable, twin: FactorTable) -> None:
    """Compare the gradients of two layers, none of which may be missing or zero."""
    for (name, ours), (_, expected) in zip(
        layer.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, expected.grad, msg=name)
        assert bool(ours.grad.any()), name
