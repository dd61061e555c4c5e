"""choose_rungs: how many bits every row gets, within one budget of bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kflats.errors import BudgetError
from kflats.factors.shape import label_dtype
from kflats.linalg import row_blocks
from kflats.quantization.allocation import BLOCK, assign, blocks_of, row_bytes, rungs, thin
from kflats.quantization.axes import Axes
from kflats.quantization.codebooks import WIDTHS, at_levels, gaussian_levels
from kflats.quantization.shape import Runs, coded_in

_SAMPLE = 4096


@dataclass(frozen=True)
class Surroundings:
    """What is stored beside the records: rows of the whole table, exact rows, and the dtype."""

    num_embeddings: int
    exact: Tensor | None
    dtype: torch.dtype

    def num_bytes(self, axes: Axes, ranks: list[int], ladder: int) -> int:
        """Return an upper bound of the bytes of labels, bases, scales, books and exact rows."""
        settings, d = axes.settings, axes.rows.shape[1]
        groups = settings.n_clusters * min(ladder, settings.max_rungs) + (self.exact is not None)
        label = label_dtype(groups)
        directions = settings.n_clusters + (sum(ranks) if settings.rotated else 0)
        scales = directions + (0 if settings.rotated else settings.n_clusters * d)
        books = 2 + sum(2**width for width in WIDTHS)
        size: int = (
            (0 if label is None else label.itemsize * self.num_embeddings)
            + directions * d * settings.basis_bits // 8
            + self.dtype.itemsize * (scales + books)
            + (0 if self.exact is None else self.exact.numel() * self.exact.element_size())
        )
        return size


def choose_rungs(
    axes: Axes, target_bytes: int, around: Surroundings
) -> list[tuple[int, Runs, Tensor]]:
    """Return the groups of rows, as (basis, runs, mask of its rows).

    Parameters
    ----------
    axes : Axes
        Coefficients of the rows.
    target_bytes : int
        Most bytes of the whole table.
    around : Surroundings
        What is stored beside the records.

    Raises
    ------
    BudgetError
        If no choice is that small; it says how small the smallest is.
    """
    settings = axes.settings
    if settings.width is not None:
        return _of_one_width(axes, settings.width)
    ladders = [rungs(v, shaped=settings.rotated, kind=settings.levels) for v in axes.variances]
    longest = max(map(len, ladders))
    errors, sizes = _costs(axes, ladders)
    fixed = [
        around.num_bytes(axes, [_rank(each[: top + 1]) for each in ladders], longest)
        for top in range(longest)
    ]
    least = float(sizes[:, 0].double().sum())
    if fixed[0] + least > target_bytes:
        raise BudgetError(
            f"the smallest table of this form has {fixed[0] + least:,.0f} bytes, "
            f"{target_bytes:,} are allowed."
        )
    budgets = [float(target_bytes - each) for each in fixed]
    top = _best_height(errors, sizes, budgets)
    ladder = [*range(top + 1)]
    kept = thin(errors[:, ladder], sizes[:, ladder], budgets[top], settings.max_rungs)
    found = assign(errors[:, kept], sizes[:, kept], budgets[top]).rungs
    chosen = torch.tensor(kept, device=errors.device)[found]
    groups = []
    for basis, each in enumerate(ladders):
        own = chosen.clamp_max(len(each) - 1)
        for number in torch.unique(own[axes.labels == basis]).tolist():
            groups.append((basis, each[number], (axes.labels == basis) & (own == number)))
    return groups


def _of_one_width(axes: Axes, width: int) -> list[tuple[int, Runs, Tensor]]:
    runs = ((width, axes.rows.shape[1]),)
    return [(basis, runs, axes.labels == basis) for basis in axes.labels.unique().tolist()]


def _rank(ladder: list[Runs]) -> int:
    return max(coded_in(runs) for runs in ladder)


def _best_height(errors: Tensor, sizes: Tensor, budgets: list[float]) -> int:
    """Return the highest rung to use.

    Low rungs need few directions, so a lower ladder leaves more bytes for the rows. Tried on a
    sample of the rows.
    """
    step = max(1, len(errors) // _SAMPLE)
    some, some_sizes = errors[::step], sizes[::step]
    share, trials = len(some) / len(errors), []
    for top, budget in enumerate(budgets):
        fits = float(some_sizes[:, 0].double().sum()) <= share * budget
        if fits and (top + 1 == len(budgets) or budget > budgets[top + 1]):
            below = some[:, : top + 1]
            found = assign(below, some_sizes[:, : top + 1], share * budget).rungs
            trials.append((float(below.gather(1, found[:, None]).double().sum()), top))
    return min(trials)[1] if trials else 0


def _costs(axes: Axes, ladders: list[list[Runs]]) -> tuple[Tensor, Tensor]:
    """Return the weighted error and the bytes of every row on every rung of its ladder."""
    length = max(map(len, ladders))
    errors = axes.rows.new_empty(len(axes.rows), length)
    sizes = torch.empty_like(errors)
    widths = sorted({bits for ladder in ladders for runs in ladder for bits, _ in runs})
    parts = blocks_of(axes.rows.shape[1])
    for block in row_blocks(len(axes.rows), 8 * axes.rows.shape[1]):
        by_width = _errors_by_width(axes, block, widths, parts)
        for cluster, ladder in enumerate(ladders):
            mine = (axes.labels[block] == cluster).nonzero().squeeze(1)
            for number in range(length):
                runs = ladder[min(number, len(ladder) - 1)]
                error = _error_of_runs(by_width, runs, parts)[mine]
                errors[block][mine, number] = error * axes.weights[block][mine]
                sizes[block][mine, number] = float(row_bytes(runs))
    return errors, sizes


def _errors_by_width(
    axes: Axes, block: slice, widths: list[int], parts: list[slice]
) -> dict[int, Tensor]:
    """Return for every width the squared error of each block of coefficients, (m, blocks)."""
    values, gains = axes.values[block], axes.gains[block, None]
    padding = (0, -values.shape[1] % BLOCK)
    shape = (len(values), len(parts), BLOCK)
    power = torch.nn.functional.pad(torch.stack(axes.variances), padding)
    power = power[axes.labels[block]].view(shape)
    result = {}
    for bits in (0, *widths):
        left = values
        if bits:
            levels = gaussian_levels(bits, axes.settings.levels).to(values)
            left = torch.addcmul(values, gains, at_levels(values / gains, levels), value=-1)
        squares = torch.nn.functional.pad(left.square_() if bits else left.square(), padding)
        result[bits] = (squares.view(shape) * power).sum(2)
    return result


def _error_of_runs(by_width: dict[int, Tensor], runs: Runs, parts: list[slice]) -> Tensor:
    """Return the error of rows whose coefficients have these widths."""
    total, block = torch.zeros_like(by_width[0][:, 0]), 0
    for bits, count in runs:
        end = parts[block].start + count
        size = sum(1 for part in parts[block:] if part.stop <= end)
        total = total + by_width[bits][:, block : block + size].sum(1)
        block += size
    return total + by_width[0][:, block:].sum(1)
