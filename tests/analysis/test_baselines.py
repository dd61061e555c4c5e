from __future__ import annotations

import pytest
import torch

from kflats import InputError, relative_error
from kflats.analysis.baselines import BASELINES, half, rounded


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_int4_rounds_to_the_nearest_multiple_of_the_scale() -> None:
    table = torch.tensor([[7.0, 3.4, -0.6, 0.4, -7.0], [0.875, 0.55, -0.1, 0.0625, -0.8]])
    expected = torch.tensor([[7.0, 3.0, -1.0, 0.0, -7.0], [0.875, 0.5, -0.125, 0.0, -0.75]])
    assert torch.equal(rounded(table, 4).table, expected)


def test_int8_has_127_steps_on_each_side() -> None:
    table = torch.tensor([[127.0, 63.4, 63.6, -1.4, -127.0]])
    expected = torch.tensor([[127.0, 63.0, 64.0, -1.0, -127.0]])
    assert torch.equal(rounded(table, 8).table, expected)


def test_scale_is_stored_in_float16() -> None:
    table = torch.tensor([[0.7, -0.7]])
    scale = torch.tensor(0.7 / 7).to(torch.float16).to(torch.float32)
    expected = torch.stack([7 * scale, -7 * scale])[None]
    assert torch.equal(rounded(table, 4).table, expected)
    assert float(expected[0, 0]) != pytest.approx(0.7, rel=1e-6)


def test_every_row_has_its_own_scale() -> None:
    table = normal(20, 9)
    scales = torch.logspace(-2, 2, 20)[:, None]
    error = (rounded(scales * table, 4).table - scales * table).abs()
    step = (scales * table).abs().amax(1, keepdim=True) / 7
    eps = torch.finfo(torch.float16).eps
    assert bool((error <= (0.5 + 7 * eps) * step).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_rows_stay_zero(bits: int) -> None:
    table = normal(3, 6)
    table[1] = 0.0
    result = rounded(table, bits).table
    assert torch.equal(result[1], torch.zeros(6))
    assert bool(result[[0, 2]].abs().amax(1).gt(0).all())


def test_rows_below_the_smallest_scale_are_finite() -> None:
    table = torch.tensor([[1e-9, -1e-12], [1.0, 0.5]])
    assert torch.equal(rounded(table, 8).table[0], torch.zeros(2))


@pytest.mark.parametrize(
    ("columns", "bits", "per_row"),
    [(6, 4, 3 + 2), (5, 4, 3 + 2), (1, 4, 1 + 2), (5, 8, 5 + 2), (5, 3, 2 + 2), (8, 2, 2 + 2)],
)
def test_bytes_are_packed_codes_and_a_scale_per_row(columns: int, bits: int, per_row: int) -> None:
    assert rounded(normal(11, columns), bits).num_bytes == 11 * per_row


def test_half_is_a_cast() -> None:
    table = torch.tensor([[1.0, 1.0 + 2**-10, 1.0 + 2**-13], [0.1, -3.0, 0.0]])
    result = half(table)
    assert torch.equal(result.table[0], torch.tensor([1.0, 1.0 + 2**-10, 1.0]))
    assert (result.table.dtype, result.num_bytes) == (torch.float32, 12)


def test_more_bits_cost_bytes_and_save_error() -> None:
    table = normal(50, 16)
    made = [BASELINES[name](table) for name in ("fp16", "int8", "int4")]
    errors = [relative_error(table, baseline.table) for baseline in made]
    assert [baseline.name for baseline in made] == list(BASELINES)
    assert [baseline.num_bytes for baseline in made] == [50 * 32, 50 * 18, 50 * 10]
    assert errors == sorted(errors)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype_is_kept_and_the_table_untouched(name: str, dtype: torch.dtype) -> None:
    table = normal(8, 6).to(dtype)
    before = table.clone()
    assert BASELINES[name](table).table.dtype == dtype
    assert torch.equal(table, before)


@pytest.mark.parametrize("name", BASELINES)
def test_nan_is_refused(name: str) -> None:
    table = normal(8, 6)
    table[5, 2] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity, first in row 5"):
        BASELINES[name](table)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_outside_the_range_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match=f"bits={bits}"):
        rounded(normal(8, 6), bits)


@pytest.mark.parametrize("name", ["fp16", "int4"])
def test_values_beyond_half_precision_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"float16.* holds NaN or infinity, first in row 1"):
        BASELINES[name](torch.tensor([[1.0, 2.0], [1e6, 0.0]]))
