from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kflats import CompressionConfig, Factorization, FitProgress
from kflats.factors.fit import factorize, row_weights
from tests.conftest import spectral_table

NONE = torch.zeros(0, dtype=torch.int64)
IDS = torch.tensor([3, 50, 200])


def others(factors: Factorization) -> int:
    """Return the numbers of all rows but IDS, in their flats."""
    exact = torch.tensor([factors.ranks[label] for label in factors.labels[IDS].tolist()])
    return factors.num_parameters - int(exact.sum())


@pytest.mark.parametrize("method", ["flats", "projective", "messi", "svd"])
def test_rows_kept_exact_do_not_influence_the_factors(method: str) -> None:
    table = spectral_table(400, 24)
    far = table.clone()
    far[IDS] = 50.0
    config = CompressionConfig(
        compression=0.5, method=method, n_clusters=1 if method == "svd" else 3, affine=False
    )
    plain, moved = factorize(table, config, IDS), factorize(far, config, IDS)
    if method == "flats":
        assert torch.equal(plain.bases, moved.bases)
        assert torch.equal(plain.labels, moved.labels)
    influenced = factorize(far, config, NONE)
    rest = torch.ones(400, dtype=torch.bool)
    rest[IDS] = False

    def error(factors: Factorization) -> float:
        return float((table - factors.reconstruct())[rest].square().sum())

    assert error(moved) < 1.1 * error(plain)
    assert error(moved) < error(influenced)


@pytest.mark.parametrize("effort", ["fast", "thorough"])
@pytest.mark.parametrize("n_clusters", [None, 4])
@pytest.mark.parametrize("ids", [NONE, IDS], ids=["all", "exact"])
def test_flats_and_exact_rows_together_keep_the_compression(
    effort: str, n_clusters: int | None, ids: Tensor
) -> None:
    table = spectral_table(400, 24)
    config = CompressionConfig(compression=0.6, n_clusters=n_clusters, effort=effort)
    factors = factorize(table, config, ids)
    used = (others(factors) if len(ids) else factors.num_parameters) + 24 * len(ids)
    assert 0.38 * 9600 < used <= 0.4 * 9600
    assert factors.pivots is not None
    assert factors.means is not None
    assert factors.num_embeddings == 400


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("ids", [NONE, IDS], ids=["all", "exact"])
def test_flats_and_exact_rows_together_keep_the_bytes(dtype: torch.dtype, ids: Tensor) -> None:
    table = spectral_table(400, 24).to(dtype)
    factors = factorize(table, CompressionConfig(target_bytes=12_000, n_clusters=4), ids)
    numbers = (others(factors) if len(ids) else factors.num_parameters) + 24 * len(ids)
    masks, labels = 3 * factors.n_clusters, 400
    used = numbers * dtype.itemsize + masks + labels
    assert 11_500 < used <= 12_000


def test_flats_of_a_rank_all_have_it() -> None:
    config = CompressionConfig(rank=4, n_clusters=3)
    factors = factorize(spectral_table(400, 24), config, IDS)
    assert factors.ranks == (4, 4, 4)
    assert factors.pivots is not None


def test_options_and_callback_reach_the_fit() -> None:
    seen: list[FitProgress] = []
    options: dict[str, Any] = {"init": "random", "n_init": 3, "max_iter": 4, "tol": 0}
    config = CompressionConfig(compression=0.5, n_clusters=3, options=options)
    factorize(spectral_table(400, 24), config, NONE, seen.append)
    assert {step.n_runs for step in seen} == {3}
    assert {step.run for step in seen} == {0, 1, 2}
    assert max(step.iteration for step in seen) == 3


def test_fast_effort_refits_once() -> None:
    seen: list[FitProgress] = []
    config = CompressionConfig(compression=0.5, n_clusters=3, effort="fast")
    factorize(spectral_table(400, 24), config, NONE, seen.append)
    assert [step.iteration for step in seen] == [1]


def test_weights_reach_the_rows_that_are_fitted() -> None:
    table = spectral_table(400, 24)
    weights = torch.ones(400)
    weights[100:] = 1e-3
    config = CompressionConfig(compression=0.8, n_clusters=2, sample_weight=weights)
    plain = CompressionConfig(compression=0.8, n_clusters=2)

    def heavy_error(config: CompressionConfig) -> float:
        difference = table - factorize(table, config, IDS).reconstruct()
        difference[IDS] = 0
        return float(difference[:100].square().sum())

    assert heavy_error(config) < 0.8 * heavy_error(plain)


def test_row_weights_are_zero_for_exact_rows_and_a_copy() -> None:
    table, given = spectral_table(400, 24), torch.full((400,), 2.0)
    assert row_weights(table, CompressionConfig(compression=0.5), NONE) is None
    ones = row_weights(table, CompressionConfig(compression=0.5), IDS)
    assert ones is not None
    assert int(ones.sum()) == 397
    config = CompressionConfig(compression=0.5, sample_weight=given)
    twos = row_weights(table, config, IDS)
    assert twos is not None
    assert twos[IDS].tolist() == [0.0, 0.0, 0.0]
    assert float(given.min()) == 2.0
