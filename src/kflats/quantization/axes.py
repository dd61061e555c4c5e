"""Axes: coefficients of rows along the principal axes of their clusters, or as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from kflats.clustering import ProjectiveClustering
from kflats.errors import InputError
from kflats.factors.search import number_left_open
from kflats.linalg import row_blocks
from kflats.quantization.settings import CodeSettings

_LEAST_VARIANCE = 1e-10


class Axes:
    """Where the coefficients of rows lie, and how large they are.

    Parameters
    ----------
    rows : Tensor of shape (m, embedding_dim), float32
        What is coded.
    weights : Tensor of shape (m,)
        Weights of the squared errors.
    settings : CodeSettings
        The form.

    Attributes
    ----------
    labels : Tensor of shape (m,), int64
        Cluster of every row.
    means : list of Tensor of shape (embedding_dim,)
        Of each cluster.
    vectors : list of Tensor of shape (embedding_dim, embedding_dim) or None
        Principal axes of each cluster in their columns; None where columns stay as they are.
    variances : list of Tensor of shape (embedding_dim,)
        Of the coefficients, descending along principal axes.
    values : Tensor of shape (m, embedding_dim)
        Coefficients in units of their standard deviation.
    gains : Tensor of shape (m,)
        Root mean square of the coefficients of a row in these units, weighted by variance.
    """

    def __init__(self, rows: Tensor, weights: Tensor, settings: CodeSettings) -> None:
        self.settings = settings
        self.rows, self.weights = rows, weights
        self.labels = self._clusters()
        self.variances: list[Tensor] = []
        self.means: list[Tensor] = []
        self.vectors: list[Tensor | None] = []
        for cluster in range(settings.n_clusters):
            mine = self.labels == cluster
            self._fit_basis(rows[mine], weights[mine])
        self.values = self._project()
        self.gains = self._rough_gains()

    def _clusters(self) -> Tensor:
        k = self.settings.n_clusters
        if k == 1:
            return torch.zeros(len(self.rows), dtype=torch.int64, device=self.rows.device)
        rank = max(1, min(32, self.rows.shape[1] // 4))
        if rank == self.rows.shape[1]:  # one flat holds all rows, whatever rounding says
            raise InputError(f"n_clusters={k} leaves clusters empty; use 1.")
        fit = ProjectiveClustering(
            k, rank=rank, affine=True, n_init=1, random_state=self.settings.random_state
        )
        with number_left_open():  # what it would warn of is refused below
            fit.fit(self.rows, sample_weight=self.weights)
        used, labels = torch.unique(fit.labels_, return_inverse=True)
        if len(used) < k:
            raise InputError(f"n_clusters={k} leaves clusters empty; use {len(used)}.")
        found: Tensor = labels.to(self.rows.device)
        return found

    def _fit_basis(self, rows: Tensor, weights: Tensor) -> None:
        share = (weights / weights.sum().clamp_min(1e-30)).double()
        mean = (share @ rows.double()).float()
        moved = rows - mean
        if not self.settings.rotated:
            variances = (share @ moved.double().square()).float()
            self.vectors.append(None)
        else:
            moments = (moved.T * share.float()) @ moved
            found, vectors = torch.linalg.eigh(moments.double())
            variances = found.flip(0).float()
            self.vectors.append(vectors.flip(1).float())
        floor = variances.max().clamp_min(1e-30) * _LEAST_VARIANCE
        self.variances.append(variances.clamp_min(floor))
        self.means.append(mean)

    def _project(self) -> Tensor:
        """Return the coefficients in units of their standard deviation."""
        values = torch.empty_like(self.rows)
        for block in row_blocks(*self.rows.shape):
            for cluster, vectors in enumerate(self.vectors):
                mine = self.labels[block] == cluster
                part = self.rows[block][mine] - self.means[cluster]
                part = part if vectors is None else part @ vectors
                values[block][mine] = part / self.variances[cluster].sqrt()
        return values

    def _rough_gains(self) -> Tensor:
        power = torch.stack([v / v.sum() for v in self.variances])
        gains: Tensor = (self.values.square() * power[self.labels]).sum(1).sqrt().clamp_min(1e-12)
        return gains
