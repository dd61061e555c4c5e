"""Records of rows: one byte for the gain, then the packed codes of the coefficients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kflats.quantization.codebooks import at_levels, nearest
from kflats.quantization.packing import HALF, codes_of_entry, entries, pack, packed_bytes
from kflats.quantization.shape import Runs

GAIN_STEPS = 255


class Books:
    """The code books of a table.

    Parameters
    ----------
    numbers : Tensor of shape (2 + sum of 2 ** width,), float
        Logarithm of the smallest gain, step of the logarithm, and the levels of each width.
    widths : tuple of int
        Ascending.
    """

    def __init__(self, numbers: Tensor, widths: tuple[int, ...]) -> None:
        self.numbers = numbers.float()
        parts = self.numbers[2:].split([2**width for width in widths])
        self._levels: dict[int, Tensor] = dict(zip(widths, parts, strict=True))
        self._entries: dict[int, Tensor] = {}

    def levels(self, width: int) -> Tensor:
        """Return the levels of a width, shape (2 ** width,), ascending."""
        return self._levels[width]

    def levels_of_entry(self, width: int) -> Tensor:
        """Return the levels of the codes in every entry of :func:`entries`, (entries, codes)."""
        if width not in self._entries:
            codes = codes_of_entry(width, self.numbers.device)
            levels = self._levels[width].index_select(0, codes.view(-1))
            self._entries[width] = levels.view(codes.shape)
        return self._entries[width]

    def gains(self, codes: Tensor) -> Tensor:
        """Return the gains of bytes."""
        gains: Tensor = torch.exp(self.numbers[0] + self.numbers[1] * codes.float())
        return gains

    def gain_codes(self, gains: Tensor) -> Tensor:
        """Return the bytes of the nearest gains, uint8."""
        steps = (gains.float().log() - self.numbers[0]) / self.numbers[1].clamp_min(1e-12)
        return steps.round().clamp(0, GAIN_STEPS).to(torch.uint8)


def make_books(gains: Tensor, levels: dict[int, Tensor], room: float = 0.0) -> Tensor:
    """Return the numbers of :class:`Books` for positive gains and levels by width.

    ``room`` is added to the logarithms of the gains at both ends.
    """
    logs = gains.float().log() if len(gains) else gains.new_zeros(1)
    low, high = logs.min() - room, logs.max() + room
    head = torch.stack([low, (high - low) / GAIN_STEPS])
    return torch.cat([head, *(levels[width].to(head) for width in sorted(levels))])


def quantize(values: Tensor, runs: Runs, books: Books) -> Tensor:
    """Return values of shape (m, coefficients), divided by their gain, at the nearest levels."""
    result, start = torch.empty_like(values), 0
    for bits, count in runs:
        part = values[:, start : start + count]
        if bits == HALF:
            result[:, start : start + count] = part.half()
        else:
            result[:, start : start + count] = at_levels(part, books.levels(bits))
        start += count
    return result


def fit_gains(values: Tensor, importance: Tensor, runs: Runs, books: Books) -> Tensor:
    """Return the gains of rows that make their quantised coefficients fit best.

    Parameters
    ----------
    values : Tensor of shape (m, coefficients)
        Coefficients of the rows.
    importance : Tensor of shape (coefficients,)
        Weights of their squared errors.
    runs, books
        How they are coded.

    Returns
    -------
    Tensor of shape (m,)
        Positive. Levels and gain are fitted in turn, from the root mean square of the row; of all
        gains that were tried the one of least error is kept.
    """
    share = importance / importance.sum().clamp_min(1e-30)
    best = gain = (values.square() @ share).sqrt().clamp_min(1e-12)
    least = torch.full_like(gain, torch.inf)
    for _ in range(3):
        levels = quantize(values / gain[:, None], runs, books)
        power = (levels.square() @ share).clamp_min(1e-12)
        along = (levels * values) @ share
        error = values.square() @ share - 2 * gain * along + gain.square() * power
        best = torch.where(error < least, gain, best)
        least = torch.minimum(error, least)
        gain = torch.where(along > 0, along / power, gain).clamp_min(1e-12)
    return best


def encode(values: Tensor, gains: Tensor, runs: Runs, books: Books) -> Tensor:
    """Return the records of rows, shape (m, record bytes), uint8.

    Parameters
    ----------
    values : Tensor of shape (m, coefficients)
        Coefficients of the rows.
    gains : Tensor of shape (m,)
        Positive; stored as the nearest byte.
    """
    gain_codes = books.gain_codes(gains)
    scaled = values / books.gains(gain_codes)[:, None]
    parts, start = [gain_codes[:, None]], 0
    for bits, count in runs:
        part = scaled[:, start : start + count].contiguous()
        if bits == HALF:
            parts.append(part.half().view(torch.uint8))
        else:
            parts.append(pack(nearest(part, books.levels(bits)), bits))
        start += count
    return torch.cat(parts, 1)


def decode(records: Tensor, runs: Runs, books: Books, out: Tensor) -> None:
    """Write the coefficients of records, of shape (m, coefficients), into ``out``."""
    gains = books.gains(records[:, :1])
    for columns, levels in level_runs(records, runs, books):
        torch.mul(levels, gains, out=out[:, columns])


def level_runs(records: Tensor, runs: Runs, books: Books) -> Iterator[tuple[slice, Tensor]]:
    """Yield the coefficients of every run without their gain: where they lie, and (m, count)."""
    place, start = 1, 0
    for bits, count in runs:
        size = packed_bytes(count, bits)
        packed = records[:, place : place + size]
        yield slice(start, start + count), _values(packed, bits, count, books)
        place, start = place + size, start + count


def _values(packed: Tensor, bits: int, count: int, books: Books) -> Tensor:
    if bits == HALF:
        return packed.clone(memory_format=torch.contiguous_format).view(torch.float16).float()
    levels, wanted = books.levels_of_entry(bits), entries(packed, bits, count)
    each = levels.shape[1]
    # A number of 8 bytes is found faster than a row of two of 4.
    flat = levels.view(torch.int64) if each == 2 else levels
    flat = flat.view(-1) if each <= 2 else flat
    found = flat.index_select(0, wanted.view(-1)).view(torch.float32)
    return found.view(len(packed), wanted.shape[1] * each)[:, :count]
