from __future__ import annotations

import torch

from kflats.clustering.lloyd import Partition, refine
from kflats.clustering.rows import Moments, Rows
from tests.conftest import planted


def partition(labels: torch.Tensor, X: torch.Tensor) -> Partition:
    rows = Rows.of(X, None, torch.float64, affine=False)
    return Partition(rows, labels, n_clusters=3, rank=2, affine=False)


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
