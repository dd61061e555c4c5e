"""One seeded run of the clustering, and the best of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from numpy.random import RandomState
from torch import Tensor

from kflats.clustering import starts
from kflats.clustering.coreset import coreset
from kflats.clustering.flats import Flats, exact_inertia
from kflats.clustering.lloyd import Partition, assign, refine
from kflats.clustering.losses import SQUARED, Loss
from kflats.clustering.lp import refine_lp
from kflats.clustering.plans import FitProgress, Plan
from kflats.clustering.robust import refine_robust
from kflats.clustering.rows import Rows
from kflats.errors import InputError


@dataclass(frozen=True)
class Run:
    """The result of one start."""

    labels: Tensor
    flats: Flats
    history: list[float]
    cluster_inertia: Tensor
    loss: Loss = SQUARED

    @classmethod
    def of(
        cls, rows: Rows, labels: Tensor, flats: Flats, history: list[float], loss: Loss = SQUARED
    ) -> Run:
        """Add the exact inertia to a finished partition."""
        return cls(labels, flats, history, exact_inertia(rows, labels, flats, loss), loss)

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
            plan = replace(plan, loss=run.loss)  # one scale for all starts
    if best is None:
        raise ValueError(f"n_init={plan.n_init} must be at least 1.")
    return best


def best_of_coreset(rows: Rows, plan: Plan, random: RandomState) -> Run:
    """Run the plan on a sample of the rows, then assign and refit all rows once."""
    k, size = plan.n_clusters, plan.coreset or len(rows)
    ids, sample = coreset(rows, size, rows.n_features // 2, random)
    if len(ids) < k:
        raise InputError(f"coreset={size} drew {len(ids)} distinct rows for n_clusters={k}.")
    init = plan.init[ids] if isinstance(plan.init, Tensor) else plan.init
    found = best_run(sample, replace(plan, init=init), random)
    labels = assign(rows, found.flats, search_dtype=plan.search_dtype)[0]
    partition = Partition(rows, labels, n_clusters=k, rule=plan.rule, affine=plan.affine)
    if partition.flats.price == 0:
        labels = assign(rows, partition.flats)[0]
    return Run.of(rows, labels, partition.flats, [partition.flats.inertia])


def _run(rows: Rows, plan: Plan, random: RandomState, index: int) -> Run:
    partition = Partition(
        rows,
        _first_labels(rows, plan, random),
        n_clusters=plan.n_clusters,
        rule=plan.rule,
        affine=plan.affine,
        search_dtype=plan.search_dtype,
    )
    count = 0

    def report(inertia: float) -> None:
        nonlocal count
        count += 1
        if plan.callback is not None:
            plan.callback(FitProgress(index, plan.n_init, count, inertia))

    if plan.n_clusters > 1 and isinstance(plan.init, str) and plan.init == "grown":
        starts.grow(partition)
    if plan.loss.is_squared:
        history = _refine(partition, plan, report)
        return Run.of(rows, partition.labels, partition.flats, history)
    descend = refine_lp if plan.loss.name == "lp" else refine_robust
    history, loss = descend(
        partition, plan.loss, max_iter=plan.max_iter, tol=plan.tol, on_iteration=report
    )
    run = Run.of(rows, partition.labels, partition.flats, history, loss)
    if partition.costs is None:
        return run
    costs = run.cluster_inertia.new_zeros(plan.n_clusters)
    costs.index_add_(0, partition.labels, partition.costs.double())
    return replace(run, cluster_inertia=costs)


def _refine(partition: Partition, plan: Plan, report: Callable[[float], None]) -> list[float]:
    # The eigenvalues of all clusters sum to the squared norm of the rows.
    total = float(partition.flats.eigenvalues.sum(dtype=torch.float64))
    return refine(
        partition,
        leave_one_out=plan.leave_one_out,
        max_iter=plan.max_iter,
        tol=plan.tol,
        floor=torch.finfo(partition.rows.dtype).eps * total,
        on_iteration=report,
    )


def _first_labels(rows: Rows, plan: Plan, random: RandomState) -> Tensor:
    if isinstance(plan.init, Tensor):
        return plan.init
    if plan.n_clusters == 1:
        return torch.zeros(len(rows), dtype=torch.int64, device=rows.table.device)
    if plan.init == "random":
        return starts.random_partition(rows, plan.n_clusters, random)
    return starts.spherical_kmeans(rows, plan.n_clusters, random)
