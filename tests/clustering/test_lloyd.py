from __future__ import annotations

import torch

from kflats.clustering.flats import Flats
from kflats.clustering.lloyd import Partition, refine
from kflats.clustering.ranks import FixedRanks
from kflats.clustering.rows import Moments, Rows
from tests.conftest import planted


def partition(labels: torch.Tensor, X: torch.Tensor) -> Partition:
    rows = Rows.of(X, None, torch.float64, affine=False)
    return Partition(rows, labels, n_clusters=3, rule=FixedRanks((2, 2, 2)), affine=False)


def test_move_that_does_not_pay_is_undone() -> None:
    X, labels, _ = planted(noise=1e-2)
    state = partition(labels, X)
    before = state.flats.inertia
    worse = labels.roll(31)
    assert state.move(worse, only_if_better=True) < 0
    assert torch.equal(state.labels, labels)
    assert state.flats.inertia == before
    # The moments are back too: the same move without the condition gives the same inertia again.
    state.move(worse)
    state.move(labels)
    torch.testing.assert_close(state.flats.inertia, before, rtol=1e-9, atol=1e-9)


def test_move_that_pays_is_kept() -> None:
    X, labels, _ = planted(noise=1e-2)
    state = partition(labels.roll(31), X)
    assert state.move(labels, only_if_better=True) > 0
    assert torch.equal(state.labels, labels)


def test_moved_moments_equal_fresh_ones() -> None:
    X, labels, _ = planted(noise=0.1)
    weights = torch.linspace(0.1, 2.0, len(X), dtype=torch.float64)
    rows = Rows.of(X, weights, torch.float64, affine=True)
    moved, new = Moments.of(rows, labels, 3), labels.roll(17)
    moved.move(rows, labels, new)
    fresh = Moments.of(rows, new, 3)
    for name in ("mass", "first", "second"):
        torch.testing.assert_close(getattr(moved, name), getattr(fresh, name))


def test_good_partition_is_a_fixed_point() -> None:
    X, labels, _ = planted(noise=1e-2)
    state = partition(labels, X)
    history = refine(state, leave_one_out=True, max_iter=50, tol=0.0)
    assert len(history) == 1
    assert torch.equal(state.labels, labels)


def test_moments_of_weightless_rows_leave_no_rounding_behind() -> None:
    X, _, _ = planted(noise=0.1)
    weights = torch.rand(len(X), generator=torch.Generator().manual_seed(0))
    weights[:90] = 0.0
    rows = Rows.of(X.float(), weights, torch.float32, affine=True)
    start, end = torch.arange(len(X)) % 2, (torch.arange(len(X)) >= 90).long()
    moved = Moments.of(rows, start, 2)
    moved.move(rows, start, end)
    assert float(moved.mass[0].abs()) < 1e-13
    assert float(moved.first[0].abs().max()) < 1e-13


def test_rounding_of_an_empty_cluster_is_no_mean() -> None:
    X, labels, _ = planted(noise=0.1)
    moments = Moments.of(Rows.of(X, None, torch.float64, affine=True), labels, 4)
    for mass in (1e-16, -1e-16):
        moments.mass[3], moments.first[3] = mass, 1e-14
        flats = Flats.fit(moments, affine=True, dtype=torch.float32)
        assert flats.means is not None
        assert flats.means[3].tolist() == [0.0] * 12
        assert bool(torch.isfinite(flats.eigenvectors).all())
