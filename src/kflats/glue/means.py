"""Mean drops of a sweep: over tasks for each method and compression, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

from kflats.glue.drops import Drop


@dataclass(frozen=True, kw_only=True)
class MeanDrop:
    """The mean drop over tasks, and its spread over seeds.

    ``spread`` is the standard deviation of the means of single seeds; None for one seed.
    """

    method: str
    compression: float
    stage: str
    mean: float
    spread: float | None
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]


def mean_drops(found: Iterable[Drop]) -> list[MeanDrop]:
    """Return the mean over tasks for each method, compression and stage.

    A seed counts if it has every task that any seed of that line has, so that means are over the
    same tasks. Runs whose dense model is no better than the majority baseline, as on WNLI, are
    left out: there is nothing to lose.
    """
    lines: dict[tuple[str, float, str], dict[int, dict[str, float]]] = {}
    for drop in found:
        if drop.counts:
            line = lines.setdefault((drop.method, drop.compression, drop.stage), {})
            line.setdefault(drop.seed, {})[drop.task] = drop.percent
    return [_mean(key, seeds) for key, seeds in sorted(lines.items())]


def _mean(key: tuple[str, float, str], seeds: dict[int, dict[str, float]]) -> MeanDrop:
    tasks = sorted({task for each in seeds.values() for task in each})
    whole = {seed: each for seed, each in seeds.items() if len(each) == len(tasks)} or seeds
    means = [fmean(each.values()) for each in whole.values()]
    method, compression, stage = key
    return MeanDrop(
        method=method,
        compression=compression,
        stage=stage,
        mean=fmean(means),
        spread=stdev(means) if len(means) > 1 else None,
        tasks=tuple(tasks),
        seeds=tuple(sorted(whole)),
    )
