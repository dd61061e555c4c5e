from __future__ import annotations

import pytest
import torch

from kflats import CompressionConfig, Factorization, FeatureMetric, InputError, compress_
from tests.conftest import spectral_table


def random_matrix(d: int, seed: int = 0) -> torch.Tensor:
    root = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T


def weighted_error(table: torch.Tensor, factors: Factorization, matrix: torch.Tensor) -> float:
    difference = (table - factors.reconstruct()).double()
    return float(((difference @ matrix) * difference).sum())


def test_applied_rows_have_the_distances_of_the_metric() -> None:
    matrix, rows = random_matrix(6), torch.randn(4, 6, dtype=torch.float64)
    metric = FeatureMetric.of(matrix, ridge=0.0)
    scaled = matrix / matrix.diagonal().mean()
    expected = ((rows @ scaled) * rows).sum(1)
    torch.testing.assert_close(metric.apply(rows).square().sum(1), expected)
    torch.testing.assert_close(metric.undo(metric.apply(rows)), rows)


def test_identity_changes_nothing() -> None:
    table = spectral_table()
    plain = Factorization.projective(table, 2, 5, affine=True)
    metric = FeatureMetric.of(torch.eye(table.shape[1]))
    same = Factorization.projective(table, 2, 5, affine=True, metric=metric)
    torch.testing.assert_close(same.reconstruct(), plain.reconstruct(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("echelon", [False, True])
def test_error_in_the_metric_is_lower_and_the_plain_one_higher(echelon: bool) -> None:
    table = spectral_table()
    matrix = random_matrix(table.shape[1]) + torch.diag(torch.linspace(50, 0, table.shape[1]))
    plain = Factorization.projective(table, 3, 5, echelon=echelon, affine=True)
    metric = FeatureMetric.of(matrix, ridge=0.0)
    found = Factorization.projective(table, 3, 5, echelon=echelon, affine=True, metric=metric)
    assert weighted_error(table, found, matrix) < weighted_error(table, plain, matrix)
    assert found.relative_error > plain.relative_error


def test_one_subspace_in_a_metric_is_the_svd_of_the_applied_rows() -> None:
    table = spectral_table().double()
    metric = FeatureMetric.of(random_matrix(table.shape[1]), ridge=0.0)
    found = Factorization.projective(table, 1, 4, metric=metric)
    applied = metric.apply(table)
    u, s, v = torch.linalg.svd(applied, full_matrices=False)
    expected = metric.undo(u[:, :4] * s[:4] @ v[:4])
    torch.testing.assert_close(found.reconstruct(), expected, atol=1e-6, rtol=1e-6)


def test_config_takes_the_matrix() -> None:
    table = spectral_table()
    matrix = torch.diag(torch.linspace(100, 1e-3, table.shape[1]))
    errors = []
    for metric in (None, matrix):
        model = torch.nn.Sequential(torch.nn.Embedding.from_pretrained(table.clone()))
        compress_(model, CompressionConfig(compression=0.5, n_clusters=2, metric=metric))
        rows = model[0](torch.arange(len(table)))
        errors.append(float((rows - table)[:, 0].square().sum()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(2, 3), r"finite matrix of shape \(d, d\), got \(2, 3\)"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "finite matrix"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (torch.zeros(2, 2), "positive diagonal"),
        (torch.tensor([[1.0, 3.0], [3.0, 1.0]]), "positive semi-definite"),
    ],
)
def test_other_matrices_are_refused(matrix: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureMetric.of(matrix)


def test_wrong_width_and_method_are_refused() -> None:
    metric = FeatureMetric.of(torch.eye(5))
    with pytest.raises(InputError, match="metric is for 5 columns, the table has 4"):
        metric.apply(torch.zeros(3, 4))
    with pytest.raises(InputError, match="metric needs method='flats'"):
        CompressionConfig(compression=0.5, method="svd", metric=torch.eye(5))
