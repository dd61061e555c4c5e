"""Factorization: the frozen result of factoring a table, and the ways to make one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from kflats.clustering import FitProgress, ProjectiveClustering
from kflats.linalg import by_cluster, check_table, row_blocks, working_dtype
from kflats.shape import FactorShape

PAPER = {"init": "random", "n_init": 10, "assignment": "nearest", "tol": 0.0}
"""Options of :class:`ProjectiveClustering` that give the paper's own procedure."""


@dataclass(frozen=True, eq=False)
class Factorization:
    """``table[i] ~ coefficients[i] @ bases[labels[i]] (+ means[labels[i]])``.

    Attributes
    ----------
    coefficients : Tensor of shape (num_embeddings, rank)
        ``U`` in the paper, in the dtype of the table.
    bases : Tensor of shape (n_clusters, rank, embedding_dim)
        ``V`` in the paper; orthonormal rows.
    labels : Tensor of shape (num_embeddings,), int64
        Subspace of every row; all zero for an SVD.
    means : Tensor of shape (n_clusters, embedding_dim) or None
        A point of every flat, for affine fits.
    squared_errors : Tensor of shape (n_clusters,), float64
        ``||A - A_hat||_F ** 2`` of the rows of each cluster, unweighted, of the stored factors.
    squared_norms : Tensor of shape (n_clusters,), float64
        ``||A||_F ** 2`` of the rows of each cluster.

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
        rank: int,
        *,
        sample_weight: Tensor | None = None,
        random_state: int | None = 0,
        callback: Callable[[FitProgress], None] | None = None,
        **options: Any,
    ) -> Self:
        """Return ``n_clusters`` subspaces found by :class:`ProjectiveClustering`.

        Parameters
        ----------
        table : Tensor of shape (num_embeddings, embedding_dim)
            Finite values of any floating dtype.
        n_clusters, rank : int
            ``k`` and ``j`` in the paper.
        sample_weight : Tensor of shape (num_embeddings,), optional
            Non-negative weights of the squared errors.
        random_state : int or None, default=0
            Seed.
        callback : callable, optional
            Progress, see :class:`FitProgress`.
        **options
            Further parameters of :class:`ProjectiveClustering`.

        Raises
        ------
        InputError
            If the table is not a finite matrix or a size is out of range.
        """
        check_table(table)
        table = table.detach()
        estimator = ProjectiveClustering(
            n_clusters, rank=rank, random_state=random_state, callback=callback, **options
        ).fit(table, sample_weight=sample_weight)
        return cls.from_subspaces(table, estimator.bases_, estimator.labels_, estimator.means_)

    @classmethod
    def from_subspaces(
        cls, table: Tensor, bases: Tensor, labels: Tensor, means: Tensor | None = None
    ) -> Self:
        """Project the rows of ``table`` onto given subspaces and measure the error.

        Everything is stored in the dtype of ``table``; the errors are those of the stored values.
        """
        compute = working_dtype(table.dtype)
        wide_bases = bases.to(table.device, compute)
        wide_means = None if means is None else means.to(table.device, compute)
        coefficients = table.new_empty(table.shape[0], bases.shape[1])
        for block in row_blocks(table.shape[0], 2 * table.shape[1]):
            rows = table[block].to(compute)
            for cluster, members in by_cluster(labels[block], len(bases)):
                centred = rows[members]
                if wide_means is not None:
                    centred = centred - wide_means[cluster]
                coefficients[block][members] = (centred @ wide_bases[cluster].T).to(table.dtype)
        empty = torch.zeros(len(bases), dtype=torch.float64)
        result = cls(
            coefficients,
            bases.to(table),
            labels.to(table.device),
            None if means is None else means.to(table),
            empty,
            empty,
        )
        return result._measured(table)

    def _measured(self, table: Tensor) -> Self:
        errors = torch.zeros(self.n_clusters, dtype=torch.float64, device=table.device)
        norms = torch.zeros_like(errors)
        for block in row_blocks(table.shape[0], 4 * table.shape[1]):
            rows = table[block].to(torch.float64)
            difference = rows - self.reconstruct(block).to(torch.float64)
            errors.index_add_(0, self.labels[block], difference.square().sum(1))
            norms.index_add_(0, self.labels[block], rows.square().sum(1))
        return type(self)(
            self.coefficients, self.bases, self.labels, self.means, errors.cpu(), norms.cpu()
        )

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
        """Dimension ``j``."""
        return self.bases.shape[1]

    @property
    def shape(self) -> FactorShape:
        """The sizes, for parameter and byte counts."""
        return FactorShape.uniform(
            self.num_embeddings,
            self.embedding_dim,
            n_clusters=self.n_clusters,
            rank=self.rank,
            affine=self.means is not None,
            counts=tuple(torch.bincount(self.labels, minlength=self.n_clusters).tolist()),
        )

    @property
    def num_parameters(self) -> int:
        """``n * j + k * j * d``, plus ``k * d`` with means."""
        return self.shape.num_parameters

    @property
    def num_bytes(self) -> int:
        """Bytes on disk in the dtype of the factors, labels included."""
        return self.shape.num_bytes(self.coefficients.dtype)

    @property
    def squared_relative_error(self) -> float:
        """``||A - A_hat||_F ** 2 / ||A||_F ** 2``; 0 is exact."""
        total = float(self.squared_norms.sum())
        error = float(self.squared_errors.sum())
        return error / total if total else float(error > 0)

    @property
    def relative_error(self) -> float:
        """``||A - A_hat||_F / ||A||_F`` (not squared)."""
        return float(self.squared_relative_error**0.5)

    @property
    def cluster_relative_errors(self) -> Tensor:
        """The relative error of the rows of each cluster, shape (n_clusters,), float64."""
        floor = torch.finfo(torch.float64).tiny
        return (self.squared_errors / self.squared_norms.clamp_min(floor)).sqrt()
