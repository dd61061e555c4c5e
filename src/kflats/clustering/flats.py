"""k flats: fitting them to moments, distances of rows to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kflats.clustering.losses import Loss
from kflats.clustering.rows import Moments, Rows
from kflats.linalg import eigh_ascending

_MIN_FREEDOM = 1e-3
_MIN_SHARE = 1e-12


@dataclass(frozen=True)
class Flats:
    """Subspaces or flats, each with all its principal directions.

    Attributes
    ----------
    eigenvalues : Tensor of shape (n_clusters, n_features)
        Of the clusters' second moments, ascending, in the working dtype.
    eigenvectors : Tensor of shape (n_clusters, n_features, n_features)
        Columns, in the working dtype. The last ``ranks[c]`` span flat ``c``, the others its
        complement.
    means : Tensor of shape (n_clusters, n_features) or None
        Points of the flats (relative to ``Rows.shift``); None for linear subspaces.
    mass : Tensor of shape (n_clusters,)
        Weight of the rows they were fitted to.
    ranks : tuple of int
        Dimension of every flat.
    price : float
        What one coefficient of a row costs beside its squared distance; 0 where ranks are fixed.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    means: Tensor | None
    mass: Tensor
    ranks: tuple[int, ...] = ()
    price: float = 0.0

    @classmethod
    def fit(cls, moments: Moments, affine: bool, dtype: torch.dtype) -> Flats:
        """Return the best flats for the given moments (the paper's refitting step), without ranks.

        A cluster with fewer rows than its rank gets eigenvectors of eigenvalue zero to complete
        its basis; an empty one gets unit vectors.
        """
        mass = moments.mass.clamp_min(torch.finfo(torch.float64).tiny)
        if not affine:
            return cls(*eigh_ascending(moments.second.to(dtype)), None, mass.to(dtype))
        # Rows that came and went leave rounding behind, which is no mean.
        has_rows = mass > _MIN_SHARE * mass.sum()
        means = torch.where(has_rows[:, None], moments.first / mass[:, None], 0.0)
        centred = moments.second - means[:, :, None] * moments.first[:, None, :]
        values, vectors = eigh_ascending(((centred + centred.mT) / 2).to(dtype))
        return cls(values, vectors, means.to(dtype), mass.to(dtype))

    def with_ranks(self, ranks: Sequence[int], price: float = 0.0) -> Flats:
        """Return flats of other dimensions through the same principal directions."""
        return replace(self, ranks=tuple(ranks), price=price)

    @property
    def n_clusters(self) -> int:
        """Number of flats."""
        return self.eigenvalues.shape[0]

    @property
    def inertia(self) -> float:
        """Sum of squared distances of the fitted rows: the eigenvalues that are left out."""
        left_out = [self.left_out(cluster) for cluster in range(self.n_clusters)]
        return float(torch.cat(left_out).sum(dtype=torch.float64))

    @property
    def bases(self) -> Tensor:
        """Orthonormal rows, largest variance first, zeros beyond a flat's rank: (k, max, d)."""
        d = self.eigenvalues.shape[1]
        result = self.eigenvectors.new_zeros(self.n_clusters, max(self.ranks), d)
        for cluster, rank in enumerate(self.ranks):
            result[cluster, :rank] = self.directions(cluster).flip(1).T
        return result

    def left_out(self, cluster: int) -> Tensor:
        """Return the eigenvalues outside of a flat."""
        return self.eigenvalues[cluster, : self._codimension(cluster)]

    def directions(self, cluster: int) -> Tensor:
        """Return the columns that span a flat, the largest variance last."""
        return self.eigenvectors[cluster, :, self._codimension(cluster) :]

    def complement(self, cluster: int) -> Tensor:
        """Return the columns that span what is orthogonal to a flat."""
        return self.eigenvectors[cluster, :, : self._codimension(cluster)]

    def _codimension(self, cluster: int) -> int:
        return self.eigenvalues.shape[1] - self.ranks[cluster]

    def squared_residuals(self, members: Tensor, cluster: int) -> Tensor:
        """Return the squared distances of rows to one flat, without cancellation."""
        if self.means is not None:
            members = members - self.means[cluster]
        if self._codimension(cluster) < self.ranks[cluster]:
            residuals = members @ self.complement(cluster)
        else:
            directions = self.directions(cluster)
            residuals = members - (members @ directions) @ directions.T
        return residuals.square_().sum(1)


