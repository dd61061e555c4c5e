"""The procedure of the authors' published code, written anew as a baseline for time and error.

What it does, as that code does: starts are random partitions; the distance of a row to a subspace
is the length of its projection on the null space of the basis, found by an SVD per subspace and
step; a subspace is refitted by a full SVD of its rows; the best of ten starts of ten steps is
kept; at the end every cluster is factored by one more SVD with all left singular vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import null_space

Array = np.ndarray[Any, np.dtype[Any]]


def fit(
    X: Array, n_clusters: int, rank: int, *, n_init: int = 10, n_steps: int = 10, seed: int = 0
) -> tuple[float, Array]:
    """Return the inertia and the labels of the best start."""
    random = np.random.default_rng(seed)
    best: tuple[float, Array] | None = None
    for _ in range(n_init):
        labels, cost = random.integers(n_clusters, size=len(X)), np.inf
        for _ in range(n_steps):
            labels, distances = _step(X, labels, n_clusters, rank)
            cost = float(distances.sum())
        if best is None or cost < best[0]:
            best = cost, labels
    if best is None:
        raise ValueError(f"n_init={n_init} must be at least 1.")
    return best


def factor(X: Array, labels: Array, n_clusters: int, rank: int) -> float:
    """Factor every cluster by a full SVD; return the squared error."""
    error = 0.0
    for cluster in range(n_clusters):
        rows = X[labels == cluster]
        U, S, Vh = np.linalg.svd(rows, full_matrices=True)
        approximation = (U[:, :rank] * S[:rank]) @ Vh[:rank]
        error += float(((rows - approximation).astype(np.float64) ** 2).sum())
    return error


def _step(X: Array, labels: Array, n_clusters: int, rank: int) -> tuple[Array, Array]:
    distances = np.empty((len(X), n_clusters))
    for cluster in range(n_clusters):
        basis = np.linalg.svd(X[labels == cluster], full_matrices=False)[2][:rank]
        distances[:, cluster] = ((X @ null_space(basis)) ** 2).sum(1)
    return distances.argmin(1), distances.min(1)
