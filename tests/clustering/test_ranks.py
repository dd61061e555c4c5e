from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kflats import BudgetError, FactorShape
from kflats.clustering.ranks import FixedRanks, PricedRanks

FORMS = pytest.mark.parametrize(
    ("affine", "echelon"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["plain", "affine", "echelon", "affine echelon"],
)


def spectra(n_clusters: int, d: int, seed: int) -> Tensor:
    """Return positive eigenvalues that fall like those of a token table, ascending."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n_clusters, d, generator=generator, dtype=torch.float64)
    return (values * torch.linspace(0.05, 1, d) ** 2).sort(1).values


def stored(ranks: tuple[int, ...], counts: Tensor, d: int, affine: bool, echelon: bool) -> int:
    """Return what FactorShape counts for the clusters that have rows."""
    kept = [c for c, count in enumerate(counts.tolist()) if count]
    return FactorShape(
        num_embeddings=int(counts.sum()),
        embedding_dim=d,
        counts=tuple(int(counts[c]) for c in kept),
        ranks=tuple(ranks[c] for c in kept),
        basis_ids=tuple(range(len(kept))),
        affine=affine,
        echelon=echelon,
    ).num_parameters


def inertia(eigenvalues: Tensor, ranks: tuple[int, ...]) -> float:
    d = eigenvalues.shape[1]
    return sum(float(v[: d - rank].sum()) for v, rank in zip(eigenvalues, ranks, strict=True))


@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    d=st.integers(1, 9),
    share=st.floats(0, 1.5),
    affine=st.booleans(),
    echelon=st.booleans(),
)
def test_numbers_are_those_of_the_shape_and_none_is_left_for_a_further_dimension(
    seed: int, counts: list[int], d: int, share: float, affine: bool, echelon: bool
) -> None:
    rows = torch.tensor(counts)
    values = spectra(len(counts), d, seed) * (rows > 0)[:, None]
    means = stored((0,) * len(counts), rows, d, affine, echelon)
    numbers = means + int(share * sum(counts) * d)
    ranks, price = PricedRanks(numbers, affine, echelon).choose(values, rows.double())
    assert stored(ranks, rows, d, affine, echelon) <= numbers
    assert price > 0
    for cluster in range(len(counts)):
        if counts[cluster] and ranks[cluster] < d:
            more = tuple(rank + (c == cluster) for c, rank in enumerate(ranks))
            assert stored(more, rows, d, affine, echelon) > numbers


def least_inertia(values: Tensor, sizes: dict[tuple[int, ...], int], numbers: int) -> float:
    """Return the least inertia of all ranks whose size fits."""
    fitting = (inertia(values, ranks) for ranks, size in sizes.items() if size <= numbers)
    return min(fitting, default=torch.inf)


@FORMS
def test_two_clusters_against_all_pairs_of_ranks(affine: bool, echelon: bool) -> None:
    d = 4
    for seed in range(25):
        values = spectra(2, d, seed)
        rows = torch.randint(6, 30, (2,), generator=torch.Generator().manual_seed(seed))
        sizes = {r: stored(r, rows, d, affine, echelon) for r in product(range(d + 1), repeat=2)}
        step = int(rows.max()) + d
        for numbers in range(sizes[0, 0], sizes[d, d] + 1, 7):
            ranks, _ = PricedRanks(numbers, affine, echelon).choose(values, rows)
            found = inertia(values, ranks)
            exact = least_inertia(values, sizes, numbers)
            loose = least_inertia(values, sizes, numbers - step)
            assert exact - 1e-12 <= found <= loose + 1e-12


@FORMS
def test_larger_budget_never_has_larger_inertia(affine: bool, echelon: bool) -> None:
    values, rows = spectra(4, 12, seed=1), torch.tensor([5, 40, 80, 20])
    history = [
        inertia(values, PricedRanks(numbers, affine, echelon).choose(values, rows)[0])
        for numbers in range(48, 2400, 23)
    ]
    assert all(later <= earlier for earlier, later in pairwise(history))
    assert history[-1] == 0.0


def test_dimension_that_saves_most_for_its_numbers_comes_first() -> None:
    # Equal eigenvalues: 10 rows cost 10 + 4 numbers a dimension, 90 rows 90 + 4.
    values, rows = torch.ones(2, 4), torch.tensor([10, 90])
    assert PricedRanks(56, False, False).choose(values, rows)[0] == (4, 0)
    assert PricedRanks(93, False, False).choose(values, rows)[0] == (4, 0)
    assert PricedRanks(150, False, False).choose(values, rows)[0] == (4, 1)


def test_what_is_left_over_goes_to_the_dimension_that_saves_most() -> None:
    values = torch.tensor([[1.0, 1, 1, 50], [0.1, 0.1, 0.1, 1], [0.1, 0.1, 0.1, 2]])
    rows = torch.tensor([96, 6, 6])  # the first cluster's dimension is the best and too large
    assert PricedRanks(15, False, False).choose(values, rows)[0] == (0, 0, 1)
    assert PricedRanks(20, False, False).choose(values, rows)[0] == (0, 1, 1)


def test_price_is_what_the_last_dimension_saves_per_number() -> None:
    values, rows = torch.tensor([[1.0, 2.0, 40.0, 80.0]]), torch.tensor([16])
    ranks, price = PricedRanks(40, False, False).choose(values, rows)
    assert ranks == (2,)
    assert 2.0 / 20 <= price <= 40.0 / 20
    assert price == pytest.approx(2.0 / 20, rel=1e-5)


def test_empty_clusters_cost_nothing_and_get_no_dimension() -> None:
    values, rows = torch.ones(3, 4), torch.tensor([0, 7, 0])
    values[0] = values[2] = 0.0
    ranks, _ = PricedRanks(7 * 4 + 5 * 4, True, False).choose(values, rows)
    assert ranks == (0, 4, 0)


def test_rank_zero_everywhere_is_legal() -> None:
    values, rows = torch.ones(2, 4), torch.tensor([9, 9])
    assert PricedRanks(0, False, False).choose(values, rows)[0] == (0, 0)
    assert PricedRanks(8, True, False).choose(values, rows)[0] == (0, 0)


def test_means_that_are_too_many_are_refused() -> None:
    values, rows = torch.ones(3, 4), torch.tensor([9, 9, 9])
    with pytest.raises(BudgetError, match="3 means alone take 12 numbers, more than the 11"):
        PricedRanks(11, True, True).choose(values, rows)


def test_growing_start_keeps_the_means_of_a_small_budget() -> None:
    values, rows = torch.ones(3, 4), torch.tensor([9, 9, 9])
    rule = PricedRanks(40, affine=True, echelon=False)
    assert rule.coarse(1 / 8).choose(values, rows)[0] == (0, 0, 0)
    assert rule.coarse(3 / 4).choose(values, rows)[0] == (1, 0, 0)
    assert rule.choose(values, rows)[0] == (2, 0, 0)


def test_exact_rows_of_a_fit_still_have_a_price() -> None:
    ranks, price = PricedRanks(10**6, True, True).choose(torch.zeros(2, 3), torch.tensor([4, 4]))
    assert ranks == (0, 0)
    assert 0 < price < 1e-30


def test_fixed_ranks_shrink_to_one_at_least() -> None:
    rule = FixedRanks((16, 3, 1))
    assert rule.choose(torch.ones(3, 20), torch.ones(3)) == ((16, 3, 1), 0.0)
    assert rule.coarse(1 / 8).ranks == (2, 1, 1)
