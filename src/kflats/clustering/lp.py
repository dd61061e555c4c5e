"""Flats nearest in the lp norm: least squares on rows whose large residuals are filled in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kflats.clustering.flats import Flats, own_distances
from kflats.clustering.lloyd import Partition
from kflats.clustering.losses import Loss
from kflats.clustering.robust import median_distance, refine_robust
from kflats.clustering.rows import Moments, Rows

_WARM_UP = 20
_COOLING = 4.0


def refine_lp(
    partition: Partition,
    loss: Loss,
    *,
    max_iter: int,
    tol: float,
    on_iteration: Callable[[float], None] | None = None,
) -> tuple[list[float], Loss]:
    """Lower the sum of ``|residual| ** power`` over rows and coordinates, in place.

    With weights e_ij = slope of the loss at each residual the problem is a weighted low-rank
    approximation. It is majorised once more by an unweighted one: with m_i the largest weight of
    a row, least squares on ``z = point + e / m * residual`` and row weights m lies above it and
    touches it at the present points, so a refit never raises the objective. Rows then try the
    points nearest to them on all flats and move where that is lower.

    Where one residual is nearly 0 and its weight large the steps are short; so the loss is smoothed
    below the mean residual at first, then below a quarter of that, and so on down to its scale.
    All begins with a fit to the distances of the rows ('power'), which large outliers do not turn.

    Parameters
    ----------
    partition : Partition
        Changed in place.
    loss : Loss
        'lp'; without a scale it is smoothed below a thousandth of the median residual.
    max_iter, tol, on_iteration
        See :func:`kflats.clustering.lloyd.refine`.
    """
    rows = partition.rows
    refine_robust(partition, Loss("power"), max_iter=min(max_iter, _WARM_UP), tol=tol)
    squared = own_distances(rows, partition.labels, partition.flats) / rows.n_features
    loss = loss.scaled(median_distance(squared, rows))
    points = _points(rows, partition.labels, partition.flats)
    smoothing = float(squared.mean().sqrt())
    while smoothing > _COOLING * float(loss.scale or 0.0):
        stage = replace(loss, scale=smoothing)
        points = _descend(partition, stage, points, min(max_iter, _WARM_UP), tol, None)[1]
        smoothing /= _COOLING
    return _descend(partition, loss, points, max_iter, tol, on_iteration)[0], loss


def _descend(
    partition: Partition,
    loss: Loss,
    points: Tensor,
    max_iter: int,
    tol: float,
    on_iteration: Callable[[float], None] | None,
) -> tuple[list[float], Tensor]:
    """Lower one loss; return its history and the points that the rows ended at."""
    rows = partition.rows
    history: list[float] = []
    is_priced = partition.flats.price > 0
    if is_priced:  # in the units of another loss so far
        partition.flats, points = _refit(partition, loss, points)
    kept: _State | None = None
    while True:
        labels, tried, costs = _choose(rows, partition.flats, loss, partition.labels, points)
        state = _State(labels, tried, costs, partition.flats)
        if is_priced:  # the budget is met for the labels of the fit
            costs = _costs(rows, loss, points)
            state = _State(partition.labels, points, costs, partition.flats)
        objective = float(state.costs.sum(dtype=torch.float64))
        gain = history[-1] - objective if history else objective
        if kept is not None and gain < 0:
            return history, kept.restore(partition)
        history.append(objective)
        if on_iteration is not None:
            on_iteration(objective)
        if len(history) >= max_iter or (len(history) > 1 and gain <= tol * objective):
            return history, state.restore(partition)
        kept = state
        partition.labels = labels
        partition.flats, points = _refit(partition, loss, tried)


@dataclass(frozen=True)
class _State:
    """Where the rows are, and what they cost there."""

    labels: Tensor
    points: Tensor
    costs: Tensor
    flats: Flats

    def restore(self, partition: Partition) -> Tensor:
        """Put a partition into this state and return the points."""
        partition.labels, partition.costs, partition.flats = self.labels, self.costs, self.flats
        return self.points


def _points(rows: Rows, labels: Tensor, flats: Flats) -> Tensor:
    """Return the nearest point of its own flat for every row."""
    points = rows.table.new_empty(rows.table.shape, dtype=rows.dtype)
    for cluster, members in rows.members(labels, flats.n_clusters):
        points[members] = _project(rows.take(members), flats, cluster)
    return points


def _project(block: Tensor, flats: Flats, cluster: int) -> Tensor:
    directions = flats.directions(cluster)
    if flats.means is None:
        return block @ directions @ directions.T
    mean = flats.means[cluster]
    return (block - mean) @ directions @ directions.T + mean


def _costs(rows: Rows, loss: Loss, points: Tensor) -> Tensor:
    """Return the (weighted) losses of all rows at the given points."""
    costs = points.new_empty(len(points))
    for block in rows.blocks(2 * rows.n_features):
        costs[block] = loss.value((rows.take(block) - points[block]).square_()).sum(1)
    return costs if rows.weights is None else costs * rows.weights


def _choose(
    rows: Rows, flats: Flats, loss: Loss, labels: Tensor, points: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, points and (weighted) losses after every row has tried all flats.

    A row moves where its loss plus the price of its coefficients is lower.
    """
    labels, points = labels.clone(), points.clone()
    prices = flats.price * torch.tensor(flats.ranks, dtype=rows.dtype, device=labels.device)
    for block in rows.blocks(4 * rows.n_features):
        data = rows.take(block)
        weights = 1.0 if rows.weights is None else rows.weights[block]
        least = weights * loss.value((data - points[block]).square()).sum(1)
        least += prices[labels[block]]
        for cluster in range(flats.n_clusters):
            tried = _project(data, flats, cluster)
            cost = weights * loss.value((data - tried).square()).sum(1) + prices[cluster]
            better = cost < least
            least = torch.where(better, cost, least)
            labels[block][better] = cluster
            points[block][better] = tried[better]
    return labels, points, _costs(rows, loss, points)


def _refit(partition: Partition, loss: Loss, points: Tensor) -> tuple[Flats, Tensor]:
    rows, labels = partition.rows, partition.labels
    residuals = rows.take(slice(None)) - points
    slopes = loss.slope(residuals.square())
    largest = slopes.amax(1)
    filled = points + residuals.mul_(slopes / largest[:, None])
    weights = largest if rows.weights is None else largest * rows.weights
    unit = weights.max().clamp_min(torch.finfo(rows.dtype).tiny)
    made = replace(rows, table=filled, weights=weights / unit, shift=None)
    moments = Moments.of(made, labels, partition.flats.n_clusters)
    flats = Flats.fit(moments, partition.affine, rows.dtype)
    counts = rows.counts(labels, flats.n_clusters)
    ranks, price = partition.rule.choose(flats.eigenvalues, counts)
    flats = flats.with_ranks(ranks, price * float(unit))
    return flats, _points(made, labels, flats)
