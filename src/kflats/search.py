"""Choosing the number of clusters for a budget by trying it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kflats.budget import Budget
from kflats.clustering import FitProgress, ProjectiveClustering
from kflats.errors import BudgetError, InputError
from kflats.shape import FactorShape

CANDIDATES = (1, 2, 3, 5, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of clusters that are tried, in this order."""

_PATIENCE = 2


@dataclass(frozen=True)
class Trial:
    """One number of clusters that was tried.

    Attributes
    ----------
    shape : FactorShape
        The largest that stays within the budget.
    inertia : float
        After a start and one refitting.
    """

    shape: FactorShape
    inertia: float


def choose_n_clusters(
    table: Tensor,
    budget: Budget,
    *,
    affine: bool = False,
    n_exact: int = 0,
    sample_weight: Tensor | None = None,
    random_state: int | None = 0,
    callback: Callable[[FitProgress], None] | None = None,
    **options: Any,
) -> tuple[FactorShape, list[Trial]]:
    """Return the shape within the budget that fits the table best, and all that was tried.

    More clusters fit better but leave fewer dimensions each, so the error falls and then rises.
    Every candidate gets a start and one refitting, which ranks them as full fits do; the climb
    ends when two in a row are no better, when the budget cannot be met, or when a cluster would
    have fewer than two rows on average.

    Parameters
    ----------
    table : Tensor of shape (num_embeddings, embedding_dim)
        Finite floating values.
    budget : Budget
        A compression or a size in bytes, counted in the dtype of the table.
    affine, n_exact
        See :class:`FactorShape`.
    sample_weight, random_state, callback, **options
        See :class:`ProjectiveClustering`.

    Raises
    ------
    BudgetError
        If no number of clusters meets the budget.
    InputError
        If the budget is a fixed rank, which needs a fixed number of clusters.
    """
    if budget.rank is not None:
        raise InputError(f"{budget} says nothing about the number of clusters: give n_clusters.")
    trials: list[Trial] = []
    best: Trial | None = None
    since_best = 0
    for n_clusters in CANDIDATES:
        if n_clusters > max(1, len(table) // 2) or since_best == _PATIENCE:
            break
        try:
            shape = budget.shape(
                *table.shape,
                n_clusters=n_clusters,
                affine=affine,
                n_exact=n_exact,
                dtype=table.dtype,
            )
        except BudgetError:
            if best is None:
                raise
            break
        model = ProjectiveClustering(
            n_clusters,
            rank=shape.rank,
            affine=affine,
            random_state=random_state,
            callback=callback,
            **{**options, "max_iter": 2},
        )
        trial = Trial(shape, model.fit(table, sample_weight=sample_weight).inertia_)
        trials.append(trial)
        if best is None or trial.inertia < best.inertia:
            best, since_best = trial, 0
        else:
            since_best += 1
    if best is None:
        raise BudgetError(f"{budget} cannot be met on a table of shape {tuple(table.shape)}.")
    return best.shape, trials
