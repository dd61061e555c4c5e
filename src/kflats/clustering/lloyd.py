"""The alternation: assign rows to flats, refit the flats, until nothing is gained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kflats.clustering.flats import Flats
from kflats.clustering.rows import Moments, Rows


class Partition:
    """Rows split into clusters, with the flats fitted to them.

    Attributes
    ----------
    rows : Rows
        What is split.
    labels : Tensor of shape (n_samples,), int64
        Cluster of every row.
    flats : Flats
        Best flats for these labels.
    affine : bool
        Whether the flats have means.
    """

    def __init__(
        self, rows: Rows, labels: Tensor, *, n_clusters: int, rank: int, affine: bool
    ) -> None:
        self.rows = rows
        self.labels = labels
        self.affine = affine
        self._moments = Moments.of(rows, labels, n_clusters)
        self.flats = self._fit(rank)

    def _fit(self, rank: int) -> Flats:
        return Flats.fit(self._moments, rank, self.affine, self.rows.dtype)

    def move(self, labels: Tensor, *, only_if_better: bool = False) -> float:
        """Change the labels, refit the flats and return by how much the inertia fell.

        With ``only_if_better`` a move that gains nothing is undone.
        """
        self._moments.move(self.rows, self.labels, labels)
        candidate = self._fit(self.flats.rank)
        gain = self.flats.inertia - candidate.inertia
        if only_if_better and gain <= 0:
            self._moments.move(self.rows, labels, self.labels)
        else:
            self.labels, self.flats = labels, candidate
        return gain

    def propose(self, flats: Flats, *, leave_one_out: bool) -> tuple[Tensor, Tensor, bool]:
        """Return better labels, the rows' distances, and whether empty clusters were refilled."""
        labels, distances = assign(self.rows, flats, self.labels if leave_one_out else None)
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
    Such a move can raise the inertia; then it is undone, and the plain rule (the paper's) takes
    over. The last step is always a plain assignment without refitting, so that the final labels
    are the nearest flats.

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
        if not (leave_one_out or refilled):
            gain = history[-1] - float(distances.sum(dtype=torch.float64))
            if gain <= tol * history[-1]:
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
    partition.labels = assign(partition.rows, partition.flats)[0]
    return history


def assign(rows: Rows, flats: Flats, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return each row's best flat and its weighted squared distance to it.

    The lower index wins a tie. With ``labels`` the distance to the row's own flat is the one
    left when the row is taken out.
    """
    best = torch.empty(len(rows), dtype=torch.int64, device=rows.table.device)
    distances = torch.empty(len(rows), dtype=rows.dtype, device=rows.table.device)
    width = rows.n_features + flats.n_clusters * min(flats.rank, rows.n_features - flats.rank)
    for block in rows.blocks(width):
        data = rows.take(block)
        squared = flats.squared_distances(data)
        weights = None if rows.weights is None else rows.weights[block]
        if labels is not None:
            own = labels[block, None]
            freedom = flats.freedom(data, weights, labels[block])
            squared.scatter_(1, own, squared.gather(1, own) / freedom[:, None])
        distances[block], best[block] = squared.min(1)
        if weights is not None:
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
        worst = distances.topk(min(flats.rank, len(labels))).indices
        worst = worst[distances[worst] > 10 * threshold]
        if len(worst):
            labels[worst] = cluster
            distances[worst] = 0.0
            refilled = True
    return refilled
