from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kflats import InputError, relative_error
from kflats.linalg import (
    by_cluster,
    check_table,
    echelon_form,
    eigh_ascending,
    row_blocks,
    squared_norm,
    weighted_mean,
)


def test_blocks_cover_every_row_once() -> None:
    rows = [row for block in row_blocks(1000, 10_000) for row in range(1000)[block]]
    assert rows == list(range(1000))
    assert len(list(row_blocks(1000, 10_000))) > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_squared_norm_is_exact_and_leaves_its_input(dtype: torch.dtype) -> None:
    table = torch.tensor([[3.0, 4.0], [0.5, 0.0]], dtype=dtype)
    assert squared_norm(table) == 25.25
    assert squared_norm(table, torch.tensor([1.0, 4.0])) == 26.0
    assert table[0, 1] == 4.0


def test_squared_norm_does_not_lose_small_rows() -> None:
    table = torch.full((100_000, 2), 1.0)
    table[0] = 1e4
    assert squared_norm(table) == 2e8 + 2 * 99_999


def test_weighted_mean_by_hand() -> None:
    table = torch.tensor([[0.0], [4.0]])
    assert weighted_mean(table, None, torch.float32).item() == 2.0
    assert weighted_mean(table, torch.tensor([3.0, 1.0]), torch.float32).item() == 1.0


def test_by_cluster_lists_members_in_order() -> None:
    groups = {c: p.tolist() for c, p in by_cluster(torch.tensor([2, 0, 2, 0]), 4)}
    assert groups == {0: [1, 3], 2: [0, 2]}


def test_eigenvectors_have_fixed_signs(table: Tensor) -> None:
    moments = (table.T @ table).double()[None]
    values, vectors = eigh_ascending(moments)
    peaks = vectors[0].gather(0, vectors[0].abs().argmax(0, keepdim=True))
    assert bool((peaks > 0).all())
    assert bool((values.diff(dim=1) >= 0).all())
    torch.testing.assert_close(vectors[0] * values[0] @ vectors[0].T, moments[0])


def test_relative_error_by_hand() -> None:
    assert relative_error(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]])) == 0.8
    assert relative_error(torch.zeros(2, 2), torch.zeros(2, 2)) == 0.0
    assert relative_error(torch.zeros(2, 2), torch.ones(2, 2)) == 1.0


def test_relative_error_of_other_shapes_is_refused() -> None:
    with pytest.raises(InputError, match=r"shapes differ: \(1, 2\) and \(2, 2\)"):
        relative_error(torch.zeros(1, 2), torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(0, 3), r"shape \(0, 3\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "dtype torch.int64"),
        (torch.tensor([[1.0], [torch.inf]]), "infinity, first in row 1"),
    ],
)
def test_unusable_tables_are_refused(table: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_table(table)


@pytest.mark.parametrize("rank", [1, 5, 12, 23, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_echelon_form_spans_the_same(rank: int, dtype: torch.dtype) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(24, rank, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(rows).Q.T.contiguous().to(dtype)
        before = basis.clone()
        pivots, echelon = echelon_form(basis)
        assert torch.equal(basis, before)
        assert echelon.dtype == dtype
        assert int(pivots.sum()) == rank
        assert torch.equal(echelon[:, pivots], torch.eye(rank, dtype=dtype))
        projected = echelon @ basis.T @ basis
        torch.testing.assert_close(projected, echelon, rtol=1e-4, atol=1e-4)
        assert float(echelon.abs().max()) < 4.0


def test_echelon_form_of_nothing_and_of_everything() -> None:
    pivots, echelon = echelon_form(torch.zeros(0, 5))
    assert not bool(pivots.any())
    assert echelon.shape == (0, 5)
    pivots, echelon = echelon_form(torch.linalg.qr(torch.randn(5, 5)).Q)
    assert bool(pivots.all())
    assert torch.equal(echelon, torch.eye(5))


def test_echelon_form_avoids_columns_that_are_nearly_dependent() -> None:
    basis = torch.tensor([[1e-4, 1.0, 0.5, 0.0], [1e-4, 0.0, 0.5, 1.0]])
    pivots, echelon = echelon_form(basis)
    assert pivots.tolist() == [False, True, False, True]
    torch.testing.assert_close(echelon, basis)
