from __future__ import annotations

import json

import pytest
import torch

from kflats import FactorShape, InputError, relative_error
from kflats.analysis.grid import GridPoint, curves, factorizations

N, D = 300, 20


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    """Rows near three subspaces, so that several clusters gain over one."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(N // 3, 4, generator=generator) @ torch.randn(4, D, generator=generator)
        for _ in range(3)
    ]
    return torch.cat(parts) + 0.3 * torch.randn(N, D, generator=generator)


def grid(table: torch.Tensor, compressions: list[float], clusters: list[int]) -> list[GridPoint]:
    return [point for point, _ in factorizations(table, compressions, clusters)]


@pytest.mark.parametrize("compression", [0.2, 0.5, 0.8])
def test_one_cluster_is_the_truncated_svd(table: torch.Tensor, compression: float) -> None:
    (point,) = grid(table, [compression], [1])
    squared = torch.linalg.svdvals(table.to(torch.float64)).square()
    lost = float(squared[point.shape.rank :].sum() / squared.sum())
    assert point.shape.rank < D
    assert point.squared_relative_error == pytest.approx(lost, rel=1e-4)


def test_every_point_is_the_largest_within_its_budget(table: torch.Tensor) -> None:
    points = grid(table, [0.2, 0.6, 0.8], [1, 2, 5])
    assert len(points) == 9
    for point in points:
        allowed = (1 - point.compression) * N * D
        k, rank = point.shape.n_clusters, point.shape.rank
        larger = FactorShape.uniform(N, D, n_clusters=k, rank=rank + 1)
        assert point.shape.num_parameters <= allowed < larger.num_parameters


def test_errors_are_those_of_the_factors(table: torch.Tensor) -> None:
    for point, factors in factorizations(table, [0.4], [1, 3]):
        error = relative_error(table, factors.reconstruct())
        assert (factors.n_clusters, factors.rank) == (point.shape.n_clusters, point.shape.rank)
        assert factors.num_parameters == point.shape.num_parameters
        assert factors.num_bytes == point.shape.num_bytes(table.dtype)
        assert error == pytest.approx(point.relative_error, rel=1e-5)
        assert error**2 == pytest.approx(point.squared_relative_error, rel=1e-5)


def test_planted_subspaces_beat_svd_at_equal_parameters(table: torch.Tensor) -> None:
    svd, three = grid(table, [0.6], [1, 3])
    assert three.relative_error < 0.8 * svd.relative_error


def test_points_that_no_rank_can_meet_are_skipped(table: torch.Tensor) -> None:
    points = grid(table, [0.5, 0.946], [1, 2, 200])
    assert [(p.compression, p.shape.n_clusters) for p in points] == [(0.5, 1), (0.5, 2), (0.946, 1)]


def test_as_many_clusters_as_rows_are_skipped() -> None:
    wide = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    assert [point.shape.n_clusters for point in grid(wide, [0.1], [1, 2, 3, 4, 5])] == [1, 2, 3]


def test_points_come_smallest_compression_first(table: torch.Tensor) -> None:
    points = grid(table, [0.6, 0.2], [2, 1])
    assert [(p.compression, p.shape.n_clusters) for p in points] == [
        (0.2, 2),
        (0.2, 1),
        (0.6, 2),
        (0.6, 1),
    ]


def test_every_fit_is_announced(table: torch.Tensor) -> None:
    titles: list[str] = []
    for count, _ in enumerate(
        factorizations(table, [0.5, 0.946], [1, 2], on_start=titles.append), start=1
    ):
        assert len(titles) == count
    assert titles == ["50% smaller, SVD", "50% smaller, k = 2", "95% smaller, SVD"]


def test_clusters_may_be_an_iterator(table: torch.Tensor) -> None:
    points = [point for point, _ in factorizations(table, iter([0.5, 0.6]), iter([1, 2]))]
    assert len(points) == 4


def test_equal_seeds_give_equal_points(table: torch.Tensor) -> None:
    first, second, other = (
        [point for point, _ in factorizations(table, [0.7], [8], random_state=seed)]
        for seed in (3, 3, 4)
    )
    assert first == second
    assert first != other


def test_compression_outside_its_range_is_refused(table: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"compression=1\.5 must be between 0 and 1"):
        grid(table, [1.5], [1])


def point(compression: float, n_clusters: int, squared: float) -> GridPoint:
    shape = FactorShape.uniform(N, D, n_clusters=n_clusters, rank=3)
    return GridPoint(compression, shape, squared)


def test_curves_hold_percent_and_relative_error_by_method() -> None:
    points = [point(0.25, 1, 0.25), point(0.25, 2, 0.04), point(0.5, 1, 0.36)]
    assert curves(points) == {
        "SVD": ([25.0, 50.0], [0.5, pytest.approx(0.6)]),
        "k = 2": ([25.0], [pytest.approx(0.2)]),
    }


def test_point_becomes_json() -> None:
    data = json.loads(json.dumps(point(0.25, 2, 0.25).to_dict()))
    assert (data["method"], data["relative_error"], data["squared_relative_error"]) == (
        "k = 2",
        0.5,
        0.25,
    )
    assert FactorShape.from_dict(data["shape"]) == FactorShape.uniform(N, D, n_clusters=2, rank=3)
