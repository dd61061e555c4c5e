"""From a table and a config to its factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kflats.clustering import FitProgress
from kflats.config import CompressionConfig
from kflats.errors import BudgetError, InputError
from kflats.factors.budget import Budget
from kflats.factors.factorization import PAPER, Factorization
from kflats.factors.search import EFFORTS, best_trial, choose_n_clusters, number_left_open
from kflats.factors.shape import FactorShape
from kflats.linalg import check_dtype
from kflats.units import Unit
from kflats.weighting.metric import FeatureMetric

Progress = Callable[[FitProgress], None]


def factorize(
    weight: Tensor,
    config: CompressionConfig,
    exact_ids: Tensor | None = None,
    callback: Progress | None = None,
) -> Factorization:
    """Return the factors of a table as a config wants them.

    Parameters
    ----------
    weight : Tensor of shape (num_embeddings, embedding_dim)
        Finite floating values.
    config : CompressionConfig
        Size and method.
    exact_ids : Tensor of shape (m,), int64, optional
        Rows that will be stored as they are; they count in the size, not in the fit.
    callback : callable, optional
        Called with a :class:`FitProgress` after every refitting.

    Raises
    ------
    InputError
        If a setting does not fit the table.
    BudgetError
        If no rank or number of clusters meets the size.
    """
    check_dtype(weight)
    if exact_ids is None:
        exact_ids = torch.empty(0, dtype=torch.int64, device=weight.device)
    options: dict[str, Any] = {"device": config.device, "random_state": config.random_state}
    options |= {"callback": callback, "affine": config.has_means}
    if config.method == "flats":
        return _flats(weight, config, exact_ids, options)
    options |= {"sample_weight": row_weights(weight, config, exact_ids)}
    options |= PAPER if config.method == "messi" else {}
    options |= config.options
    shape = _shape(weight, config, len(exact_ids), options)
    if config.n_clusters is not None:
        return Factorization.projective(weight, shape.n_clusters, shape.rank, **options)
    with number_left_open():
        factors = Factorization.projective(weight, shape.n_clusters, shape.rank, **options)
    return factors.without_empty()


def row_weights(weight: Tensor, config: CompressionConfig, exact_ids: Tensor) -> Tensor | None:
    """Return the row weights, zero for rows that are stored exactly anyway."""
    if config.sample_weight is None and not len(exact_ids) and not config.relative_power:
        return None
    if config.sample_weight is None:
        weights = torch.ones(len(weight), device=weight.device)
    else:
        weights = config.sample_weight.to(weight.device, copy=True)
    if weights.shape != (len(weight),):
        return weights  # the estimator says what is wrong
    if config.relative_power:
        norms = Unit.of(weight).divide(weight).float().norm(dim=1)
        shortest = norms[norms > 0].min() if bool(norms.any()) else norms.new_tensor(1.0)
        shortest = shortest.clamp_min(1e-6 * norms.max())  # weights stay finite
        weights = weights * norms.clamp_min(shortest) ** (-2 * config.relative_power)
    weights[exact_ids] = 0
    return weights


def _flats(
    weight: Tensor, config: CompressionConfig, exact_ids: Tensor, options: dict[str, Any]
) -> Factorization:
    """Return flats for the rows that are not stored as they are."""
    _check_rank(config, weight, len(exact_ids))
    weights = row_weights(weight, config, exact_ids)
    table, kept = weight, None
    if len(exact_ids):
        kept = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        kept[exact_ids] = False
        table, weights = weight[kept], None if weights is None else weights[kept]
    metric = None if config.metric is None else FeatureMetric.of(config.metric)
    options |= {"sample_weight": weights, **EFFORTS[config.effort], **config.options}

    def budget(n_clusters: int) -> Budget:
        if config.rank is not None:
            return config.budget
        numbers = config.budget.numbers(
            *weight.shape,
            n_clusters=n_clusters,
            n_exact=len(exact_ids),
            echelon=True,
            dtype=weight.dtype,
        )
        if numbers < 1:
            raise BudgetError(f"{config.budget} does not pay for the labels and exact rows.")
        return Budget(num_parameters=numbers)

    n_clusters = config.n_clusters
    try:
        if n_clusters is None:
            measured = table
            if metric is not None:
                measured = metric.apply(Unit.of(table).divide(table))
            trial = best_trial(measured, budget, effort=config.effort, **options)
            n_clusters = trial.n_clusters
            if options.get("init") == "spherical":
                options["init"] = trial.labels_  # the trial began as the fit would
        factors = Factorization.projective(
            table, n_clusters, budget(n_clusters), echelon=True, metric=metric, **options
        )
    except BudgetError as error:
        raise _cannot_be_met(config, weight, n_clusters) from error
    if not factors.shape.num_coefficients:
        _check_varied(table)
        raise _cannot_be_met(config, weight, n_clusters)
    return factors if kept is None else _spread(factors, kept)


def _check_varied(table: Tensor) -> None:
    if bool((table == table[0]).all()):
        raise BudgetError(
            f"all rows are equal: their mean is all there is of a table of {len(table)} x "
            f"{table.shape[1]}, and flats need a coefficient. Use method='svd'."
        )


def _cannot_be_met(
    config: CompressionConfig, weight: Tensor, n_clusters: int | None
) -> BudgetError:
    k = n_clusters or 1
    remedy = "Use fewer clusters or a larger budget." if k > 1 else "Allow more."
    return BudgetError(
        f"{config.budget} cannot be met by n_clusters={k} on a table of {weight.shape[0]} x "
        f"{weight.shape[1]}: it leaves no coefficient beside the bases. {remedy}"
    )


def _check_rank(config: CompressionConfig, weight: Tensor, n_exact: int) -> None:
    """Raise InputError if a given rank makes the table no smaller."""
    if config.rank is None or config.n_clusters is None:
        return
    shape = FactorShape.uniform(
        *weight.shape,
        n_clusters=config.n_clusters,
        rank=config.rank,
        affine=config.has_means,
        echelon=True,
        n_exact=n_exact,
    )
    _check_smaller(shape)


def _check_smaller(shape: FactorShape) -> None:
    if shape.compression <= 0:
        raise InputError(
            f"n_clusters={shape.n_clusters}, rank={shape.rank} would take {shape.num_parameters} "
            f"parameters instead of {shape.dense_parameters}; lower the rank, or give a "
            "compression."
        )


def _spread(factors: Factorization, kept: Tensor) -> Factorization:
    """Return factors of all rows; those that were left out have the mean of the first flat."""
    coefficients = factors.coefficients.new_zeros(len(kept), factors.rank)
    labels = factors.labels.new_zeros(len(kept))
    coefficients[kept] = factors.coefficients
    labels[kept] = factors.labels
    return replace(factors, coefficients=coefficients, labels=labels)


def _shape(
    weight: Tensor, config: CompressionConfig, n_exact: int, options: dict[str, Any]
) -> FactorShape:
    """Return the sizes, found by trial where the number of clusters is left open."""
    n_clusters = 1 if config.method == "svd" else config.n_clusters
    if n_clusters is None:
        trial_options = {**options, "n_init": 1} if config.method == "messi" else options
        return choose_n_clusters(weight, config.budget, n_exact=n_exact, **trial_options)[0]
    shape = config.budget.shape(
        *weight.shape,
        n_clusters=n_clusters,
        affine=config.has_means,
        n_exact=n_exact,
        dtype=weight.dtype,
    )
    _check_smaller(shape)
    return shape
