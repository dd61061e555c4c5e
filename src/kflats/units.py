"""Units: powers of two that bring a table into the range where squares are safe.

Squares of numbers beyond 1e154 overflow in float64 and those of numbers below 1e-154 vanish; in
float32 that begins at 1e19 and 1e-19. Fits divide such a table by a power of two first, which is
exact, and multiply what they find by it. Ordinary tables are left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kflats.linalg import row_blocks

_SAFE = 40
"""Tables whose largest magnitude lies between ``2 ** -40`` and ``2 ** 40`` are left alone."""
_BOUND = 60


def largest_magnitude(table: Tensor) -> float:
    """Return the largest absolute value of a finite matrix, 0 for one without rows."""
    largest = 0.0
    for block in row_blocks(*table.shape):
        low, high = torch.aminmax(table[block].detach())
        largest = max(largest, -float(low), float(high))
    return largest


@dataclass(frozen=True)
class Unit:
    """The power of two ``2 ** exponent``.

    Examples
    --------
    >>> import torch
    >>> table = torch.tensor([[3e200, -1.0]], dtype=torch.float64)
    >>> unit = Unit.of(table)
    >>> unit.exponent, bool(1 <= unit.divide(table).max() < 2)
    (665, True)
    >>> Unit.of(torch.tensor([[3.0, -1.0]])).is_one
    True
    """

    exponent: int = 0

    @classmethod
    def of(cls, table: Tensor) -> Self:
        """Return 1 for an ordinary table, otherwise what brings its largest value near 1."""
        return cls.near(largest_magnitude(table))

    @classmethod
    def near(cls, largest: float, exponent: int = 0) -> Self:
        """Return ``2 ** exponent`` if it is near enough to ``largest``, else what is nearest."""
        found = math.frexp(largest)[1] - 1
        return cls(exponent if largest == 0 or abs(found - exponent) <= _SAFE else found)

    @property
    def is_one(self) -> bool:
        """Whether nothing changes."""
        return self.exponent == 0

    def divide(self, tensor: Tensor) -> Tensor:
        """Return the tensor in this unit; the same one if the unit is 1."""
        return _times(tensor, -self.exponent)

    def multiply(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is in this unit in the unit 1."""
        return _times(tensor, self.exponent)

    def times(self, value: float, degree: float) -> float:
        """Return ``value * unit ** degree``, infinite or 0 where that leaves the range."""
        half = 2.0 ** (self.exponent * degree / 2)
        return value if self.is_one else value * half * half

    def bounded(self, length: float) -> float:
        """Return a positive length in this unit, so that its square stays in range."""
        if self.is_one:
            return length
        return min(max(self.times(length, -1), 2.0**-_BOUND), 2.0**_BOUND)


def _times(tensor: Tensor, exponent: int) -> Tensor:
    """Multiply by ``2 ** exponent``, in two steps: the factor alone may be out of range."""
    if exponent == 0:
        return tensor
    half = exponent // 2
    result: Tensor = tensor * 2.0**half * 2.0 ** (exponent - half)
    return result
