"""Frequencies of symbols: how finely they are told apart, and their bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
# Whole numbers, so that all machines make the same model of a byte: a unit in the last place of a
# power would be enough to decode something else.
_WEIGHTS = np.array([0, *(round(2 ** (step / 16)) for step in range(255))], dtype=np.float32)


class Frequencies(NamedTuple):
    """How often the symbols from ``low`` on occur in a block of positions.

    Attributes
    ----------
    low : int
        The smallest symbol.
    steps : NDArray of uint8
        For every symbol up to the largest 0 if it never occurs, otherwise 1 + 16 times the
        logarithm of its weight to base 2.
    """

    low: int
    steps: NDArray[np.uint8]

    @classmethod
    def of(cls, counts: Counts) -> Frequencies:
        """Return the frequencies of symbols that occur ``counts`` times, not all zero."""
        present = np.flatnonzero(counts)
        inner = counts[present[0] : present[-1] + 1].astype(np.float64)
        logs = 16 * np.log2(np.maximum(inner, 1e-9) / inner.max())
        steps = np.where(inner > 0, np.clip(np.round(logs) + 255, 1, 255), 0)
        return cls(int(present[0]), steps.astype(np.uint8))

    @property
    def weights(self) -> NDArray[np.float32]:
        """Whole numbers in proportion to the frequencies."""
        found: NDArray[np.float32] = _WEIGHTS[self.steps]
        return found

    def to_bytes(self) -> bytes:
        """Return the smallest and the largest symbol, and the steps if those differ."""
        high = self.low + len(self.steps) - 1
        return bytes([self.low, high]) + (self.steps.tobytes() if high > self.low else b"")

    @classmethod
    def read(cls, data: bytes, place: int, bits: int) -> tuple[Frequencies, int]:
        """Return the frequencies that begin at a place of a blob, and the place behind them.

        Raises
        ------
        ValueError
            If the bytes are no frequencies of symbols below ``2 ** bits``.
        """
        low, high = data[place : place + 2]
        stop = place + 2 + (high - low + 1 if high > low else 0)
        if not low <= high < 1 << bits or stop > len(data):
            raise ValueError(f"no frequencies of symbols of {bits} bits at byte {place}")
        steps = np.frombuffer(data[place + 2 : stop] or b"\xff", dtype=np.uint8)
        if not steps[0] or not steps[-1]:
            raise ValueError(f"the frequencies at byte {place} begin or end with zero")
        return cls(low, steps), stop


def best_block(counts: Counts) -> int:
    """Return how many neighbouring positions share frequencies in the fewest bytes.

    Parameters
    ----------
    counts : NDArray of shape (positions, symbols)
        How often every symbol occurs at every position.
    """
    positions, symbols = counts.shape
    blocks = [1 << power for power in range(min((positions - 1).bit_length(), 15) + 1)]

    def cost(block: int) -> float:
        merged = merge(counts, block)
        return _entropy_bytes(merged) + float(len(merged) * (2 + symbols))

    return min(reversed(blocks), key=cost)


def merge(counts: Counts, block: int) -> Counts:
    """Return the counts of all positions of each block."""
    merged: Any = np.add.reduceat(counts, np.arange(0, len(counts), block), axis=0)
    return np.asarray(merged, dtype=np.int64)


def _entropy_bytes(counts: Counts) -> float:
    share = counts / counts.sum(1, keepdims=True)
    bits = -(counts * np.log2(np.where(counts > 0, share, 1.0))).sum()
    return float(bits) / 8
