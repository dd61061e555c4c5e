from __future__ import annotations

import pytest
import torch

from kflats import InputError
from kflats.analysis.spectrum import SHARES, Spectrum


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def planted(singular_values: list[float], n: int = 40) -> torch.Tensor:
    """Return a table with these singular values and random singular vectors."""
    d = len(singular_values)
    left = torch.linalg.qr(normal(n, d)).Q
    right = torch.linalg.qr(normal(d, d)).Q
    table: torch.Tensor = left * torch.tensor(singular_values, dtype=torch.float64) @ right.T
    return table


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_energies_are_the_squared_singular_values(dtype: torch.dtype) -> None:
    table = normal(200, 24, dtype=dtype)
    expected = torch.linalg.svdvals(table.to(torch.float64)).square()
    tolerance = float(torch.finfo(dtype).eps * expected.sum())
    energies = Spectrum.of(table).energies
    torch.testing.assert_close(energies, expected, rtol=0, atol=tolerance)


def test_half_precision_tables_are_widened() -> None:
    table = normal(200, 24).to(torch.bfloat16)
    expected = torch.linalg.svdvals(table.to(torch.float64)).square()
    tolerance = float(torch.finfo(torch.float32).eps * expected.sum())
    torch.testing.assert_close(Spectrum.of(table).energies, expected, rtol=0, atol=tolerance)


def test_tables_of_many_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    table = normal(700, 5)
    whole = Spectrum.of(table).energies
    monkeypatch.setattr("kflats.linalg._BLOCK_ELEMENTS", 1)
    tolerance = float(torch.finfo(torch.float64).eps * whole.sum())
    torch.testing.assert_close(Spectrum.of(table).energies, whole, rtol=0, atol=tolerance)


def test_fewer_rows_than_columns_leave_zeros() -> None:
    table = normal(3, 8)
    energies = Spectrum.of(table).energies
    tolerance = 8 * float(torch.finfo(torch.float64).eps * table.square().sum())
    assert energies.shape == (8,)
    assert bool((energies[:3] > 0.1).all())
    assert bool((energies[3:] <= tolerance).all())


def test_ranks_of_a_planted_spectrum() -> None:
    spectrum = Spectrum.of(planted([6.0, 4.0, 3.0, 1.0, 0.0]))
    shares = {0.5: 1, 0.6: 2, 0.8: 2, 0.85: 3, 0.98: 3, 0.99: 4}
    assert spectrum.ranks_for(tuple(shares)) == shares


def test_share_that_a_rank_holds_exactly_takes_no_more() -> None:
    spectrum = Spectrum(torch.tensor([4.0, 4.0, 1.0, 1.0], dtype=torch.float64))
    assert spectrum.ranks_for((0.4, 0.8, 0.9, 1.0)) == {0.4: 1, 0.8: 2, 0.9: 3, 1.0: 4}


def test_share_that_rounding_takes_away_takes_no_more() -> None:
    energies = torch.full((10,), 0.1, dtype=torch.float64)
    assert Spectrum(energies).ranks_for((0.8, 0.9)) == {0.8: 8, 0.9: 9}


def test_rank_holds_what_the_singular_values_say() -> None:
    table = normal(100, 12)
    squared = torch.linalg.svdvals(table).square()
    held = squared.cumsum(0) / squared.sum()
    for share, rank in Spectrum.of(table).ranks_for().items():
        assert held[rank - 1] >= share
        assert rank == 1 or held[rank - 2] < share


def test_default_shares_rise_and_so_do_their_ranks() -> None:
    ranks = Spectrum.of(normal(100, 12)).ranks_for()
    assert tuple(ranks) == SHARES
    assert list(ranks.values()) == sorted(ranks.values())
    assert ranks[0.5] < ranks[0.99]


def test_table_of_zeros_has_a_rank() -> None:
    ranks = Spectrum.of(torch.zeros(4, 3)).ranks_for()
    assert all(1 <= rank <= 3 for rank in ranks.values())


def test_nan_is_refused() -> None:
    table = normal(8, 6)
    table[5, 2] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity, first in row 5"):
        Spectrum.of(table)