class Distances:
    """Squared distances of rows to all flats at once, as one matrix product.

    Works in a flat or in its complement, whichever has fewer dimensions. In the flat the result
    is a difference that cancels: good for choosing, not for reporting.

    Parameters
    ----------
    flats : Flats
        The flats.
    dtype : torch.dtype
        Of the product; bfloat16 is faster where the processor has it, and chooses as well.
    """

    def __init__(self, flats: Flats, dtype: torch.dtype) -> None:
        n_features = flats.eigenvalues.shape[1]
        k, self._dtype = flats.n_clusters, dtype
        self._inside = torch.tensor([2 * rank <= n_features for rank in flats.ranks])
        self._inside = self._inside.to(flats.eigenvalues.device)
        parts = [
            flats.directions(c) if 2 * flats.ranks[c] <= n_features else flats.complement(c)
            for c in range(k)
        ]
        self._widths = [part.shape[1] for part in parts]
        self._means = flats.means
        self._shift = None
        if flats.means is not None:
            pairs = zip(flats.means, parts, strict=True)
            self._shift = torch.cat([mean @ part for mean, part in pairs])
        self._directions = torch.cat(parts, 1).to(dtype)

    @property
    def width(self) -> int:
        """Numbers computed per row."""
        return self._directions.shape[1]

    def __call__(self, block: Tensor) -> Tensor:
        """Return the squared distance of every row to every flat, shape (rows, n_clusters)."""
        products = (block.to(self._dtype) @ self._directions).to(block.dtype)
        if self._shift is not None:
            products -= self._shift
        parts = products.square_().split(self._widths, 1)
        sums = torch.stack([part.sum(1) for part in parts], 1)
        norms = block.square().sum(1, keepdim=True)
        if self._means is not None:
            norms = norms - 2 * block @ self._means.T + self._means.square().sum(1)
        return torch.where(self._inside, (norms - sums).clamp_min_(0.0), sums)


def freedom(rows: Rows, labels: Tensor, flats: Flats) -> Tensor:
    """Return, per row, the share of its own distance that does not come from itself.

    A row pulls the flat of its own cluster towards itself. To first order in the eigenvalue gaps,
    taking the row out raises its squared distance by ``1 / (1 - h)`` with the leverage
    ``h = weight * (sum_i a_i**2 / (lambda_i - mean of the eigenvalues left out) + 1 / mass)``,
    ``a`` its coefficients; the second term is that of the mean and missing without one. The result
    is ``1 - h``, kept above 0.001.
    """
    leverage = torch.empty(len(rows), dtype=rows.dtype, device=labels.device)
    tiny = torch.finfo(rows.dtype).tiny
    for cluster, members in rows.members(labels, flats.n_clusters):
        data = rows.take(members)
        base = 0.0
        if flats.means is not None:
            data = data - flats.means[cluster]
            base = 1 / max(float(flats.mass[cluster]), tiny)
        left_out = flats.left_out(cluster)
        floor = left_out.mean() if len(left_out) else 0.0
        kept = flats.eigenvalues[cluster, len(left_out) :]
        scores = data @ (flats.directions(cluster) * (kept - floor).clamp_min(tiny).rsqrt())
        leverage[members] = scores.square_().sum(1) + base
    if rows.weights is not None:
        # A row of weight 0 may have any leverage, infinite too.
        leverage = torch.where(rows.weights > 0, leverage * rows.weights, 0.0)
    return (1 - leverage).clamp_(_MIN_FREEDOM, 1.0)


def own_distances(rows: Rows, labels: Tensor, flats: Flats) -> Tensor:
    """Return every row's squared distance to its own flat, from residuals that do not cancel."""
    squared = torch.empty(len(rows), dtype=rows.dtype, device=labels.device)
    for cluster, members in rows.members(labels, flats.n_clusters):
        squared[members] = flats.squared_residuals(rows.take(members), cluster)
    return squared


def exact_inertia(rows: Rows, labels: Tensor, flats: Flats, loss: Loss) -> Tensor:
    """Return the (weighted) loss of every cluster, accumulated in float64."""
    values = loss.value(own_distances(rows, labels, flats)).double()
    if rows.weights is not None:
        values *= rows.weights
    per_cluster = values.new_zeros(flats.n_clusters)
    return per_cluster.index_add_(0, labels, values)
