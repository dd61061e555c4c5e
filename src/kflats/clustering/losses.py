"""What a row at some distance from its flat costs: squares, powers, and losses that cut off.

Every loss is a function of the squared distance t, written so that it is close to t near zero
(powers excepted), increasing and concave in t. Concave means that the tangent at the present
distances lies above the loss, so least squares with the slopes as row weights lowers it:
iteratively reweighted least squares never raises the objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kflats.errors import InputError

_SMOOTH = 1e-3


@dataclass(frozen=True)
class Loss:
    """A loss of the distance of a row to its flat.

    Parameters
    ----------
    name : str
        See :data:`LOSSES`.
    scale : float, optional
        Distance at which it bends, in units of the rows; None is :data:`TUNING` times the median
        distance to flats fitted with ``power`` 1, which outliers do not move.
    power : float, default=1.0
        Exponent of 'power' (of the distance) and of 'lp' (of each coordinate).
    """

    name: str
    scale: float | None = None
    power: float = 1.0

    # From robust statistics: 95 % efficiency for normal errors where there is such a value.
    TUNING: ClassVar[dict[str, float]] = {
        "power": _SMOOTH,
        "lp": _SMOOTH,
        "huber": 1.345,
        "cauchy": 2.385,
        "geman_mcclure": 2.385,
        "welsch": 2.985,
        "tukey": 4.685,
        "truncated": 3.0,
    }

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise InputError(f"loss={self.name!r} must be one of {sorted(LOSSES)}.")
        if self.scale is not None and not self.scale > 0:
            raise InputError(f"loss_scale={self.scale} must be positive.")
        low, high = (1.0, 2.0) if self.name == "lp" else (0.0, 2.0)
        if not (low <= self.power <= high and self.power > 0):
            raise InputError(
                f"loss_power={self.power} of {self.name!r} must be "
                f"{'from 1 to 2' if self.name == 'lp' else 'above 0 and at most 2'}."
            )

    @property
    def is_squared(self) -> bool:
        """Whether it is the plain squared distance."""
        return self.name == "squared" or (self.name in ("power", "lp") and self.power == 2)

    @property
    def degree(self) -> float:
        """Power of the unit of the rows that the loss is measured in."""
        return self.power if self.name in ("power", "lp") else 2.0

    def scaled(self, median: float) -> Loss:
        """Return the loss with its default scale for this median distance, if it has none."""
        if self.scale is not None or self.name == "squared":
            return self
        floor = torch.finfo(torch.float32).tiny ** 0.5
        return replace(self, scale=max(floor, self.TUNING[self.name] * median))

    def value(self, squared: Tensor) -> Tensor:
        """Return the loss of squared distances."""
        value, _ = LOSSES[self.name]
        return value(squared, self._bend(), self.power)

    def slope(self, squared: Tensor) -> Tensor:
        """Return its derivative by the squared distance: the weight of the next least squares."""
        _, slope = LOSSES[self.name]
        return slope(squared, self._bend(), self.power)

    def _bend(self) -> float:
        return 1.0 if self.scale is None else self.scale**2


_Form = Callable[[Tensor, float, float], Tensor]


def _power(t: Tensor, c: float, q: float) -> Tensor:
    values: Tensor = (t + c) ** (q / 2) - c ** (q / 2)
    return values


def _power_slope(t: Tensor, c: float, q: float) -> Tensor:
    return q / 2 * (t + c) ** (q / 2 - 1)


def _huber(t: Tensor, c: float, _: float) -> Tensor:
    return torch.where(t <= c, t, 2 * (c * t).sqrt() - c)


def _huber_slope(t: Tensor, c: float, _: float) -> Tensor:
    return (c / t.clamp_min(c)).sqrt()


def _tukey(t: Tensor, c: float, _: float) -> Tensor:
    return c / 3 * (1 - (1 - t / c).clamp_min(0) ** 3)


LOSSES: dict[str, tuple[_Form, _Form]] = {
    "squared": (lambda t, *_: t, lambda t, *_: torch.ones_like(t)),
    "power": (_power, _power_slope),
    "lp": (_power, _power_slope),
    "huber": (_huber, _huber_slope),
    "cauchy": (lambda t, c, _: c * torch.log1p(t / c), lambda t, c, _: 1 / (1 + t / c)),
    "geman_mcclure": (lambda t, c, _: t / (1 + t / c), lambda t, c, _: (1 + t / c) ** -2),
    "welsch": (lambda t, c, _: -c * torch.expm1(-t / c), lambda t, c, _: torch.exp(-t / c)),
    "tukey": (_tukey, lambda t, c, _: (1 - t / c).clamp_min(0) ** 2),
    "truncated": (lambda t, c, _: t.clamp_max(c), lambda t, c, _: (t < c).to(t)),
}
"""Value and slope of every loss as functions of squared distance, squared scale and power.

'power' is the distance to the power q (smoothed below a thousandth of the median distance), 'lp'
the same for every coordinate of the residual. The others are the M-estimators of these names, and
the squared distance cut off at the squared scale.
"""

SQUARED = Loss("squared")
