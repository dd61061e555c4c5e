"""Choosing the number of clusters for a budget by trying it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from kflats.clustering import FitProgress, ProjectiveClustering
from kflats.errors import BudgetError, InputError
from kflats.factors.budget import Budget
from kflats.factors.shape import FactorShape
from kflats.linalg import check_dtype, squared_norm, working_dtype
from kflats.units import Unit

EFFORTS: dict[str, dict[str, Any]] = {
    "fast": {"max_iter": 2, "init": "spherical", "search_dtype": "auto"},
    "thorough": {"max_iter": 6, "search_dtype": "auto"},
}
"""What each effort means to :class:`ProjectiveClustering`."""

CANDIDATES = (1, 2, 3, 5, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of clusters that are tried, in this order."""

_PATIENCE = 2
_MOST_FLATS = 32


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
    ends when two in a row are no better, when one is exact, when the budget cannot be met, or when
    a cluster would have fewer than two rows on average.

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
    check_dtype(table)
    unit = Unit.of(table)
    table = unit.divide(table.detach())
    trials: list[Trial] = []
    best, least, exact = None, math.inf, 0.0
    since_best = 0
    for n_clusters in CANDIDATES:
        if n_clusters > max(1, len(table) // 2) or since_best == _PATIENCE or least <= exact:
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
        with number_left_open():
            inertia = model.fit(table, sample_weight=sample_weight).inertia_
        if not trials:
            eps = torch.finfo(working_dtype(table.dtype)).eps
            exact = eps * squared_norm(table, sample_weight)
        trials.append(Trial(shape, unit.times(inertia, 2)))
        if inertia < least:
            best, least, since_best = trials[-1], inertia, 0
        else:
            since_best += 1
    if best is None:
        raise BudgetError(f"{budget} cannot be met on a table of shape {tuple(table.shape)}.")
    return best.shape, trials


@contextmanager
def number_left_open() -> Iterator[None]:
    """Let clusters be empty without a warning: nobody has asked for so many of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ of n_clusters=", ConvergenceWarning)
        yield


def choose_n_flats(table: Tensor, budget: Budget | Callable[[int], Budget], **options: Any) -> int:
    """Return the number of flats that fits a table best, see :func:`best_trial`."""
    return int(best_trial(table, budget, **options).n_clusters)


def best_trial(
    table: Tensor,
    budget: Budget | Callable[[int], Budget],
    *,
    effort: str = "thorough",
    affine: bool = True,
    sample_weight: Tensor | None = None,
    random_state: int | None = 0,
    **options: Any,
) -> ProjectiveClustering:
    """Return a short fit with the number of flats, of ranks paid for by one budget, that fits best.

    The error after a start, one choice of ranks and one more step orders the numbers of flats
    nearly as whole fits do. Four numbers up to one flat for every ``2 * embedding_dim`` rows (and
    up to 32) are tried; 'fast' compares one flat with half of the largest number, without the
    step.

    Parameters
    ----------
    table : Tensor of shape (num_embeddings, embedding_dim)
        Finite floating values.
    budget : Budget or callable
        A size, counted in the dtype of the table with bases in echelon form; or what gives one
        for a number of flats.
    effort : {'thorough', 'fast'}
        How many numbers to try.
    affine, sample_weight, random_state, **options
        See :class:`ProjectiveClustering`.

    Raises
    ------
    BudgetError
        If not even one flat meets the budget.
    """
    check_dtype(table)
    rows, columns = table.shape
    table = Unit.of(table).divide(table.detach())  # so that inertias can be compared
    most = min(_MOST_FLATS, 1 << max(0, (rows // (2 * columns)).bit_length() - 1))
    tried = {1, most // 8, most // 2, most} if effort == "thorough" else {1, most // 2}
    best: ProjectiveClustering | None = None
    settings = {**options, "init": "spherical", "max_iter": 2 if effort == "thorough" else 1}
    for n_clusters in sorted(tried - {0}):
        try:
            model = ProjectiveClustering(
                n_clusters,
                rank=budget(n_clusters) if callable(budget) else budget,
                affine=affine,
                echelon=True,
                random_state=random_state,
                **{**settings, "callback": None},
            )
            model.fit(table, sample_weight=sample_weight)
        except BudgetError:
            if n_clusters == 1:
                raise
            break
        if best is None or model.inertia_ < best.inertia_:
            best = model
    if best is None:
        raise BudgetError(f"no number of flats meets the budget on a table of {rows} rows.")
    return best
