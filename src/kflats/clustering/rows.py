"""The rows being clustered, and the second moments of each cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kflats.linalg import by_cluster, row_blocks, weighted_mean


@dataclass(frozen=True)
class Rows:
    """A table read block by block in the working dtype.

    Attributes
    ----------
    table : Tensor of shape (n_samples, n_features)
        Any floating dtype, on the device that computes.
    weights : Tensor of shape (n_samples,) or None
        Non-negative, in the working dtype.
    dtype : torch.dtype
        Working dtype, float32 or float64.
    shift : Tensor of shape (n_features,) or None
        Subtracted from every row that is read. Affine fits set it to the mean row, so that
        centring a cluster does not cancel when the data lie far from the origin.
    copies : Tensor of shape (n_samples,) or None
        How many rows of the whole table each row stands for, where these are a sample of it.
    """

    table: Tensor
    weights: Tensor | None
    dtype: torch.dtype
    shift: Tensor | None = None
    copies: Tensor | None = None

    @classmethod
    def of(cls, table: Tensor, weights: Tensor | None, dtype: torch.dtype, affine: bool) -> Rows:
        """Wrap ``table``, with the mean as ``shift`` for an affine fit."""
        shift = weighted_mean(table, weights, dtype) if affine else None
        return cls(table, weights, dtype, shift)

    def __len__(self) -> int:
        return self.table.shape[0]

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self.table.shape[1]

    def take(self, index: slice | Tensor) -> Tensor:
        """Return the chosen rows in the working dtype, less ``shift``."""
        rows = self.table[index].to(self.dtype)
        return rows if self.shift is None else rows - self.shift

    def subset(self, index: Tensor) -> Rows:
        """Return a copy of the chosen rows (and their weights)."""
        weights = None if self.weights is None else self.weights[index]
        copies = None if self.copies is None else self.copies[index]
        return Rows(self.table[index], weights, self.dtype, self.shift, copies)

    def counts(self, labels: Tensor, n_clusters: int) -> Tensor:
        """Return how many rows of the whole table each cluster has, float64."""
        copies = None if self.copies is None else self.copies.double()
        return torch.bincount(labels, copies, minlength=n_clusters).double()

    def members(
        self, labels: Tensor, n_clusters: int, index: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield each cluster with the places of its rows, in blocks.

        ``labels`` are those of all rows, or of the rows at ``index``.
        """
        for cluster, positions in by_cluster(labels, n_clusters):
            places = positions if index is None else index[positions]
            for block in row_blocks(len(places), 3 * self.n_features):
                yield cluster, places[block]

    def blocks(self, width: int) -> Iterator[slice]:
        """Yield slices sized for ``width`` working numbers per row."""
        return row_blocks(len(self), width)


class Moments:
    """Weighted zeroth, first and second moments of every cluster, in float64.

    Products are taken in the working dtype and summed over blocks in float64. When rows change
    cluster only those rows are read again.
    """

    def __init__(self, n_clusters: int, n_features: int, device: torch.device) -> None:
        self.mass = torch.zeros(n_clusters, dtype=torch.float64, device=device)
        self.first = self.mass.new_zeros(n_clusters, n_features)
        self.second = self.mass.new_zeros(n_clusters, n_features, n_features)

    @classmethod
    def of(cls, rows: Rows, labels: Tensor, n_clusters: int) -> Moments:
        """Compute the moments of a partition from scratch."""
        moments = cls(n_clusters, rows.n_features, rows.table.device)
        moments._add(rows, None, labels, 1.0)
        return moments

    def move(self, rows: Rows, old: Tensor, new: Tensor) -> None:
        """Update the moments from partition ``old`` to partition ``new``."""
        changed = (old != new).nonzero().squeeze(1)
        self._add(rows, changed, old[changed], -1.0)
        self._add(rows, changed, new[changed], 1.0)

    def _add(self, rows: Rows, index: Tensor | None, labels: Tensor, sign: float) -> None:
        for cluster, members in rows.members(labels, len(self.mass), index):
            block = rows.take(members)
            if rows.weights is None:
                weighted, mass = block, float(len(members))
            else:
                weights = rows.weights[members]
                weighted, mass = block * weights[:, None], float(weights.double().sum())
            self.second[cluster] += sign * (block.T @ weighted)
            self.first[cluster] += sign * weighted.sum(0, dtype=torch.float64)
            self.mass[cluster] += sign * mass
