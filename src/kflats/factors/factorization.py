"""Factorization: the frozen result of factoring a table, and the ways to make one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from kflats.clustering import FitProgress, ProjectiveClustering
from kflats.clustering.projection import project
from kflats.clustering.rows import Rows
from kflats.factors.budget import Budget
from kflats.factors.measure import check_factors, norms_if_needed, squares
from kflats.factors.shape import FactorShape
from kflats.linalg import (
    by_cluster,
    check_table,
    echelon_form,
    row_blocks,
    scaled_norm,
    working_dtype,
)
from kflats.units import Unit
from kflats.weighting.metric import FeatureMetric

PAPER = {"init": "random", "n_init": 10, "assignment": "nearest", "tol": 0.0}
"""Options of :class:`ProjectiveClustering` that give the paper's own procedure."""


@dataclass(frozen=True, eq=False)
class Factorization:
    """``table[i] ~ coefficients[i] @ bases[labels[i]] (+ means[labels[i]])``.

    Clusters may differ in rank: coefficients and bases of the smaller ones end in zeros, which
    are neither counted nor stored.

    Attributes
    ----------
    coefficients : Tensor of shape (num_embeddings, max(ranks))
        ``U`` in the paper, in the dtype of the table.
    bases : Tensor of shape (n_clusters, max(ranks), embedding_dim)
        ``V`` in the paper; orthonormal rows, or in echelon form.
    labels : Tensor of shape (num_embeddings,), int64
        Subspace of every row; all zero for an SVD.
    means : Tensor of shape (n_clusters, embedding_dim) or None
        A point of every flat, for affine fits.
    squared_errors : Tensor of shape (n_clusters,), float64
        ``||A - A_hat||_F ** 2`` of the rows of each cluster, unweighted, of the stored factors.
        Infinite or 0 where the squares leave the range of float64; the relative errors are not.
    squared_norms : Tensor of shape (n_clusters,), float64
        ``||A||_F ** 2`` of the rows of each cluster, in the same way.
    ranks : tuple of int
        Dimension of every cluster.
    pivots : Tensor of shape (n_clusters, embedding_dim), bool, or None
        Where the bases are the identity (and the means zero), in echelon form; see
        :meth:`in_echelon_form`.
    norms : Tensor of shape (2, n_clusters), float64, or None
        Roots of the squared errors and norms in a unit of their own, where those could have left
        the range of float64; None for ordinary tables.

    Examples
    --------
    >>> import torch
    >>> table = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    >>> one = Factorization.svd(table, rank=8)
    >>> five = Factorization.projective(table, n_clusters=5, rank=8, random_state=0)
    >>> five.relative_error < one.relative_error
    True
    >>> five.reconstruct().shape
    torch.Size([200, 16])
    """

    coefficients: Tensor
    bases: Tensor
    labels: Tensor
    means: Tensor | None
    squared_errors: Tensor
    squared_norms: Tensor
    ranks: tuple[int, ...]
    pivots: Tensor | None = None
    norms: Tensor | None = None

    @classmethod
    def svd(
        cls,
        table: Tensor,
        rank: int,
        *,
        sample_weight: Tensor | None = None,
        affine: bool = False,
        device: str | torch.device | None = None,
    ) -> Self:
        """Return the best single subspace: the baseline of the paper.

        Computed from the eigenvectors of the (weighted) second moments, so the memory does not
        grow with the number of rows. Singular values below about 3e-4 of the largest lose
        accuracy in float32; give a float64 table where they matter.

        Parameters
        ----------
        table : Tensor of shape (num_embeddings, embedding_dim)
            Finite values of any floating dtype.
        rank : int
            Between 1 and ``embedding_dim``.
        sample_weight : Tensor of shape (num_embeddings,), optional
            Non-negative weights of the squared errors.
        affine : bool, default=False
            Subtract the mean first (principal component analysis).
        device : str or torch.device, optional
            Where to compute; None means where the table is.

        Raises
        ------
        InputError
            If the table is not a finite matrix or the rank is out of range.
        """
        return cls.projective(
            table, 1, rank, sample_weight=sample_weight, affine=affine, device=device
        )

    @classmethod
    def projective(
        cls,
        table: Tensor,
        n_clusters: int,
        rank: int | Sequence[int] | Budget,
        *,
        sample_weight: Tensor | None = None,
        random_state: int | None = 0,
        echelon: bool = False,
        metric: FeatureMetric | None = None,
        callback: Callable[[FitProgress], None] | None = None,
        **options: Any,
    ) -> Self:
        """Return ``n_clusters`` subspaces found by :class:`ProjectiveClustering`.

        Parameters
        ----------
        table : Tensor of shape (num_embeddings, embedding_dim)
            Finite values of any floating dtype.
        n_clusters : int
            ``k`` in the paper. With a budget, clusters that end up empty are left out.
        rank : int, list of int or Budget
            ``j`` in the paper: one for all, one each, or a budget for all together.
        sample_weight : Tensor of shape (num_embeddings,), optional
            Non-negative weights of the squared errors.
        random_state : int or None, default=0
            Seed.
        echelon : bool, default=False
            Whether to store, and to count in the budget, bases in echelon form.
        metric : FeatureMetric, optional
            Measures the errors that are minimised; those that are reported stay Euclidean. Bases
            are then orthonormal in the metric, not in the plain sense.
        callback : callable, optional
            Progress, see :class:`FitProgress`.
        **options
            Further parameters of :class:`ProjectiveClustering`.

        Raises
        ------
        InputError
            If the table is not a finite matrix, a size is out of range, or the dtype of the table
            cannot hold the factors.
        """
        check_table(table)
        unit, original = Unit.of(table), table.detach()
        table = unit.divide(original)
        estimator = ProjectiveClustering(
            n_clusters,
            rank=rank,
            random_state=random_state,
            echelon=echelon,
            callback=callback,
            **options,
        ).fit(table if metric is None else metric.apply(table), sample_weight=sample_weight)
        bases, labels, means = estimator.bases_, estimator.labels_, estimator.means_
        readers = None
        if metric is not None:
            readers = metric.transposed(bases)
            bases, means = metric.undo(bases), None if means is None else metric.undo(means)
        result = cls._projected(table, bases, labels, means, estimator.ranks_, readers)
        result = result.without_empty() if estimator.price_ else result
        result = result._in_echelon_form() if echelon else result
        return result.times(unit, original)

    @classmethod
    def from_subspaces(
        cls,
        table: Tensor,
        bases: Tensor,
        labels: Tensor,
        means: Tensor | None = None,
        *,
        ranks: Sequence[int] | None = None,
    ) -> Self:
        """Project the rows of ``table`` onto given subspaces and measure the error.

        Everything is stored in the dtype of ``table``; the errors are those of the stored values.
        Rows of a basis beyond its rank must be zero.
        """
        check_table(table)
        chosen = (bases.shape[1],) * len(bases) if ranks is None else ranks
        return cls._projected(table, bases, labels, means, chosen, None)._measured(table)

    @classmethod
    def _projected(
        cls,
        table: Tensor,
        bases: Tensor,
        labels: Tensor,
        means: Tensor | None,
        ranks: Sequence[int],
        readers: Tensor | None,
    ) -> Self:
        """Return factors whose errors are not measured yet.

        ``readers`` take the place of orthonormal bases in finding coefficients,
        ``(row - mean) @ reader.T``.
        """
        compute = working_dtype(table.dtype)
        wide_bases = bases.to(table.device, compute)
        wide_means = None if means is None else means.to(table.device, compute)
        wide_readers = wide_bases if readers is None else readers.to(wide_bases)
        rows = Rows(table, None, compute)
        empty = torch.zeros(len(bases), dtype=torch.float64)
        return cls(
            project(rows, labels.to(table.device), wide_readers, wide_means).to(table.dtype),
            bases.to(table),
            labels.to(table.device),
            None if means is None else means.to(table),
            empty,
            empty,
            tuple(ranks),
        )

    def in_echelon_form(self, table: Tensor) -> Self:
        """Return the same subspaces with bases that are the identity in some columns.

        A subspace of dimension j needs only ``j * (d - j)`` numbers then: a row's coefficients
        are the values it has in the pivot columns, and the mean is zero there.

        Parameters
        ----------
        table : Tensor of shape (num_embeddings, embedding_dim)
            What was factored, to measure the error of the values stored in its dtype.
        """
        return self._in_echelon_form()._measured(table)

    def times(self, unit: Unit, table: Tensor) -> Self:
        """Return the factors of ``table``, where these are of the table divided by a unit."""
        means = None if self.means is None else unit.multiply(self.means)
        coefficients = unit.multiply(self.coefficients)
        return replace(self, coefficients=coefficients, means=means)._measured(table)

    def _in_echelon_form(self) -> Self:
        compute = working_dtype(self.bases.dtype)
        coefficients = torch.zeros_like(self.coefficients)
        bases = torch.zeros_like(self.bases)
        means = None if self.means is None else torch.zeros_like(self.means)
        sizes = self.n_clusters, self.embedding_dim
        pivots = torch.zeros(sizes, dtype=torch.bool, device=self.bases.device)
        members = dict(by_cluster(self.labels, self.n_clusters))
        for cluster, rank in enumerate(self.ranks):
            old = self.bases[cluster, :rank].to(compute)
            pivots[cluster], new = echelon_form(old)
            mean = None if self.means is None else self.means[cluster].to(compute)
            bases[cluster, :rank] = new.to(bases.dtype)
            if cluster in members:
                places = members[cluster]
                values = self.coefficients[places, :rank].to(compute) @ old[:, pivots[cluster]]
                if mean is not None:
                    values += mean[pivots[cluster]]
                coefficients[places, :rank] = values.to(coefficients.dtype)
            if means is not None and mean is not None:
                means[cluster] = (mean - mean[pivots[cluster]] @ new).to(means.dtype)
                means[cluster, pivots[cluster]] = 0.0
        return replace(self, coefficients=coefficients, bases=bases, means=means, pivots=pivots)

    def without_empty(self) -> Self:
        """Return the same factors without the clusters that have no rows."""
        used, labels = torch.unique(self.labels, return_inverse=True)
        if len(used) == self.n_clusters:
            return self
        kept = used.cpu()
        ranks = tuple(self.ranks[cluster] for cluster in kept.tolist())
        return replace(
            self,
            coefficients=self.coefficients[:, : max(ranks)],
            bases=self.bases[used, : max(ranks)],
            labels=labels,
            means=None if self.means is None else self.means[used],
            squared_errors=self.squared_errors[kept],
            squared_norms=self.squared_norms[kept],
            norms=None if self.norms is None else self.norms[:, kept],
            ranks=ranks,
        )

    def _measured(self, table: Tensor) -> Self:
        check_factors(table, self.coefficients, self.bases, self.means)
        found = squares(table, self.reconstruct, self.labels, self.n_clusters)
        norms = norms_if_needed(table, self.reconstruct, self.labels, found)
        return replace(self, squared_errors=found[0], squared_norms=found[1], norms=norms)

    def reconstruct(self, rows: slice | None = None) -> Tensor:
        """Return the approximated table, or only the given rows of it.

        Returns
        -------
        Tensor of shape (num_embeddings, embedding_dim)
            In the dtype of the factors; products are taken in float32 at least.
        """
        chosen = slice(None) if rows is None else rows
        labels, coefficients = self.labels[chosen], self.coefficients[chosen]
        result = coefficients.new_empty(len(labels), self.bases.shape[2])
        compute = working_dtype(self.bases.dtype)
        for block in row_blocks(len(labels), 2 * self.bases.shape[2]):
            for cluster, members in by_cluster(labels[block], self.n_clusters):
                part = coefficients[block][members].to(compute) @ self.bases[cluster].to(compute)
                if self.means is not None:
                    part += self.means[cluster].to(compute)
                result[block][members] = part.to(result.dtype)
        return result

    @property
    def num_embeddings(self) -> int:
        """Rows ``n``."""
        return self.coefficients.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Columns ``d``."""
        return self.bases.shape[2]

    @property
    def n_clusters(self) -> int:
        """Subspaces ``k``."""
        return self.bases.shape[0]

    @property
    def rank(self) -> int:
        """Dimension ``j``, the largest where clusters differ."""
        return max(self.ranks)

    @property
    def shape(self) -> FactorShape:
        """The sizes, for parameter and byte counts."""
        return FactorShape(
            num_embeddings=self.num_embeddings,
            embedding_dim=self.embedding_dim,
            counts=tuple(torch.bincount(self.labels, minlength=self.n_clusters).tolist()),
            ranks=self.ranks,
            basis_ids=tuple(range(self.n_clusters)),
            affine=self.means is not None,
            echelon=self.pivots is not None,
        )

    @property
    def num_parameters(self) -> int:
        """Coefficients, bases and means: ``n * j + k * j * d`` for linear clusters of one rank."""
        return self.shape.num_parameters

    @property
    def num_bytes(self) -> int:
        """Bytes on disk in the dtype of the factors, labels included."""
        return self.shape.num_bytes(self.coefficients.dtype)

    @property
    def squared_relative_error(self) -> float:
        """``||A - A_hat||_F ** 2 / ||A||_F ** 2``; 0 is exact."""
        if self.norms is not None:
            return self.relative_error**2
        total = float(self.squared_norms.sum())
        error = float(self.squared_errors.sum())
        return error / total if total else float(error > 0)

    @property
    def relative_error(self) -> float:
        """``||A - A_hat||_F / ||A||_F`` (not squared)."""
        if self.norms is None:
            return float(self.squared_relative_error**0.5)
        error, norm = map(scaled_norm, self.norms)
        return error / norm if norm else float(error > 0)

    @property
    def cluster_relative_errors(self) -> Tensor:
        """The relative error of the rows of each cluster, shape (n_clusters,), float64."""
        if self.norms is not None:
            errors, norms = self.norms
            return torch.where(norms > 0, errors / norms, (errors > 0).double())
        floor = torch.finfo(torch.float64).tiny
        return (self.squared_errors / self.squared_norms.clamp_min(floor)).sqrt()
