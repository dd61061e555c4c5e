from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kflats.quantization.codebooks import gaussian_levels
from kflats.quantization.packing import packed_bytes
from kflats.quantization.records import (
    GAIN_STEPS,
    Books,
    decode,
    encode,
    fit_gains,
    make_books,
    quantize,
)
from kflats.quantization.shape import Runs

RUNS: Runs = ((8, 5), (5, 3), (3, 7), (1, 2))
LAST: Runs = ((16, 4), (4, 3))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def books_for(gains: Tensor, runs: Runs, kind: str = "uniform") -> Books:
    widths = tuple(sorted({bits for bits, _ in runs if bits != 16}))
    levels = {width: gaussian_levels(width, kind) for width in widths}
    return Books(make_books(gains, levels), widths)


def decoded(records: Tensor, runs: Runs, books: Books) -> Tensor:
    out = torch.full((len(records), sum(count for _, count in runs)), torch.nan)
    decode(records, runs, books, out)
    return out


@pytest.mark.parametrize("runs", [RUNS, LAST, ((4, 1),), ((2, 9),)], ids=str)
def test_records_have_a_byte_for_the_gain_and_the_packed_codes(runs: Runs) -> None:
    values, gains = normal(6, sum(count for _, count in runs)), torch.linspace(0.5, 2, 6)
    records = encode(values, gains, runs, books_for(gains, runs))
    assert records.dtype == torch.uint8
    assert records.shape == (6, 1 + sum(packed_bytes(count, bits) for bits, count in runs))


def test_values_come_back_within_half_a_step() -> None:
    gains = torch.linspace(0.5, 2, 20)
    books = books_for(gains, RUNS)
    stored = books.gains(books.gain_codes(gains))
    values = normal(20, 17).clamp(-0.7, 0.7) * stored[:, None]
    found, start = decoded(encode(values, gains, RUNS, books), RUNS, books), 0
    for bits, count in RUNS:
        half = float(books.levels(bits).diff().max()) / 2
        left = (found - values)[:, start : start + count].abs() / stored[:, None]
        assert float(left.max()) <= half * (1 + 1e-5)
        start += count


def test_values_in_half_precision_come_back_rounded_only() -> None:
    gains = torch.ones(5)
    books = books_for(gains, LAST)
    values = normal(5, 7)
    found = decoded(encode(values, gains, LAST, books), LAST, books)
    assert torch.equal(found[:, :4], values[:, :4].half().float())
    assert not torch.equal(found[:, 4:], values[:, 4:])


def test_decoding_gives_the_levels_that_quantising_gives() -> None:
    gains = torch.linspace(0.5, 2, 9)
    books = books_for(gains, RUNS, "lloyd-max")
    values, stored = normal(9, 17), books.gains(books.gain_codes(gains))[:, None]
    found = decoded(encode(values, gains, RUNS, books), RUNS, books)
    torch.testing.assert_close(found, stored * quantize(values / stored, RUNS, books))


def test_encoding_what_was_decoded_changes_nothing() -> None:
    gains = torch.linspace(0.5, 2, 9)
    books = books_for(gains, RUNS, "lloyd-max")
    records = encode(normal(9, 17), gains, RUNS, books)
    again = encode(decoded(records, RUNS, books), books.gains(records[:, 0]), RUNS, books)
    assert torch.equal(again, records)


def test_gains_reach_from_the_smallest_to_the_largest_in_equal_ratios() -> None:
    gains = torch.tensor([1e-3, 0.3, 1.0, 50.0])
    books = Books(make_books(gains, {}), ())
    every = books.gains(torch.arange(256))
    torch.testing.assert_close(every[[0, GAIN_STEPS]], gains[[0, 3]], rtol=1e-4, atol=0)
    ratio = float((every[1:] / every[:-1]).mean())
    stored = books.gains(books.gain_codes(gains))
    assert bool(((stored / gains).log().abs() <= torch.tensor(ratio).log() / 2 + 1e-4).all())
    assert books.gain_codes(torch.tensor([1e-9, 1e9])).tolist() == [0, GAIN_STEPS]


def test_room_is_left_at_both_ends_of_the_gains() -> None:
    books = Books(make_books(torch.tensor([1.0, 2.0]), {}, room=0.5), ())
    ends = books.gains(torch.tensor([0, GAIN_STEPS])).log()
    expected = torch.tensor([-0.5, 0.5]) + torch.tensor([1.0, 2.0]).log()
    torch.testing.assert_close(ends, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gains", [torch.zeros(0), torch.full((3,), 0.25)], ids=["none", "equal"])
def test_books_without_a_range_of_gains_are_finite(gains: Tensor) -> None:
    books = Books(make_books(gains, {1: gaussian_levels(1)}), (1,))
    assert bool(books.numbers.isfinite().all())
    found = books.gains(books.gain_codes(gains))
    torch.testing.assert_close(found, gains)


def test_fitted_gains_are_never_worse_than_the_root_mean_square() -> None:
    values, importance = normal(50, 17), torch.linspace(2, 0.1, 17)
    rough = (values.square() @ (importance / importance.sum())).sqrt()
    books = books_for(rough, RUNS, "lloyd-max")
    fitted = fit_gains(values, importance, RUNS, books)

    def errors(gains: Tensor) -> Tensor:
        left = values - gains[:, None] * quantize(values / gains[:, None], RUNS, books)
        return left.square() @ importance

    assert bool((fitted > 0).all())
    assert bool((errors(fitted) <= errors(rough) * (1 + 1e-4)).all())
    assert float(errors(fitted).sum()) < 0.99 * float(errors(rough).sum())


def test_rows_of_zeros_have_positive_gains_and_finite_records() -> None:
    values, importance = torch.zeros(2, 17), torch.ones(17)
    books = books_for(torch.ones(1), RUNS)
    gains = fit_gains(values, importance, RUNS, books)
    assert bool((gains > 0).all())
    assert bool(decoded(encode(values, gains, RUNS, books), RUNS, books).isfinite().all())


def test_a_record_is_the_one_that_files_hold() -> None:
    numbers = torch.tensor([0.0, 0.01, *(-1.5, -0.5, 0.5, 1.5), *(k - 7.5 for k in range(16))])
    books = Books(numbers, (2, 4))
    runs: Runs = ((16, 1), (4, 3), (2, 5))
    values = torch.tensor([[1.5, -7.5, 7.5, 0.5, -1.5, -0.5, 0.5, 1.5, -0.5]])
    record = encode(values, torch.ones(1), runs, books)
    assert record.tolist() == [[0, 0x00, 0x3E, 0xF0, 0x08, 0b11_10_01_00, 0b01]]
    louder = record.clone()
    louder[0, 0] = 100
    torch.testing.assert_close(decoded(louder, runs, books), values * torch.tensor(1.0).exp())
