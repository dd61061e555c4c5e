from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kflats import Factorization, InputError, ProjectiveClustering, relative_error
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
