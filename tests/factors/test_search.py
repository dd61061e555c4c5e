from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kflats import (
    Budget,
    BudgetError,
    Factorization,
    InputError,
    ProjectiveClustering,
    choose_n_clusters,
)
from kflats.factors.search import CANDIDATES, choose_n_flats
from tests.conftest import planted, spectral_table


def test_climb_ends_after_two_that_are_no_better() -> None:
    _, trials = choose_n_clusters(spectral_table(2000, 16), Budget(compression=0.2))
    best = min(range(len(trials)), key=lambda index: trials[index].inertia)
    assert best == len(trials) - 3
    assert [t.shape.n_clusters for t in trials] == list(CANDIDATES[: len(trials)])


def test_choice_has_the_least_error_of_the_trials(table: Tensor) -> None:
    shape, trials = choose_n_clusters(table, Budget(compression=0.3))
    best = min(trials, key=lambda trial: trial.inertia)
    assert shape == best.shape
    svd = Factorization.svd(table, trials[0].shape.rank)
    assert trials[0].inertia == pytest.approx(float(svd.squared_errors.sum()), rel=1e-4)


def test_every_trial_meets_a_byte_budget(table: Tensor) -> None:
    _, trials = choose_n_clusters(table.half(), Budget(num_bytes=6000))
    assert all(trial.shape.num_bytes(torch.float16) <= 6000 for trial in trials)


def test_impossible_budget_is_refused(table: Tensor) -> None:
    with pytest.raises(BudgetError, match="a size of 100 bytes cannot be met by n_clusters=1"):
        choose_n_clusters(table, Budget(num_bytes=100))


def test_fixed_rank_leaves_nothing_to_choose(table: Tensor) -> None:
    with pytest.raises(InputError, match="rank=3 says nothing about the number of clusters"):
        choose_n_clusters(table, Budget(rank=3))


def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that every later fit writes its number of clusters to."""
    seen: list[int] = []
    fit = ProjectiveClustering.fit

    def recorded(self: ProjectiveClustering, *args: Any, **options: Any) -> ProjectiveClustering:
        seen.append(self.n_clusters)
        return fit(self, *args, **options)

    monkeypatch.setattr(ProjectiveClustering, "fit", recorded)
    return seen


def test_one_flat_is_chosen_for_rows_on_one_subspace() -> None:
    X, _, _ = planted(600, n_clusters=1, rank=6, n_features=32, noise=0.01)
    assert choose_n_flats(X.float(), Budget(compression=0.8)) == 1


def test_one_flat_is_chosen_for_noise_with_few_rows() -> None:
    assert choose_n_flats(torch.randn(200, 64), Budget(compression=0.5)) == 1


def test_several_flats_are_chosen_for_a_union_of_subspaces() -> None:
    X, _, _ = planted(400, n_clusters=4, rank=3, n_features=32, noise=0.05)
    budget = Budget(compression=0.8)
    n_flats = choose_n_flats(X.float(), budget)
    assert n_flats >= 4
    one, several = (
        Factorization.projective(X.float(), k, budget, affine=True, echelon=True)
        for k in (1, n_flats)
    )
    assert several.relative_error < 0.7 * one.relative_error


def test_fast_search_compares_one_number_with_one_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    X, _, _ = planted(400, n_clusters=4, rank=3, n_features=16, noise=0.05)
    seen = tried(monkeypatch)
    choose_n_flats(X, Budget(compression=0.7), effort="fast")
    assert seen == [1, 16]
    seen.clear()
    choose_n_flats(X, Budget(compression=0.7))
    assert seen == [1, 4, 16, 32]


def test_number_of_flats_stops_where_the_means_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, _, _ = planted(400, n_clusters=4, rank=3, n_features=16, noise=0.05)
    seen = tried(monkeypatch)
    assert choose_n_flats(X, Budget(num_parameters=40)) in (1, 2)
    assert seen == [1, 4]
    with pytest.raises(BudgetError, match="1 means alone take 16 numbers"):
        choose_n_flats(X, Budget(num_parameters=15))


def test_search_takes_and_overrides_the_options_of_a_fit(table: Tensor) -> None:
    options: dict[str, Any] = {"max_iter": 50, "init": "random", "n_init": 1}
    n_flats = choose_n_flats(
        table, Budget(compression=0.6), sample_weight=torch.rand(400), affine=False, **options
    )
    assert n_flats >= 1
