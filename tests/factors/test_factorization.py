from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kflats import Budget, Factorization, InputError, ProjectiveClustering, relative_error
from tests.conftest import spectral_table


@pytest.mark.parametrize("rank", [1, 5, 23, 24])
def test_svd_equals_the_truncated_svd(table: Tensor, rank: int) -> None:
    factors = Factorization.svd(table.double(), rank)
    U, S, Vh = torch.linalg.svd(table.double(), full_matrices=False)
    expected = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    torch.testing.assert_close(factors.reconstruct(), expected, rtol=1e-6, atol=1e-6)


def test_affine_svd_beats_the_linear_one_off_centre(table: Tensor) -> None:
    shifted = table + 3.0
    affine = Factorization.svd(shifted, 4, affine=True)
    assert affine.relative_error < Factorization.svd(shifted, 4).relative_error
    assert affine.num_parameters == 4 * (400 + 24) + 24


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_errors_are_those_of_the_stored_factors(affine: bool, dtype: torch.dtype) -> None:
    table = spectral_table().to(dtype)
    before = table.clone()
    factors = Factorization.projective(table, 3, 8, affine=affine)
    assert factors.coefficients.dtype == factors.bases.dtype == dtype
    expected = relative_error(table, factors.reconstruct())
    assert factors.relative_error == pytest.approx(expected, rel=1e-9)
    assert factors.squared_relative_error == pytest.approx(expected**2, rel=1e-9)
    assert torch.equal(table, before)


def test_errors_per_cluster_by_hand(table: Tensor) -> None:
    factors = Factorization.projective(table, 3, 8)
    for cluster in range(3):
        members = factors.labels == cluster
        part = relative_error(table[members], factors.reconstruct()[members])
        assert float(factors.cluster_relative_errors[cluster]) == pytest.approx(part, rel=1e-6)


def test_agrees_with_the_estimator(table: Tensor) -> None:
    factors = Factorization.projective(table, 3, 8, random_state=5)
    model = ProjectiveClustering(3, rank=8, random_state=5).fit(table)
    assert float(factors.squared_errors.sum()) == pytest.approx(model.inertia_, rel=1e-5)
    torch.testing.assert_close(factors.coefficients, model.transform(table))


def test_rows_can_be_reconstructed_alone(table: Tensor) -> None:
    factors = Factorization.projective(table, 3, 8)
    torch.testing.assert_close(factors.reconstruct(slice(7, 19)), factors.reconstruct()[7:19])


def test_counts_include_labels(table: Tensor) -> None:
    factors = Factorization.projective(table, 3, 8)
    assert factors.num_parameters == 400 * 8 + 3 * 8 * 24
    assert factors.num_bytes == 4 * factors.num_parameters + 400


def test_is_frozen(table: Tensor) -> None:
    factors = Factorization.svd(table, 2)
    with pytest.raises(AttributeError, match="cannot assign"):
        factors.bases = table  # type: ignore[misc]


def test_nan_is_refused_with_its_row(table: Tensor) -> None:
    table[3, 0] = torch.nan
    with pytest.raises(InputError, match="first in row 3"):
        Factorization.svd(table, 2)


