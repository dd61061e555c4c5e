"""code_table: find bases, bits and codes of a table for a budget of bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from kflats.errors import BudgetError, InputError
from kflats.linalg import check_table, squared_relative_error
from kflats.quantization.axes import Axes
from kflats.quantization.build import build_codes
from kflats.quantization.codes import Codes
from kflats.quantization.rates import Surroundings, choose_rungs
from kflats.quantization.settings import CodeSettings

_SLACK = 0.005
_TRIES = 4


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
        If the table or the weights cannot be used.

    Examples
    --------
    >>> import torch
    >>> table = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> codes = code_table(table, 16_000)
    >>> codes.num_bytes <= 16_000, codes.table().shape
    (True, torch.Size([1000, 64]))
    """
    check_table(table)
    chosen = settings or CodeSettings()
    rows = table.detach().float()
    weights = torch.ones(len(rows), device=rows.device) if sample_weight is None else sample_weight
    weights = weights.to(rows)
    if weights.shape != (len(rows),) or not bool((weights >= 0).all() & weights.isfinite().all()):
        raise InputError(f"sample_weight must be {len(rows)} finite numbers of at least 0.")
    exact = torch.zeros(0, dtype=torch.int64) if exact_ids is None else exact_ids
    free = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    free[exact.to(rows.device)] = False
    if not bool(free.any()):
        raise InputError("all rows are exact: nothing is left to code.")
    if not bool(weights[free].any()):
        weights = torch.ones_like(weights)
    axes = Axes(rows[free], weights[free] / weights[free].mean(), chosen)
    kept = table.detach()[~free] if len(exact) else None
    around = Surroundings(len(rows), kept, table.dtype)
    codes = build_codes(axes, choose_rungs(axes, target_bytes, around), free, kept, table.dtype)
    slack = target_bytes - codes.num_bytes
    if chosen.width is not None:
        if slack < 0:
            raise BudgetError(
                f"{chosen.width} bits everywhere take {codes.num_bytes:,} bytes, {target_bytes:,} "
                "are allowed."
            )
        return codes
    if slack <= _SLACK * target_bytes:
        return codes
    # What is stored beside the records was bounded from above; spend what that left over.
    allowed = target_bytes + slack
    for _ in range(_TRIES):
        groups = choose_rungs(axes, allowed, around)
        larger = build_codes(axes, groups, free, kept, table.dtype)
        if larger.num_bytes <= target_bytes:
            return larger if larger.num_bytes > codes.num_bytes else codes
        allowed -= larger.num_bytes - target_bytes
    return codes


def weighted_error(table: Tensor, codes: Codes, weights: Tensor | None) -> float:
    """Return the weighted squared relative error of coded rows."""
    return squared_relative_error(table, codes.table(), weights)
