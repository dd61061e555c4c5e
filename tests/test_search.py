from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kflats import Budget, BudgetError, Factorization, InputError, choose_n_clusters
from kflats.search import CANDIDATES
from tests.conftest import spectral_table


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
