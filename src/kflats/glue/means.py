"""Mean drops of a sweep: over tasks for each method and compression, with the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from kflats.glue.drops import Drop

Line = tuple[str, float, str]
"""Method, compression and stage."""
Values = dict[str, dict[int, float]]
"""A number for each task and seed."""
REFERENCE = "svd"


@dataclass(frozen=True, kw_only=True)
class MeanDrop:
    """The mean drop over tasks, and its spread over seeds.

    Attributes
    ----------
    method, compression, stage : as in :class:`kflats.glue.drops.Drop`
        Which line.
    mean, spread : float
        See :func:`over_tasks`.
    lead : (float, float or None) or None
        How much less than SVD it lost, seed by seed on the same dense models, as mean and spread.
        None for SVD, and without SVD on the same tasks.
    num_bytes : float
        Of the compressed table, on average.
    tasks : dict of str to int
        What the mean is over: the learnt tasks with their numbers of seeds.
    """

    method: str
    compression: float
    stage: str
    mean: float
    spread: float | None
    lead: tuple[float, float | None] | None = None
    num_bytes: float
    tasks: dict[str, int]


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
    """Return the mean over the learnt tasks for each method, compression and stage."""
    found = list(found)
    learnt = learnt_tasks(found)
    lines: dict[Line, Values] = {}
    sizes: dict[Line, list[int]] = {}
    for drop in found:
        if drop.task in learnt and drop.dense > 0:
            line = (drop.method, drop.compression, drop.stage)
            lines.setdefault(line, {}).setdefault(drop.task, {})[drop.seed] = drop.percent
            sizes.setdefault(line, []).append(drop.num_bytes)
    return [
        _mean(line, values, lines.get((REFERENCE, *line[1:]), {}), fmean(sizes[line]))
        for line, values in sorted(lines.items())
    ]


def _mean(line: Line, values: Values, reference: Values, num_bytes: float) -> MeanDrop:
    method, compression, stage = line
    mean, spread = over_tasks([list(seeds.values()) for seeds in values.values()])
    leads = [
        [reference[task][seed] - value for seed, value in seeds.items() if seed in reference[task]]
        for task, seeds in values.items()
        if task in reference
    ]
    comparable = method != REFERENCE and len(leads) == len(values) and all(leads)
    return MeanDrop(
        method=method,
        compression=compression,
        stage=stage,
        mean=mean,
        spread=spread,
        lead=over_tasks(leads) if comparable else None,
        num_bytes=num_bytes,
        tasks={task: len(values[task]) for task in sorted(values)},
    )


def over_tasks(values: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Return the mean over tasks of the means over seeds, and its spread.

    The spread is the standard deviation that the mean over tasks has from one seed to the next. A
    seed means nothing from task to task, so the variances of the tasks add up, and tasks need not
    have the same seeds; a task with one seed leaves no spread.
    """
    means, spreads = zip(*map(mean_and_spread, values), strict=True)
    known = [spread**2 for spread in spreads if spread is not None]
    spread = math.sqrt(sum(known)) / len(values) if len(known) == len(values) else None
    return fmean(means), spread


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation; of one value there is no deviation."""
    return fmean(values), stdev(values) if len(values) > 1 else None
