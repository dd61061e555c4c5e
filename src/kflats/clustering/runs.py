"""One seeded run of the clustering, and the best of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from numpy.random import RandomState
from torch import Tensor

from kflats.clustering import starts
from kflats.clustering.flats import Flats, exact_inertia
from kflats.clustering.lloyd import Partition, refine
from kflats.clustering.rows import Rows


@dataclass(frozen=True)
class FitProgress:
    """What the ``callback`` of ``ProjectiveClustering`` is told after every refitting.

    Attributes
    ----------
    run : int
        Index of the start, from 0.
    n_runs : int
        Number of starts.
    iteration : int
        Refittings in this run so far.
    inertia : float
        Inertia after the refitting.
    """

    run: int
    n_runs: int
    iteration: int
    inertia: float


@dataclass(frozen=True)
class Plan:
    """The checked parameters of a fit."""

    n_clusters: int
    rank: int
    init: str | Tensor
    n_init: int
    max_iter: int
    tol: float
    affine: bool
    leave_one_out: bool
    callback: Callable[[FitProgress], None] | None


@dataclass(frozen=True)
class Run:
    """The result of one start."""

    labels: Tensor
    flats: Flats
    history: list[float]
    cluster_inertia: Tensor

    @classmethod
    def of(cls, rows: Rows, labels: Tensor, flats: Flats, history: list[float]) -> Run:
        """Add the exact inertia to a finished partition."""
        return cls(labels, flats, history, exact_inertia(rows, labels, flats))

    @property
    def inertia(self) -> float:
        """Sum over the clusters."""
        return float(self.cluster_inertia.sum())


def best_run(rows: Rows, plan: Plan, random: RandomState) -> Run:
    """Run the plan from every start and return the run of lowest inertia, the first on a tie."""
    best: Run | None = None
    for index in range(plan.n_init):
        run = _run(rows, plan, random, index)
        if best is None or run.inertia < best.inertia:
            best = run
    if best is None:
        raise ValueError(f"n_init={plan.n_init} must be at least 1.")
    return best


def _run(rows: Rows, plan: Plan, random: RandomState, index: int) -> Run:
    partition = Partition(
        rows,
        _first_labels(rows, plan, random),
        n_clusters=plan.n_clusters,
        rank=plan.rank,
        affine=plan.affine,
    )
    count = 0

    def report(inertia: float) -> None:
        nonlocal count
        count += 1
        if plan.callback is not None:
            plan.callback(FitProgress(index, plan.n_init, count, inertia))

    if plan.n_clusters > 1 and isinstance(plan.init, str) and plan.init == "grown":
        starts.grow(partition)
    # The eigenvalues of all clusters sum to the squared norm of the rows.
    total = float(partition.flats.eigenvalues.sum(dtype=torch.float64))
    history = refine(
        partition,
        leave_one_out=plan.leave_one_out,
        max_iter=plan.max_iter,
        tol=plan.tol,
        floor=torch.finfo(rows.dtype).eps * total,
        on_iteration=report,
    )
    return Run.of(rows, partition.labels, partition.flats, history)


def _first_labels(rows: Rows, plan: Plan, random: RandomState) -> Tensor:
    if isinstance(plan.init, Tensor):
        return plan.init
    if plan.n_clusters == 1:
        return torch.zeros(len(rows), dtype=torch.int64, device=rows.table.device)
    if plan.init == "random":
        return starts.random_partition(rows, plan.n_clusters, random)
    return starts.spherical_kmeans(rows, plan.n_clusters, random)
