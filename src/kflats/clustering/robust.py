"""Fits under other losses than the square: iteratively reweighted least squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kflats.clustering.flats import Flats, own_distances
from kflats.clustering.lloyd import Partition, assign
from kflats.clustering.losses import Loss
from kflats.clustering.rows import Moments, Rows

_WARM_UP = 20
_ON_THE_FLAT = 1e-10


def refine_robust(
    partition: Partition,
    loss: Loss,
    *,
    max_iter: int,
    tol: float,
    on_iteration: Callable[[float], None] | None = None,
) -> tuple[list[float], Loss]:
    """Lower the loss of a partition in place; return its history and the loss with its scale.

    Rows join their nearest flat; every flat is refitted by least squares with the slope of the
    loss at each row's distance as its weight. Neither step raises the objective, because the
    losses are concave in the squared distance; a step that does so by rounding, or because ranks
    are chosen anew, is undone and ends the fit. A loss without a scale gets one from the median
    distance after a fit to the distances themselves (power 1).

    Parameters
    ----------
    partition : Partition
        Changed in place.
    loss : Loss
        Not 'squared' and not 'lp'.
    max_iter, tol, on_iteration
        See :func:`kflats.clustering.lloyd.refine`.
    """
    if loss.scale is None:
        squared = _distances(partition, Loss("squared"))[1]
        start = Loss("power").scaled(median_distance(squared, partition.rows))
        if loss.name != "power":
            _descend(partition, start, min(max_iter, _WARM_UP), tol, None)
            squared = _distances(partition, start)[1]
        loss = loss.scaled(median_distance(squared, partition.rows))
    return _descend(partition, loss, max_iter, tol, on_iteration), loss


def _descend(
    partition: Partition,
    loss: Loss,
    max_iter: int,
    tol: float,
    on_iteration: Callable[[float], None] | None,
) -> list[float]:
    history: list[float] = []
    kept: tuple[Tensor, Flats] | None = None
    is_priced = partition.flats.price > 0
    if is_priced:  # in the units of another loss so far
        squared = own_distances(partition.rows, partition.labels, partition.flats)
        partition.flats = _refit(partition, loss.slope(squared))
    while True:
        labels, squared = _distances(partition, loss)
        state, measured = (labels, partition.flats), squared
        if is_priced:  # the budget is met for the labels of the fit
            state = partition.labels, partition.flats
            measured = own_distances(partition.rows, *state)
        objective = _objective(measured, partition.rows, loss)
        gain = history[-1] - objective if history else objective
        if kept is not None and gain < 0:
            partition.labels, partition.flats = kept
            return history
        history.append(objective)
        if on_iteration is not None:
            on_iteration(objective)
        is_last = len(history) >= max_iter or (len(history) > 1 and gain <= tol * objective)
        if is_last:
            partition.labels = state[0]
            return history
        kept = state
        partition.labels = labels
        partition.flats = _refit(partition, loss.slope(squared))


def _distances(partition: Partition, loss: Loss) -> tuple[Tensor, Tensor]:
    """Return the best labels and the squared distances, from residuals that do not cancel."""
    labels = assign(partition.rows, partition.flats, loss=loss)[0]
    return labels, own_distances(partition.rows, labels, partition.flats)


def _objective(squared: Tensor, rows: Rows, loss: Loss) -> float:
    values = loss.value(squared).double()
    return float((values if rows.weights is None else values * rows.weights).sum())


def median_distance(squared: Tensor, rows: Rows) -> float:
    """Return the (weighted) median distance of the rows that do not lie on their flats.

    Many rows may, rows of zeros for instance, and must not make the median zero.
    """
    order = squared.argsort()
    weights = torch.ones_like(squared) if rows.weights is None else rows.weights
    weights = torch.where(squared > _ON_THE_FLAT * squared.max(), weights, 0.0)
    total = weights[order].double().cumsum(0)
    middle = torch.searchsorted(total, total[-1:] / 2).clamp_max(len(squared) - 1)
    return float(squared[order[middle]].sqrt())


def _kept_where(is_lost: Tensor, old: Flats, new: Flats) -> Flats:
    """Return the new flats, but the old ones of clusters of which no row counts any more."""
    vectors = torch.where(is_lost[:, None, None], old.eigenvectors, new.eigenvectors)
    means = new.means
    if means is not None and old.means is not None:
        means = torch.where(is_lost[:, None], old.means, means)
    return replace(new, eigenvectors=vectors, means=means)


def _refit(partition: Partition, slopes: Tensor) -> Flats:
    rows = partition.rows
    weights = slopes if rows.weights is None else slopes * rows.weights
    # Slopes may be very small everywhere; their moments must not vanish in float32.
    unit = float(weights.max().clamp_min(torch.finfo(rows.dtype).tiny))
    k = partition.flats.n_clusters
    moments = Moments.of(replace(rows, weights=weights / unit), partition.labels, k)
    flats = Flats.fit(moments, partition.affine, rows.dtype)
    flats = _kept_where(moments.mass <= 0, partition.flats, flats)
    ranks, price = partition.rule.choose(flats.eigenvalues, rows.counts(partition.labels, k))
    return flats.with_ranks(ranks, price * unit)
