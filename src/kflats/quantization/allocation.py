"""Who gets how many bits: coefficients by their variance, rows by their weight.

Both answers come from one Lagrangian, error + multiplier * bytes. For the coefficients of a basis
it is solved once for each of several average rates (reverse water-filling with real quantisers),
which gives the rungs of a ladder; every row then stands on the rung that is best for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kflats.errors import BudgetError
from kflats.quantization.codebooks import WIDTHS, distortion
from kflats.quantization.packing import packed_bytes
from kflats.quantization.shape import Runs

BLOCK = 8
"""Neighbouring coefficients that have the same width, so that every run fills its bytes."""
RATES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Average bits per coefficient of the rungs."""


def blocks_of(count: int) -> list[slice]:
    """Return the blocks of ``count`` coefficients; the last may be shorter."""
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def rung(variances: Tensor, rate: float, kind: str) -> Runs:
    """Return the widths of coefficients at an average rate.

    Parameters
    ----------
    variances : Tensor of shape (coefficients,)
        Descending.
    rate : float
        Bits per coefficient.
    kind : str
        Levels, see :func:`kflats.quantization.codebooks.gaussian_levels`.

    Returns
    -------
    tuple of (bits, coefficients)
        The most bits first; at most ``rate`` on average.
    """
    parts = blocks_of(len(variances))
    sizes = torch.tensor([part.stop - part.start for part in parts], dtype=torch.float64)
    energy = torch.stack([variances[part].double().sum() for part in parts])
    widths = torch.tensor([0, *WIDTHS], dtype=torch.float64)
    left = torch.tensor([distortion(bits, kind) for bits in (0, *WIDTHS)], dtype=torch.float64)
    low, high = 0.0, float(energy.max()) + 1e-30
    best = torch.zeros(len(parts), dtype=torch.int64)
    for _ in range(100):
        price = (low * high) ** 0.5 if low > 0 else high / 2
        price = max(price, 1e-300)
        cost = energy[:, None] * left + price * sizes[:, None] * widths
        chosen = cost.argmin(1).cummin(0).values
        if float((widths[chosen] * sizes).sum()) > rate * len(variances) + 1e-9:
            low = price
        else:
            high, best = price, chosen
    runs: dict[int, int] = {}
    for width, size in zip(widths[best].int().tolist(), sizes.int().tolist(), strict=True):
        if width:
            runs[width] = runs.get(width, 0) + size
    return tuple(sorted(runs.items(), reverse=True))


def rungs(variances: Tensor, *, shaped: bool, kind: str) -> list[Runs]:
    """Return the distinct rungs of a basis, the smallest first.

    With ``shaped`` coefficients get bits by their variance; otherwise all get the same.
    """
    if not shaped:
        return [(), *(((bits, len(variances)),) for bits in WIDTHS)]
    found = [rung(variances, rate, kind) for rate in RATES]
    return list(dict.fromkeys(found))


def row_bytes(runs: Runs) -> int:
    """Return the bytes of the record of a row."""
    return 1 + sum(packed_bytes(count, bits) for bits, count in runs) if runs else 0


@dataclass(frozen=True)
class Assignment:
    """The rung of every row.

    Attributes
    ----------
    rungs : Tensor of shape (n,), int64
        Number of the rung.
    price : float
        Error per byte at which the last byte was spent.
    """

    rungs: Tensor
    price: float


def assign(errors: Tensor, sizes: Tensor, budget: float) -> Assignment:
    """Return the rungs of least total error whose sizes together stay within the budget.

    Parameters
    ----------
    errors : Tensor of shape (n, rungs)
        Weighted squared error of every row on every rung.
    sizes : Tensor of shape (n, rungs), or (rungs,)
        Bytes.
    budget : float
        Most bytes of all rows.

    Raises
    ------
    BudgetError
        If even the smallest rungs are larger.
    """
    sizes = sizes.expand_as(errors).double()
    smallest = float(sizes.amin(1).sum())
    if smallest > budget:
        raise BudgetError(f"the rows need at least {smallest:.0f} bytes, {budget:.0f} are left.")
    errors = errors.double()
    low, high = -80.0, 60.0
    scale = max(float(errors.sum()), 1e-300)
    best = sizes.argmin(1)
    for _ in range(60):
        middle = (low + high) / 2
        chosen = (errors + 2.0**middle * scale * sizes).argmin(1)
        if float(sizes.gather(1, chosen[:, None]).sum()) > budget:
            low = middle
        else:
            high, best = middle, chosen
    return Assignment(_spend(errors, sizes, best, budget), 2.0**high * scale)


def _spend(errors: Tensor, sizes: Tensor, chosen: Tensor, budget: float) -> Tensor:
    """Spend what is left on the rows that gain most by the next rung, in one pass."""
    here = chosen[:, None]
    spare = budget - float(sizes.gather(1, here).sum())
    above = (here + 1).clamp_max(errors.shape[1] - 1)
    extra = (sizes.gather(1, above) - sizes.gather(1, here)).squeeze(1)
    gain = (errors.gather(1, here) - errors.gather(1, above)).squeeze(1)
    order = torch.argsort(gain / extra.clamp_min(1e-9), descending=True, stable=True)
    order = order[(extra > 0)[order] & (gain > 0)[order]]
    taken = order[extra[order].cumsum(0) <= spare]
    result = chosen.clone()
    result[taken] += 1
    return result


def thin(errors: Tensor, sizes: Tensor, budget: float, keep: int) -> Sequence[int]:
    """Return the numbers of at most ``keep`` rungs, dropping those that are missed least.

    A look-up unpacks rung by rung, so a few that are seldom used cost more than they save.
    """
    kept = list(range(errors.shape[1]))
    sample = torch.arange(0, len(errors), max(1, len(errors) // 4096), device=errors.device)
    every = sizes.expand_as(errors)
    small, sizes = errors[sample], every[sample]
    share = budget * len(sample) / len(errors)
    while len(kept) > keep:
        trials = []
        for rung_number in kept:
            rest = [other for other in kept if other != rung_number]
            needed = float(every[:, rest].double().amin(1).sum())
            if needed <= budget and float(sizes[:, rest].double().amin(1).sum()) <= share:
                found = assign(small[:, rest], sizes[:, rest], share).rungs
                left = float(small[:, rest].gather(1, found[:, None]).double().sum())
                trials.append((left, rest))
        if not trials:
            break
        kept = min(trials)[1]
    return kept
