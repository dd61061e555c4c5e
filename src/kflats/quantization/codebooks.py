"""Levels of scalar quantisers: Lloyd-Max for Gaussian values, uniform, or fitted to data."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kflats.errors import InputError

WIDTHS = (1, 2, 3, 4, 5, 6, 8)
"""Bits that a code may have; 16 bits are stored as float16 without a code book."""
LEVELS = ("lloyd-max", "uniform")


@lru_cache(maxsize=32)
def gaussian_levels(bits: int, kind: str = "lloyd-max") -> Tensor:
    """Return the levels of least squared error for values of a standard normal distribution.

    Parameters
    ----------
    bits : int
        One of :data:`WIDTHS`.
    kind : {'lloyd-max', 'uniform'}
        Free levels (Lloyd 1982, Max 1960), or equal steps, as needed for entropy coding.

    Returns
    -------
    Tensor of shape (2 ** bits,), float32
        Ascending and symmetric about zero.

    Raises
    ------
    InputError
        If ``bits`` or ``kind`` is unknown.

    Examples
    --------
    >>> gaussian_levels(1)
    tensor([-0.7979,  0.7979])
    >>> gaussian_levels(2, "uniform")
    tensor([-1.4935, -0.4978,  0.4978,  1.4935])
    """
    if bits not in WIDTHS:
        raise InputError(f"bits={bits} must be one of {WIDTHS}.")
    if kind not in LEVELS:
        raise InputError(f"levels={kind!r} must be one of {LEVELS}.")
    if kind == "uniform":
        return _uniform(2**bits).float()
    return _lloyd_max(2**bits).float()


def _normal_mass(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of each interval and the integral of x over it."""
    normal = torch.distributions.Normal(
        torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    )
    ends = torch.nn.functional.pad(edges, (1, 1), value=40.0)
    ends[0] = -40.0
    return normal.cdf(ends).diff(), -normal.log_prob(ends).exp().diff()


def _lloyd_max(count: int) -> Tensor:
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    # Levels of a fine quantiser are as dense as the cube root of the density (Panter, Dite 1951).
    levels: Tensor = 3**0.5 * torch.special.ndtri(quantiles)
    for _ in range(4000):
        mass, first = _normal_mass((levels[1:] + levels[:-1]) / 2)
        moved: Tensor = first / mass
        done = bool((moved - levels).abs().max() < 1e-10)
        levels = moved
        if done:
            break
    return (levels - levels.flip(0)) / 2


def _uniform(count: int) -> Tensor:
    """Return the equal steps of least error, by ternary search (the error is unimodal)."""
    grid = torch.arange(count, dtype=torch.float64) - (count - 1) / 2
    low, high = 1e-3, 4.0
    for _ in range(80):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        if _error(one * grid) < _error(two * grid):
            high = two
        else:
            low = one
    levels: Tensor = grid * (low + high) / 2
    return levels


def _error(levels: Tensor) -> float:
    mass, first = _normal_mass((levels[1:] + levels[:-1]) / 2)
    return float(1 - 2 * (levels * first).sum() + (levels**2 * mass).sum())


def distortion(bits: int, kind: str = "lloyd-max") -> float:
    """Return the squared error of a standard normal value in ``bits`` bits; 1 for none."""
    return 1.0 if bits == 0 else _error(gaussian_levels(bits, kind).double())


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Return the numbers of the nearest of ascending levels, in the shape of ``values``, int32."""
    return torch.bucketize(values.contiguous(), (levels[1:] + levels[:-1]) / 2, out_int32=True)


def at_levels(values: Tensor, levels: Tensor) -> Tensor:
    """Return the nearest of ascending levels, in the shape of ``values``."""
    codes = nearest(values, levels)
    return levels.index_select(0, codes.view(-1)).view(values.shape)


def fit_levels(values: Tensor, weights: Tensor, start: Tensor, steps: int = 12) -> Tensor:
    """Return levels fitted to weighted values by Lloyd's iteration, symmetric about zero.

    Parameters
    ----------
    values, weights : Tensor of shape (m,)
        What is quantised, and non-negative weights of the squared errors.
    start : Tensor of shape (count,)
        Ascending and symmetric, such as :func:`gaussian_levels`.
    steps : int, default=12
        Iterations. The weighted error never rises.
    """
    magnitudes, half = values.abs(), start[len(start) // 2 :]
    for _ in range(steps):
        codes = nearest(magnitudes, half).long()
        total = torch.zeros_like(half).index_add_(0, codes, weights)
        first = torch.zeros_like(half).index_add_(0, codes, weights * magnitudes)
        half = torch.where(total > 0, first / total.clamp_min(1e-30), half)
    return torch.cat([-half.flip(0), half])
