"""Rows to coefficients in the basis of their cluster, and back."""

from __future__ import annotations

from torch import Tensor

from kflats.clustering.rows import Rows
from kflats.linalg import by_cluster


def project(rows: Rows, labels: Tensor, bases: Tensor, means: Tensor | None) -> Tensor:
    """Return ``(x - mean) @ basis.T`` for every row, shape (n_samples, bases.shape[1])."""
    result = bases.new_empty(len(rows), bases.shape[1])
    for cluster, members in rows.members(labels, len(bases)):
        data = rows.table[members].to(rows.dtype)
        if means is not None:
            data = data - means[cluster]
        result[members] = data @ bases[cluster].T
    return result


def place(coefficients: Tensor, labels: Tensor, bases: Tensor, means: Tensor | None) -> Tensor:
    """Return ``coefficients @ basis + mean`` for every row, shape (n_samples, n_features)."""
    result = coefficients.new_empty(len(labels), bases.shape[2])
    for cluster, positions in by_cluster(labels, len(bases)):
        result[positions] = coefficients[positions] @ bases[cluster]
    return result if means is None else result + means[labels]
