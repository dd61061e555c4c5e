"""code_table: find bases, bits and codes of a table for a budget of bytes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kflats.errors import BudgetError, InputError
from kflats.linalg import check_table, scaled_error, squared_relative_error
from kflats.quantization.axes import Axes
from kflats.quantization.build import build_codes
from kflats.quantization.codes import Codes
from kflats.quantization.rates import Surroundings, choose_rungs
from kflats.quantization.settings import CodeSettings
from kflats.units import Unit, largest_magnitude

_SLACK = 0.005
_TRIES = 4
_LOST = 1e-3
_ROUNDING = 1e-6


def code_table(
    table: Tensor,
    target_bytes: int,
    *,
    sample_weight: Tensor | None = None,
    exact_ids: Tensor | None = None,
    settings: CodeSettings | None = None,
) -> Codes:
    """Return the table in packed codes, in at most ``target_bytes``.

    Parameters
    ----------
    table : Tensor of shape (num_embeddings, embedding_dim)
        Finite values of any floating dtype.
    target_bytes : int
        Most bytes on disk, everything counted.
    sample_weight : Tensor of shape (num_embeddings,), optional
        Non-negative weights of the squared errors; heavy rows get more bits.
    exact_ids : Tensor of shape (m,), optional
        Distinct, ascending ids of rows to store as they are.
    settings : CodeSettings, optional
        The form.

    Raises
    ------
    BudgetError
        If no code is that small, or not the one of ``settings.width``; it says how small the
        smallest is.
    InputError
        If the table or the weights cannot be used, or the codes would be no better than zeros.

    Examples
    --------
    >>> import torch
    >>> table = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> codes = code_table(table, 16_000)
    >>> codes.num_bytes <= 16_000, codes.table().shape
    (True, torch.Size([1000, 64]))
    """
    table = table.detach()
    codes = unchecked_codes(table, target_bytes, sample_weight, exact_ids, settings)
    check_error(weighted_error(table, codes, sample_weight), table)
    return codes


def unchecked_codes(
    table: Tensor,
    target_bytes: int,
    sample_weight: Tensor | None,
    exact_ids: Tensor | None,
    settings: CodeSettings | None,
) -> Codes:
    """Return what :func:`code_table` does, without measuring its error."""
    check_table(table)
    chosen, table = settings or CodeSettings(), table.detach()
    exact = torch.zeros(0, dtype=torch.int64) if exact_ids is None else exact_ids
    free = torch.ones(len(table), dtype=torch.bool, device=table.device)
    free[exact.to(table.device)] = False
    if not bool(free.any()):
        raise InputError("all rows are exact: nothing is left to code.")
    coded, kept = (table[free], table[~free]) if len(exact) else (table, None)
    weights = _weights(sample_weight, free)
    unit = Unit.of(coded)
    axes = Axes(unit.divide(coded).float(), weights, chosen)
    codes = _filled(axes, target_bytes, free, kept, table.dtype)
    return codes if unit.is_one else _in_unit(codes, unit, table)


def _weights(sample_weight: Tensor | None, free: Tensor) -> Tensor:
    """Return the weights of the rows that are coded, with a mean of 1."""
    weights = torch.ones(len(free), device=free.device)
    if sample_weight is not None:
        weights = sample_weight.to(weights)
    if weights.shape != free.shape or not bool((weights >= 0).all() & weights.isfinite().all()):
        raise InputError(f"sample_weight must be {len(free)} finite numbers of at least 0.")
    if not bool(weights[free].any()):
        weights = torch.ones_like(weights)
    return weights[free] / weights[free].mean()


def _filled(
    axes: Axes, target_bytes: int, free: Tensor, kept: Tensor | None, dtype: torch.dtype
) -> Codes:
    around = Surroundings(len(free), kept, dtype)
    codes = build_codes(axes, choose_rungs(axes, target_bytes, around), free, kept, dtype)
    slack = target_bytes - codes.num_bytes
    if axes.settings.width is not None:
        if slack < 0:
            raise BudgetError(
                f"{axes.settings.width} bits everywhere take {codes.num_bytes:,} bytes, "
                f"{target_bytes:,} are allowed."
            )
        return codes
    if slack <= _SLACK * target_bytes:
        return codes
    # What is stored beside the records was bounded from above; spend what that left over.
    allowed = target_bytes + slack
    for _ in range(_TRIES):
        groups = choose_rungs(axes, allowed, around)
        larger = build_codes(axes, groups, free, kept, dtype)
        if larger.num_bytes <= target_bytes:
            return larger if larger.num_bytes > codes.num_bytes else codes
        allowed -= larger.num_bytes - target_bytes
    return codes


def _in_unit(codes: Codes, unit: Unit, table: Tensor) -> Codes:
    """Return the codes of a table, from those of the table divided by a unit.

    Raises
    ------
    InputError
        If the scales, or float32, in which rows are unpacked, cannot hold the magnitudes.
    """
    found = replace(codes, scales=unit.multiply(codes.scales))
    exact = None if codes.exact is None else unit.divide(codes.exact)
    wanted, rows = replace(codes, exact=exact).table(), found.table()
    lost = scaled_error(wanted, lambda block: unit.divide(rows[block]))
    if not lost <= _LOST:
        raise InputError(
            f"packed codes of values up to {largest_magnitude(table):.3g} in {table.dtype} are "
            f"{lost:.2g} off when they are unpacked in float32: multiply the table by "
            f"2**{-unit.exponent} first, or use method='flats'."
        )
    return found


def check_error(squared: float, table: Tensor) -> None:
    """Raise InputError if codes have a larger squared relative error than zeros would have."""
    if not squared <= 1 + _ROUNDING:
        raise InputError(
            f"packed codes of values up to {largest_magnitude(table):.3g} in {table.dtype} would "
            f"be worse than rows of zeros: their relative error is {squared**0.5:.3g}. Give the "
            "table in float32, or multiplied by a power of two, or use method='flats'."
        )


def weighted_error(table: Tensor, codes: Codes, weights: Tensor | None) -> float:
    """Return the weighted squared relative error of coded rows."""
    return squared_relative_error(table, codes.table(), weights)