@pytest.mark.parametrize("rank", [0, 25])
def test_impossible_ranks_are_refused(table: Tensor, rank: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        Factorization.svd(table, rank)


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("rank", [1, 8, 24])
def test_echelon_form_is_the_same_table_in_fewer_numbers(affine: bool, rank: int) -> None:
    table = spectral_table(400, 24)
    bases = torch.linalg.qr(torch.randn(3, 24, 24)).Q
    for cluster, j in enumerate((rank, 2, 5)):
        bases[cluster, j:] = 0.0
    means = torch.randn(3, 24) if affine else None
    labels, ranks = torch.arange(400) % 3, (rank, 2, 5)
    plain = Factorization.from_subspaces(table, bases, labels, means, ranks=ranks)
    factors = plain.in_echelon_form(table)
    torch.testing.assert_close(factors.reconstruct(), plain.reconstruct(), rtol=1e-4, atol=1e-4)
    assert factors.relative_error == pytest.approx(plain.relative_error, rel=1e-4)
    fewer = sum(j * j + affine * j for j in factors.ranks)
    assert plain.num_parameters - factors.num_parameters == fewer
    assert factors.num_bytes == 4 * factors.num_parameters + 400 + 3 * 3
    assert factors.pivots is not None
    for cluster, j in enumerate(factors.ranks):
        pivots = factors.pivots[cluster]
        assert int(pivots.sum()) == j
        assert torch.equal(factors.bases[cluster, :j, pivots], torch.eye(j))
        assert not bool(factors.bases[cluster, j:].any())
        if factors.means is not None:
            assert not bool(factors.means[cluster, pivots].any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_echelon_form_in_half_precision_reports_what_it_stores(dtype: torch.dtype) -> None:
    table = spectral_table().to(dtype)
    factors = Factorization.projective(table, 3, 8, affine=True, echelon=True)
    assert factors.bases.dtype == factors.coefficients.dtype == dtype
    expected = relative_error(table, factors.reconstruct())
    assert factors.relative_error == pytest.approx(expected, rel=1e-9)
    plain = Factorization.projective(table, 3, 8, affine=True)
    assert factors.relative_error == pytest.approx(plain.relative_error, rel=1e-3)


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("echelon", [False, True], ids=["plain", "echelon"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_budget_in_bytes_counts_labels_and_masks(
    affine: bool, echelon: bool, dtype: torch.dtype
) -> None:
    table = spectral_table().to(dtype)
    for num_bytes in (2600, 7000, 15_000):
        budget = Budget(num_bytes=num_bytes)
        factors = Factorization.projective(table, 4, budget, affine=affine, echelon=echelon)
        assert factors.num_bytes <= num_bytes
        assert factors.num_bytes > num_bytes - 500 * dtype.itemsize
        assert factors.shape.num_bytes(dtype) == factors.num_bytes
        by_hand = 400 if factors.n_clusters > 1 else 0
        by_hand += 3 * factors.n_clusters if echelon else 0
        assert factors.num_bytes == factors.num_parameters * dtype.itemsize + by_hand


def test_clusters_left_empty_by_a_budget_are_dropped() -> None:
    table = torch.randn(200, 2) @ torch.randn(2, 16)
    options: dict[str, Any] = {"affine": True, "echelon": True, "init": "spherical"}
    factors = Factorization.projective(table, 12, Budget(num_parameters=900), **options)
    assert factors.n_clusters < 12
    assert min(factors.shape.counts) > 0
    assert len(factors.bases) == len(factors.ranks) == len(factors.squared_errors)
    assert factors.num_parameters <= 900
    assert factors.relative_error == pytest.approx(
        relative_error(table, factors.reconstruct()), abs=1e-6
    )


def test_budget_for_nothing_gives_a_table_of_zeros_or_means(table: Tensor) -> None:
    zeros = Factorization.projective(table, 3, Budget(num_parameters=1), echelon=True)
    assert zeros.ranks == (0,) * zeros.n_clusters
    assert zeros.relative_error == 1.0
    assert zeros.num_parameters == 0
    means = Factorization.projective(table, 3, Budget(num_parameters=80), affine=True, echelon=True)
    assert means.num_parameters == 24 * means.n_clusters
    assert means.means is not None
    torch.testing.assert_close(means.reconstruct(), means.means[means.labels])


def test_list_of_ranks_is_kept_and_counted(table: Tensor) -> None:
    factors = Factorization.projective(table, 3, [2, 5, 9])
    counts = torch.bincount(factors.labels).tolist()
    assert factors.ranks == factors.shape.ranks == (2, 5, 9)
    expected = sum((n + 24) * j for n, j in zip(counts, (2, 5, 9), strict=True))
    assert factors.num_parameters == expected
    assert not bool(factors.coefficients[factors.labels == 0, 2:].any())
