"""k flats of one dimension: fitting them to moments, distances of rows to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kflats.clustering.rows import Moments, Rows
from kflats.linalg import by_cluster, eigh_ascending

_MIN_FREEDOM = 1e-3


@dataclass(frozen=True)
class Flats:
    """``n_clusters`` subspaces of dimension ``rank``, each with all its principal directions.

    Attributes
    ----------
    eigenvalues : Tensor of shape (n_clusters, n_features)
        Of the clusters' second moments, ascending, in the working dtype.
    eigenvectors : Tensor of shape (n_clusters, n_features, n_features)
        Columns, in the working dtype. The last ``rank`` span the flat, the others its complement.
    means : Tensor of shape (n_clusters, n_features) or None
        Points of the flats (relative to ``Rows.shift``); None for linear subspaces.
    rank : int
        Dimension of every flat.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    means: Tensor | None
    rank: int

    @classmethod
    def fit(cls, moments: Moments, rank: int, affine: bool, dtype: torch.dtype) -> Flats:
        """Return the best flats for the given moments (the paper's refitting step).

        A cluster with fewer rows than ``rank`` gets eigenvectors of eigenvalue zero to complete
        its basis; an empty one gets unit vectors.
        """
        if not affine:
            return cls(*eigh_ascending(moments.second.to(dtype)), None, rank)
        mass = moments.mass.clamp_min(torch.finfo(torch.float64).tiny)
        means = moments.first / mass[:, None]
        centred = moments.second - means[:, :, None] * moments.first[:, None, :]
        values, vectors = eigh_ascending(((centred + centred.mT) / 2).to(dtype))
        return cls(values, vectors, means.to(dtype), rank)

    def at_rank(self, rank: int) -> Flats:
        """Return flats of another dimension through the same principal directions."""
        return replace(self, rank=rank)

    @property
    def n_clusters(self) -> int:
        """Number of flats."""
        return self.eigenvalues.shape[0]

    @property
    def inertia(self) -> float:
        """Sum of squared distances of the fitted rows: the eigenvalues that are left out."""
        return float(self.eigenvalues[:, : self._codimension].sum(dtype=torch.float64))

    @property
    def bases(self) -> Tensor:
        """Orthonormal rows, the direction of largest variance first: (k, rank, n_features)."""
        return self.eigenvectors[:, :, self._codimension :].flip(2).mT.contiguous()

    @property
    def _codimension(self) -> int:
        return self.eigenvalues.shape[1] - self.rank

    def squared_distances(self, block: Tensor) -> Tensor:
        """Return the squared distance of every row to every flat, shape (rows, n_clusters).

        Works in the flat or in its complement, whichever has fewer dimensions. In the flat the
        result is a difference that cancels: good for choosing, not for reporting.
        """
        if self._codimension < self.rank:
            return self._norms(block, self.eigenvectors[:, :, : self._codimension])
        inside = self._norms(block, self.eigenvectors[:, :, self._codimension :])
        norms = block.square().sum(1, keepdim=True)
        if self.means is not None:
            norms = norms - 2 * block @ self.means.T + self.means.square().sum(1)
        return (norms - inside).clamp_min_(0.0)

    def squared_residuals(self, members: Tensor, cluster: int) -> Tensor:
        """Return the squared distances of rows to one flat, without cancellation."""
        if self.means is not None:
            members = members - self.means[cluster]
        if self._codimension < self.rank:
            residuals = members @ self.eigenvectors[cluster, :, : self._codimension]
        else:
            directions = self.eigenvectors[cluster, :, self._codimension :]
            residuals = members - (members @ directions) @ directions.T
        return residuals.square_().sum(1)

    def _norms(self, block: Tensor, directions: Tensor) -> Tensor:
        k, d, width = directions.shape
        products = block @ directions.permute(1, 0, 2).reshape(d, k * width)
        products = products.view(len(block), k, width)
        if self.means is not None:
            products -= torch.einsum("kd,kdw->kw", self.means, directions)
        return products.square_().sum(2)

    def freedom(self, block: Tensor, weights: Tensor | None, labels: Tensor) -> Tensor:
        """Return, per row, the share of its own distance that does not come from itself.

        A row pulls the flat of its own cluster towards itself. To first order in the eigenvalue
        gaps, taking the row out raises its squared distance by ``1 / (1 - h)`` with the leverage
        ``h = weight * sum_i a_i**2 / (lambda_i - mean of the eigenvalues left out)``, ``a`` its
        coefficients. The result is ``1 - h``, kept above 0.001.
        """
        left_out = self.eigenvalues[:, : self._codimension]
        floor = left_out.mean(1) if self._codimension else left_out.new_zeros(self.n_clusters)
        gaps = self.eigenvalues[:, self._codimension :] - floor[:, None]
        scales = gaps.clamp_min(torch.finfo(block.dtype).tiny).rsqrt().to(block.dtype)
        leverage = torch.empty(len(block), dtype=block.dtype, device=block.device)
        for cluster, positions in by_cluster(labels, self.n_clusters):
            members = block[positions]
            if self.means is not None:
                members = members - self.means[cluster]
            directions = self.eigenvectors[cluster, :, self._codimension :]
            scores = members @ (directions * scales[cluster])
            leverage[positions] = scores.square_().sum(1)
        if weights is not None:
            leverage *= weights
        return (1 - leverage).clamp_(_MIN_FREEDOM, 1.0)


def exact_inertia(rows: Rows, labels: Tensor, flats: Flats) -> Tensor:
    """Return the inertia of every cluster, from residuals that do not cancel, in float64."""
    per_cluster = torch.zeros(flats.n_clusters, dtype=torch.float64, device=labels.device)
    for block in rows.blocks(3 * rows.n_features):
        data = rows.take(block)
        weights = None if rows.weights is None else rows.weights[block]
        for cluster, positions in by_cluster(labels[block], flats.n_clusters):
            squared = flats.squared_residuals(data[positions], cluster)
            if weights is not None:
                squared *= weights[positions]
            per_cluster[cluster] += squared.sum(dtype=torch.float64)
    return per_cluster
