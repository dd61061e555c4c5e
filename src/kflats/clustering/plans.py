"""What a fit is to do: the checked parameters of the estimator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from kflats.clustering import arrays
from kflats.clustering.losses import Loss
from kflats.clustering.ranks import FixedRanks, PricedRanks, RankRule
from kflats.clustering.rows import Rows
from kflats.errors import BudgetError, InputError
from kflats.factors.budget import Budget
from kflats.units import Unit

_STARTS = {"random": 10}


@dataclass(frozen=True)
class FitProgress:
    """What the ``callback`` of ``ProjectiveClustering`` is told after every refitting.

    Attributes
    ----------
    run : int
        Index of the start, from 0.
    n_runs : int
        Number of starts.
    iteration : int
        Refittings in this run so far.
    inertia : float
        Inertia after the refitting.
    """

    run: int
    n_runs: int
    iteration: int
    inertia: float


@dataclass(frozen=True)
class Plan:
    """The checked parameters of a fit."""

    n_clusters: int
    rule: RankRule
    init: str | Tensor
    n_init: int
    max_iter: int
    tol: float
    affine: bool
    leave_one_out: bool
    search_dtype: torch.dtype | None
    loss: Loss
    coreset: int | None
    callback: Callable[[FitProgress], None] | None


def plan_of(estimator: Any, rows: Rows, unit: Unit) -> Plan:
    """Return the plan of an estimator for these rows; InputError if the two do not fit.

    ``unit`` is what the rows were divided by.
    """
    k = estimator.n_clusters
    if len(rows) < k:
        raise InputError(f"n_samples={len(rows)} should be >= n_clusters={k}.")
    init, n_init = estimator.init, 1
    if isinstance(init, str):
        n_init = _STARTS.get(init, 1)
    else:
        init = arrays.check_labels(init, len(rows), k, rows.table.device, "init")
    loss = Loss(estimator.loss, estimator.loss_scale, estimator.loss_power)
    if loss.scale is not None:
        loss = replace(loss, scale=unit.bounded(loss.scale))
    return Plan(
        n_clusters=k,
        rule=_rule(estimator, rows),
        init=init,
        n_init=n_init if estimator.n_init == "auto" else int(estimator.n_init),
        max_iter=estimator.max_iter,
        tol=estimator.tol,
        affine=estimator.affine,
        leave_one_out=estimator.assignment == "leave_one_out",
        search_dtype=arrays.choose_search_dtype(estimator.search_dtype, rows),
        loss=loss,
        coreset=_coreset(estimator, rows),
        callback=_in_unit(estimator.callback, unit, loss.degree),
    )


def _in_unit(
    callback: Callable[[FitProgress], None] | None, unit: Unit, degree: float
) -> Callable[[FitProgress], None] | None:
    """Return a callback that is told the inertia of the rows as they were given."""
    if callback is None or unit.is_one:
        return callback

    def told(progress: FitProgress) -> None:
        callback(replace(progress, inertia=unit.times(progress.inertia, degree)))

    return told


def _coreset(estimator: Any, rows: Rows) -> int | None:
    """Return the size of the sample, None where it would be no smaller than the table."""
    size: int | None = estimator.coreset
    if size is None:
        return None
    if estimator.loss != "squared":
        raise InputError(f"coreset={size} needs loss='squared', got {estimator.loss!r}.")
    if size < estimator.n_clusters:
        raise InputError(f"coreset={size} should be >= n_clusters={estimator.n_clusters}.")
    return size if size < len(rows) else None


def _rule(estimator: Any, rows: Rows) -> RankRule:
    rank, k, d = estimator.rank, estimator.n_clusters, rows.n_features
    if isinstance(rank, Budget) and rank.rank is None:
        numbers = rank.numbers(
            len(rows), d, n_clusters=k, echelon=estimator.echelon, dtype=rows.table.dtype
        )
        if numbers < 0:
            raise BudgetError(
                f"{rank} cannot be met: the labels of {len(rows)} rows and the masks of {k} bases "
                "alone take more. Use fewer clusters or a larger budget."
            )
        return PricedRanks(numbers, estimator.affine, estimator.echelon)
    if isinstance(rank, Budget):
        rank = rank.rank
    if isinstance(rank, Sequence):
        if len(rank) != k or not all(isinstance(j, Integral) and 0 <= int(j) <= d for j in rank):
            raise InputError(
                f"rank={list(rank)} must be {k} whole numbers, one per cluster, between 0 and "
                f"n_features={d}."
            )
        return FixedRanks(tuple(int(each) for each in rank))
    if rank > d:
        raise InputError(f"rank={rank} must be between 1 and n_features={d}.")
    return FixedRanks((int(rank),) * k)
