from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kflats import InputError, ProjectiveClustering
from kflats.clustering.coreset import coreset, sensitivities
from kflats.clustering.rows import Rows
from kflats.factors.budget import Budget
from tests.conftest import planted

N, D = 3000, 12


def rows_of(X: torch.Tensor, weights: torch.Tensor | None = None) -> Rows:
    return Rows(X.double(), weights, torch.float64)


def data(seed: int = 0) -> torch.Tensor:
    return planted(N // 3, 3, 3, D, noise=0.05, seed=seed)[0].double()


def test_sensitivities_are_chances_and_favour_the_odd_row() -> None:
    X = data()
    X[7] *= 50
    found = sensitivities(rows_of(X), 3)
    assert float(found.sum()) == pytest.approx(1)
    assert bool((found > 0).all())
    assert int(found.argmax()) == 7


def test_sums_over_the_sample_are_estimates_of_sums_over_all_rows() -> None:
    X = data()
    weights = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = (weights[:, None] * X.square()).sum(0)
    found = []
    for seed in range(30):
        _, sample = coreset(rows_of(X, weights), 500, 3, np.random.RandomState(seed))
        assert sample.weights is not None
        found.append((sample.weights[:, None] * sample.table.square()).sum(0))
    torch.testing.assert_close(torch.stack(found).mean(0), exact, rtol=0.02, atol=0)


def test_copies_stand_for_all_rows() -> None:
    ids, sample = coreset(rows_of(data()), 800, 3, np.random.RandomState(0))
    assert sample.copies is not None
    assert len(ids.unique()) == len(ids) == len(sample) <= 800
    assert float(sample.copies.sum()) == pytest.approx(N, rel=0.1)


@pytest.mark.parametrize("affine", [False, True])
def test_fit_on_a_sample_is_nearly_as_good(affine: bool) -> None:
    X = data()
    options: dict[str, Any] = {"rank": 3, "affine": affine, "n_init": 5, "random_state": 0}
    whole = ProjectiveClustering(3, **options).fit(X)
    sampled = ProjectiveClustering(3, coreset=600, **options).fit(X)
    assert whole.inertia_ <= sampled.inertia_ * (1 + 1e-6)
    assert sampled.inertia_ < 1.1 * whole.inertia_
    assert sampled.labels_.shape == (N,)
    assert sampled.inertia_ <= sampled.inertia_history_[-1] * (1 + 1e-9)
    assert torch.equal(sampled.predict(X), sampled.labels_)


def test_budget_is_met_for_all_rows() -> None:
    X = data()
    model = ProjectiveClustering(
        3, rank=Budget(compression=0.5), affine=True, echelon=True, coreset=600, random_state=0
    ).fit(X)
    counts = torch.bincount(model.labels_, minlength=3).tolist()
    size = sum(n * r for n, r in zip(counts, model.ranks_, strict=True))
    size += sum((r + 1) * (D - r) for n, r in zip(counts, model.ranks_, strict=True) if n)
    assert size <= 0.5 * N * D


def test_sample_as_large_as_the_table_is_the_table() -> None:
    X = data()
    whole = ProjectiveClustering(3, rank=3, random_state=0).fit(X)
    same = ProjectiveClustering(3, rank=3, random_state=0, coreset=N).fit(X)
    assert torch.equal(whole.labels_, same.labels_)


def test_equal_seeds_give_equal_fits() -> None:
    first, second = (
        ProjectiveClustering(3, rank=3, random_state=5, coreset=300).fit(data()) for _ in range(2)
    )
    assert torch.equal(first.labels_, second.labels_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset": 300, "loss": "tukey"}, "coreset=300 needs loss='squared', got 'tukey'"),
        ({"coreset": 2}, "coreset=2 should be >= n_clusters=3"),
        ({"coreset": 0}, "coreset"),
    ],
)
def test_impossible_samples_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        ProjectiveClustering(3, rank=2, **options).fit(data())  # type: ignore[arg-type]
