from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kflats import Budget, BudgetError, FactorShape, InputError


def test_figures_of_the_paper_setting() -> None:
    assert Budget(compression=0.4).shape(30522, 384, n_clusters=5).rank == 216
    assert Budget(compression=0.4).shape(30522, 384, n_clusters=1).rank == 227
    assert Budget(compression=0.45).shape(50265, 768, n_clusters=5).rank == 392


@given(
    n=st.integers(2, 5000),
    d=st.integers(2, 200),
    k=st.integers(1, 40),
    compression=st.floats(0.01, 0.99),
    affine=st.booleans(),
    n_exact=st.integers(0, 2),
)
def test_largest_rank_within_a_compression(
    n: int, d: int, k: int, compression: float, affine: bool, n_exact: int
) -> None:
    allowed = (1 - compression) * n * d
    sizes: dict[str, Any] = {"n_clusters": k, "affine": affine, "n_exact": n_exact}
    try:
        shape = Budget(compression=compression).shape(n, d, **sizes)
    except BudgetError:
        assert FactorShape.uniform(n, d, rank=1, **sizes).num_parameters > allowed
        return
    assert shape.num_parameters <= allowed * (1 + 1e-12)
    if shape.rank < d:
        larger = FactorShape.uniform(n, d, rank=shape.rank + 1, **sizes)
        assert larger.num_parameters > allowed * (1 - 1e-12)


@given(num_bytes=st.integers(1, 200_000), k=st.integers(1, 300), half=st.booleans())
def test_largest_rank_within_bytes(num_bytes: int, k: int, half: bool) -> None:
    dtype = torch.float16 if half else torch.float32
    smallest = FactorShape.uniform(500, 32, n_clusters=k, rank=1, n_exact=2)
    budget = Budget(num_bytes=num_bytes)
    if smallest.num_bytes(dtype) > num_bytes:
        with pytest.raises(BudgetError, match=f"{num_bytes} bytes cannot be met"):
            budget.shape(500, 32, n_clusters=k, n_exact=2, dtype=dtype)
        return
    shape = budget.shape(500, 32, n_clusters=k, n_exact=2, dtype=dtype)
    assert shape.num_bytes(dtype) <= num_bytes
    if shape.rank < 32:
        bigger = FactorShape.uniform(500, 32, n_clusters=k, rank=shape.rank + 1, n_exact=2)
        assert bigger.num_bytes(dtype) > num_bytes


def test_budget_no_rank_can_meet_says_what_it_takes() -> None:
    with pytest.raises(BudgetError, match=r"rank 1 already takes 49722 parameters"):
        Budget(num_bytes=1000).shape(30522, 384, n_clusters=50)


@pytest.mark.parametrize(
    ("given_sizes", "message"),
    [
        ({}, "got no size"),
        ({"compression": 0.4, "rank": 3}, "got compression and rank"),
        ({"compression": 0.0}, "compression=0.0 must be between 0 and 1"),
        ({"compression": 1.0}, "compression=1.0 must be between 0 and 1"),
        ({"num_bytes": 0}, "num_bytes=0 must be at least 1"),
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"num_parameters": 0}, "num_parameters=0 must be at least 1"),
        ({"num_parameters": 9, "num_bytes": 9}, "got num_bytes and num_parameters"),
    ],
)
def test_budgets_that_say_nothing_are_refused(given_sizes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Budget(**given_sizes)


def test_fixed_rank_is_the_rank_of_every_cluster_and_not_of_exact_rows() -> None:
    shape = Budget(rank=3).shape(100, 8, n_clusters=2, affine=True, n_exact=4)
    assert shape == FactorShape.uniform(100, 8, n_clusters=2, rank=3, affine=True, n_exact=4)


def test_budget_counts_exact_rows_once() -> None:
    # 0.5 * 100 * 8 numbers: 20 exact rows take 160, a rank of the others costs 80 + 8.
    assert Budget(compression=0.5).shape(100, 8, n_clusters=1, n_exact=20).rank == 2
    assert Budget(compression=0.5).shape(100, 8, n_clusters=1).rank == 3


def test_fixed_rank_above_the_columns_is_refused() -> None:
    with pytest.raises(InputError, match="rank=385 must be between 0 and embedding_dim=384"):
        Budget(rank=385).shape(30522, 384, n_clusters=2)


@given(
    n=st.integers(20, 2000),
    k=st.integers(1, 300),
    rank=st.integers(1, 32),
    n_exact=st.integers(0, 2),
    echelon=st.booleans(),
    half=st.booleans(),
)
def test_numbers_leave_room_for_exact_rows_labels_and_masks(
    n: int, k: int, rank: int, n_exact: int, echelon: bool, half: bool
) -> None:
    dtype = torch.float16 if half else torch.float32
    sizes: dict[str, Any] = {"n_clusters": k, "n_exact": n_exact, "echelon": echelon}
    shape = FactorShape.uniform(n, 32, rank=rank, **sizes)
    beside = n_exact * 32
    exact_fit = shape.num_bytes(dtype)
    numbers = Budget(num_bytes=exact_fit).numbers(n, 32, dtype=dtype, **sizes)
    assert numbers == shape.num_parameters - beside
    assert Budget(num_bytes=exact_fit - 1).numbers(n, 32, dtype=dtype, **sizes) == numbers - 1
    of_parameters = Budget(num_parameters=shape.num_parameters + 1).numbers(n, 32, **sizes)
    assert of_parameters == numbers + 1


def test_numbers_of_a_compression_by_hand() -> None:
    assert Budget(compression=0.25).numbers(100, 8, n_clusters=5, n_exact=10) == 600 - 80


def test_fixed_rank_is_no_number() -> None:
    with pytest.raises(InputError, match=r"rank=3 is no size: give a compression"):
        Budget(rank=3).numbers(100, 8, n_clusters=1)


def test_shape_of_a_number_of_parameters() -> None:
    shape = Budget(num_parameters=559).shape(100, 8, n_clusters=5)
    assert shape.rank == 3
    assert Budget(num_parameters=560).shape(100, 8, n_clusters=5).rank == 4
