"""First partitions: the paper's random one, spherical k-means, and growing ranks."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.random import RandomState
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from kflats.clustering.lloyd import Partition
from kflats.clustering.rows import Rows
from kflats.linalg import row_blocks

GROWTH = (1 / 8, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the rank at which a grown start assigns the rows, one after the other."""

_KMEANS_ROWS = (4096, 65536)


def random_partition(rows: Rows, n_clusters: int, random: RandomState) -> Tensor:
    """Put every row in a random cluster, all of nearly equal size (the paper's start)."""
    labels = random.permutation(np.arange(len(rows)) % n_clusters)
    return torch.from_numpy(labels).to(rows.table.device)


def spherical_kmeans(rows: Rows, n_clusters: int, random: RandomState) -> Tensor:
    """Cluster the directions of the rows with scikit-learn's k-means.

    The centres are found on a random eighth of the rows (at least 4,096, at most 65,536); then
    every row joins its nearest centre.
    """
    size = min(len(rows), max(_KMEANS_ROWS[0], min(len(rows) // 8, _KMEANS_ROWS[1])))
    chosen = np.arange(len(rows))
    if size < len(rows):
        chosen = np.sort(random.permutation(len(rows))[:size])
    index = torch.from_numpy(chosen).to(rows.table.device)
    weights = None if rows.weights is None else rows.weights[index].cpu().numpy()
    if weights is not None and np.count_nonzero(weights) < n_clusters:
        weights = None
    seed = random.randint(np.iinfo(np.int32).max)
    kmeans = KMeans(n_clusters, n_init=1, max_iter=10, random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct directions than clusters: the alternation refills or reports them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans.fit(_directions(rows.take(index)).cpu().numpy(), sample_weight=weights)
    centres = torch.from_numpy(kmeans.cluster_centers_).to(index.device, rows.dtype)
    labels = torch.empty(len(rows), dtype=torch.int64, device=index.device)
    for block in row_blocks(len(rows), 2 * rows.n_features):
        scores = _directions(rows.take(block)) @ centres.T - centres.square().sum(1) / 2
        labels[block] = scores.argmax(1)
    return labels


def grow(partition: Partition) -> None:
    """Move rows by flats of an eighth, a quarter and half of the rank, in place.

    Flats of low dimension see the coarse structure and have fewer poor optima.
    """
    for share in GROWTH:
        labels, _, _ = partition.propose(partition.coarse(share), leave_one_out=False)
        partition.move(labels)


def _directions(block: Tensor) -> Tensor:
    return torch.nn.functional.normalize(block, dim=1)
