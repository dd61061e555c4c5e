"""Mean drops of a sweep: over tasks for each method and compression, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from kflats.glue.drops import Drop

Line = tuple[str, float, str]
"""Method, compression and stage."""
REFERENCE = "svd"


@dataclass(frozen=True, kw_only=True)
class MeanDrop:
    """The mean drop over tasks, and its spread over seeds.

    Attributes
    ----------
    method, compression, stage : as in :class:`kflats.glue.drops.Drop`
        Which line.
    mean, spread : float
        Mean over seeds, and standard deviation of the means of single seeds; the spread of one
        seed is None.
    lead : (float, float or None) or None
        How much less than SVD it lost, seed by seed on the same dense models: mean and standard
        deviation of the differences. None for SVD, and without SVD on the same tasks.
    tasks, seeds : tuples
        What the mean is over.
    """

    method: str
    compression: float
    stage: str
    mean: float
    spread: float | None
    lead: tuple[float, float | None] | None = None
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]


def learnt_tasks(found: Iterable[Drop]) -> set[str]:
    """Return the tasks that the dense models have learnt, so that something can be lost.

    Their mean over seeds is above the majority baseline (and above 0) at both stages. A single
    seed does not decide: leaving out the seeds on which a hard task failed would leave each stage
    and method with seeds of its own.
    """
    above: dict[tuple[str, str], dict[int, float]] = {}
    for drop in found:
        margin = drop.dense - max(0.0, drop.majority)
        above.setdefault((drop.task, drop.stage), {})[drop.seed] = margin
    failed = {task for (task, _), margins in above.items() if fmean(margins.values()) <= 0}
    return {task for task, _ in above} - failed


def mean_drops(found: Iterable[Drop]) -> list[MeanDrop]:
    """Return the mean over the learnt tasks for each method, compression and stage.

    A seed counts if it has every task that any seed of that line has, so that means are over the
    same tasks; a line without such a seed has no mean.
    """
    found = list(found)
    learnt = learnt_tasks(found)
    lines: dict[Line, dict[int, dict[str, float]]] = {}
    for drop in found:
        if drop.task in learnt and drop.dense > 0:
            seeds = lines.setdefault((drop.method, drop.compression, drop.stage), {})
            seeds.setdefault(drop.seed, {})[drop.task] = drop.percent
    means = {line: _by_seed(seeds) for line, seeds in sorted(lines.items())}
    return [
        _mean(line, tasks, by_seed, means.get((REFERENCE, *line[1:]), ((), {})))
        for line, (tasks, by_seed) in means.items()
        if by_seed
    ]


def _by_seed(seeds: dict[int, dict[str, float]]) -> tuple[tuple[str, ...], dict[int, float]]:
    """Return the tasks, and the mean over them for each seed that has them all."""
    tasks = tuple(sorted({task for each in seeds.values() for task in each}))
    whole = {seed: each for seed, each in seeds.items() if len(each) == len(tasks)}
    return tasks, {seed: fmean(whole[seed].values()) for seed in sorted(whole)}


def _mean(
    line: Line,
    tasks: tuple[str, ...],
    means: dict[int, float],
    reference: tuple[tuple[str, ...], dict[int, float]],
) -> MeanDrop:
    method, compression, stage = line
    comparable = method != REFERENCE and reference[0] == tasks
    common = sorted(means.keys() & reference[1].keys()) if comparable else []
    leads = [reference[1][seed] - means[seed] for seed in common]
    mean, spread = mean_and_spread(list(means.values()))
    return MeanDrop(
        method=method,
        compression=compression,
        stage=stage,
        mean=mean,
        spread=spread,
        lead=mean_and_spread(leads) if leads else None,
        tasks=tasks,
        seeds=tuple(means),
    )


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation; of one value there is no deviation."""
    return fmean(values), stdev(values) if len(values) > 1 else None
