"""The alternation: assign rows to flats, refit the flats, until nothing is gained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kflats.clustering.flats import Distances, Flats, freedom
from kflats.clustering.losses import Loss
from kflats.clustering.ranks import RankRule
from kflats.clustering.rows import Moments, Rows


class Partition:
    """Rows split into clusters, with the flats fitted to them.

    Attributes
    ----------
    rows : Rows
        What is split.
    labels : Tensor of shape (n_samples,), int64
        Cluster of every row.
    rule : RankRule
        Gives the flats their dimensions.
    flats : Flats
        Best flats for these labels.
    affine : bool
        Whether the flats have means.
    search_dtype : torch.dtype
        Of the products that choose flats.
    costs : Tensor of shape (n_samples,) or None
        What the rows cost, where that does not follow from their distances.
    """

    costs: Tensor | None = None

    def __init__(
        self,
        rows: Rows,
        labels: Tensor,
        *,
        n_clusters: int,
        rule: RankRule,
        affine: bool,
        search_dtype: torch.dtype | None = None,
    ) -> None:
        self.rows = rows
        self.labels = labels
        self.rule = rule
        self.affine = affine
        self.search_dtype = search_dtype or rows.dtype
        self._moments = Moments.of(rows, labels, n_clusters)
        self.flats = self._fit(labels)

    def _fit(self, labels: Tensor) -> Flats:
        flats = Flats.fit(self._moments, self.affine, self.rows.dtype)
        return flats.with_ranks(*self.rule.choose(flats.eigenvalues, self._counts(labels)))

    def _counts(self, labels: Tensor) -> Tensor:
        return self.rows.counts(labels, len(self._moments.mass))

    def coarse(self, share: float) -> Flats:
        """Return flats of about this share of the dimensions."""
        rule = self.rule.coarse(share)
        chosen = rule.choose(self.flats.eigenvalues, self._counts(self.labels))
        return self.flats.with_ranks(*chosen)

    def move(self, labels: Tensor, *, only_if_better: bool = False) -> float:
        """Change the labels, refit the flats and return by how much the inertia fell.

        With ``only_if_better`` a move that gains nothing is undone.
        """
        self._moments.move(self.rows, self.labels, labels)
        candidate = self._fit(labels)
        gain = self.flats.inertia - candidate.inertia
        if only_if_better and gain <= 0:
            self._moments.move(self.rows, labels, self.labels)
        else:
            self.labels, self.flats = labels, candidate
        return gain

    def propose(self, flats: Flats, *, leave_one_out: bool) -> tuple[Tensor, Tensor, bool]:
        """Return better labels, the rows' distances, and whether empty clusters were refilled."""
        labels, distances = assign(
            self.rows, flats, self.labels if leave_one_out else None, self.search_dtype
        )
        if flats.price > 0:  # an empty cluster was not worth its basis
            return labels, distances, False
        return labels, distances, _refill_empty(labels, distances, flats)


def refine(
    partition: Partition,
    *,
    leave_one_out: bool,
    max_iter: int,
    tol: float,
    floor: float = 0.0,
    on_iteration: Callable[[float], None] | None = None,
) -> list[float]:
    """Improve a partition in place until one more step gains at most ``tol`` of the inertia.

    With ``leave_one_out`` the rows first move by their distance to flats fitted without them.
    Such a move can raise the inertia, as can one to flats whose ranks are chosen anew; then it is
    undone, and the plain rule (the paper's) takes over. With fixed ranks the last step is a plain
    assignment without refitting, so that the final labels are the nearest flats; a budget would
    not be met after it.

    Parameters
    ----------
    partition : Partition
        Changed in place.
    leave_one_out : bool
        Whether to begin with that rule.
    max_iter : int
        Most fits of the subspaces, the first included.
    tol : float
        Relative gain at which a rule is exhausted.
    floor : float
        Inertia at which the fit counts as exact.
    on_iteration : callable, optional
        Called with the inertia after every refitting.

    Returns
    -------
    list of float
        Inertia at the start and after every refitting; never rises.
    """
    history = [partition.flats.inertia]
    while len(history) < max_iter and history[-1] > floor:
        labels, distances, refilled = partition.propose(
            partition.flats, leave_one_out=leave_one_out
        )
        is_priced = partition.flats.price > 0
        if not (leave_one_out or refilled or is_priced):
            gain = history[-1] - float(distances.sum(dtype=torch.float64))
            if gain <= tol * history[-1]:
                if partition.search_dtype != partition.rows.dtype:
                    break
                partition.labels = labels
                return history
        gain = partition.move(labels, only_if_better=True)
        if gain > 0:
            history.append(partition.flats.inertia)
            if on_iteration is not None:
                on_iteration(history[-1])
        if gain <= tol * history[-1]:
            if not leave_one_out:
                break
            leave_one_out = False
    if partition.flats.price == 0:
        partition.labels = assign(partition.rows, partition.flats)[0]
    return history


def assign(
    rows: Rows,
    flats: Flats,
    labels: Tensor | None = None,
    search_dtype: torch.dtype | None = None,
    loss: Loss | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each row's best flat and its weighted squared distance to it.

    Best is the flat of least weighted squared distance plus the price of the coefficients that
    the row stores there. The lower index wins a tie. With ``labels`` the distance to the row's
    own flat is the one left when the row is taken out. With a loss it takes the place of the
    square beside a price (without one the nearest flat is the best for every loss), and the
    squared distances that are returned have no weights.
    """
    best = torch.empty(len(rows), dtype=torch.int64, device=rows.table.device)
    distances = torch.empty(len(rows), dtype=rows.dtype, device=rows.table.device)
    measure = Distances(flats, search_dtype or rows.dtype)
    free = None if labels is None else freedom(rows, labels, flats)
    prices = flats.price * torch.tensor(flats.ranks, dtype=rows.dtype, device=best.device)
    for block in rows.blocks(rows.n_features + measure.width):
        data = rows.take(block)
        squared = measure(data)
        weights = None if rows.weights is None else rows.weights[block]
        if labels is not None and free is not None:
            own = labels[block, None]
            squared.scatter_(1, own, squared.gather(1, own) / free[block, None])
        costs = squared
        if flats.price > 0:
            costs = squared if loss is None else loss.value(squared)
            copies = 1.0 if rows.copies is None else rows.copies[block, None]
            costs = costs if weights is None else costs * weights[:, None]
            costs = costs + prices * copies
        best[block] = costs.argmin(1)
        distances[block] = squared.gather(1, best[block, None]).squeeze(1)
        if weights is not None and loss is None:
            distances[block] *= weights
    return best, distances


def _refill_empty(labels: Tensor, distances: Tensor, flats: Flats) -> bool:
    """Give every empty cluster the ``rank`` rows that lie farthest from their flats, in place.

    A flat passes through ``rank`` rows exactly, so this never raises the inertia. Rows that
    already lie on their flat do not move; without others the cluster stays empty.
    """
    counts = torch.bincount(labels, minlength=flats.n_clusters)
    scale = float(flats.eigenvalues.sum()) / len(labels)
    threshold = torch.finfo(distances.dtype).eps * scale
    refilled = False
    for cluster in (counts == 0).nonzero().squeeze(1).tolist():
        worst = distances.topk(min(flats.ranks[cluster], len(labels))).indices
        worst = worst[distances[worst] > 10 * threshold]
        if len(worst):
            labels[worst] = cluster
            distances[worst] = 0.0
            refilled = True
    return refilled
