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
        if shape.echelon:
            yield _echelon_row(layer, own, basis, of_basis)
            continue
        row = own @ layer.bases[starts[basis] : starts[basis] + rank]
        yield row if layer.means is None else row + layer.means[basis]


def pivots_of(layer: FactorTable, basis: int) -> list[int]:
    """Return the pivot columns, read from the bytes by hand."""
    assert layer.pivots is not None
    mask = layer.pivots[basis].tolist()
    return [c for c in range(layer.shape.embedding_dim) if mask[c // 8] & (1 << c % 8)]


def _echelon_row(layer: FactorTable, own: Tensor, basis: int, ranks: list[int]) -> Tensor:
    d, pivots = layer.shape.embedding_dim, pivots_of(layer, basis)
    width = d - ranks[basis]
    start = sum(rank * (d - rank) for rank in ranks[:basis])
    values = own.new_zeros(width)
    for direction, coefficient in enumerate(own):
        place = start + direction * width
        values = values + coefficient * layer.bases[place : place + width]
    if layer.means is not None:
        first = sum(d - rank for rank in ranks[:basis])
        values = values + layer.means[first : first + width]
    others = [c for c in range(d) if c not in pivots]
    numbers = [own[pivots.index(c)] if c in pivots else values[others.index(c)] for c in range(d)]
    return torch.stack(numbers)


def wide_copy(layer: Layer) -> Layer:
    """Return the same layer in float64, for references and gradients."""
    twin = copy.deepcopy(layer).double()
    twin.zero_grad()
    return twin


def rounding(dtype: torch.dtype, *factors: Tensor) -> float:
    """Return the error to expect of sums of products of rows of these tensors."""
    size = 1.0
    for factor in (each for each in factors if each.numel()):
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


def ragged(**changes: Any) -> FactorShape:
    """Return three clusters of three ranks, one of them 0."""
    sizes: dict[str, Any] = {"counts": (11, 9, 10), "ranks": (3, 0, 2), "basis_ids": (0, 1, 2)}
    return FactorShape(num_embeddings=30, embedding_dim=6, **{**sizes, **changes})


EXACT: dict[str, Any] = {
    "counts": (9, 8, 7, 6),
    "ranks": (3, 0, 2, 6),
    "basis_ids": (0, 1, 2, -1),
}
FORMS: dict[str, FactorShape] = {
    "ragged": ragged(),
    "ragged, affine, exact rows": ragged(**EXACT, affine=True),
    "rank 0": FactorShape.uniform(30, 6, n_clusters=1, rank=0),
    "means alone": FactorShape.uniform(30, 6, n_clusters=3, rank=0, affine=True),
    "echelon": FactorShape.uniform(30, 6, n_clusters=3, rank=2, echelon=True),
    "echelon, one basis": FactorShape.uniform(30, 6, n_clusters=1, rank=4, echelon=True),
    "echelon, affine": ragged(affine=True, echelon=True),
    "echelon, affine, exact rows": ragged(**EXACT, affine=True, echelon=True),
    "echelon of full rank": ragged(ranks=(6, 2, 6), affine=True, echelon=True),
    "echelon, two groups on one basis": ragged(
        ranks=(3, 3, 2), basis_ids=(0, 0, 1), affine=True, echelon=True
    ),
    "echelon, only exact rows": ragged(
        counts=(30,), ranks=(6,), basis_ids=(-1,), affine=True, echelon=True
    ),
}
"""Ranks of zero, and bases in echelon form."""


def filled(layer: Layer, seed: int = 0) -> Layer:
    """Fill a layer with random numbers and pivots, and mix the rows of its groups."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if layer.labels is not None:
            order = torch.randperm(len(layer.labels), generator=generator)
            layer.labels.copy_(layer.labels[order])
        if layer.pivots is not None:
            layer.pivots.zero_()
            for basis, rank in enumerate(layer.shape.basis_ranks):
                for column in torch.randperm(layer.shape.embedding_dim, generator=generator)[:rank]:
                    layer.pivots[basis, column // 8] += 1 << int(column) % 8
    return layer.index_()


def assert_same_gradients(layer: FactorTable, twin: FactorTable) -> None:
    """Compare the gradients of two layers, none of which may be missing or zero."""
    for (name, ours), (_, expected) in zip(
        layer.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert ours.grad is not None, name
        if not ours.numel():
            continue
        torch.testing.assert_close(ours.grad, expected.grad, msg=name)
        assert bool(ours.grad.any()), name
