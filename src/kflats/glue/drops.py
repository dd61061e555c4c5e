"""What each compressed run of a sweep lost against its dense run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kflats.glue.settings import BY_BITS, Cell
from kflats.glue.tasks import TASKS

STAGES = {"before": "without fine-tuning", "after": "with fine-tuning"}
ENSEMBLE = "ensemble"
"""The line that takes, for each task, seed and compression, the k of the best training score."""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """What one compressed run lost.

    Attributes
    ----------
    task, seed : as in :class:`kflats.glue.settings.Cell`
        Which run.
    compression : float
        Share of the parameters that is removed; of integers and codes, of the bits of a parameter.
    method : str
        'svd', 'projective k = 3', 'int4', ..., or 'ensemble', with several methods 'ensemble of
        ...'.
    stage : {'before', 'after'}
        Before or after the extra epochs.
    score, dense, majority : float
        The plotted metric times 100, of the run, of the dense model at the same stage, and of
        always giving the most frequent answer.
    num_bytes : int
        Of the compressed table.
    """

    task: str
    seed: int
    compression: float
    method: str
    stage: str
    score: float
    dense: float
    majority: float
    num_bytes: int

    @property
    def percent(self) -> float:
        """Relative drop in per cent (paper, section 4); negative for a gain.

        NaN where the dense model itself scores nothing.
        """
        return 100 * (self.dense - self.score) / self.dense if self.dense > 0 else float("nan")


def plotted_score(result: dict[str, Any], stage: str) -> float:
    """Return the plotted metric on the first validation split."""
    task = TASKS[result["cell"]["task"]]
    return float(result[stage][task.validation[0]][task.plotted])


def reading_order(method: str) -> tuple[bool, bool, bool, str]:
    """Return what sorts methods: SVD, the other factors, their ensemble, integers and codes."""
    return method != "svd", method.startswith(BY_BITS), method.startswith(ENSEMBLE), method


def drops(results: Iterable[dict[str, Any]]) -> list[Drop]:
    """Return the drops of the finished compressed runs, with those of the ensemble.

    Runs whose dense run is not there or has failed have no drop, see :func:`orphans`.
    """
    done = [each for each in results if each["status"] == "done"]
    dense = {_key(each["cell"]): each for each in done if each["cell"]["method"] == "dense"}
    found = []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for each in done:
        cell = each["cell"]
        if cell["method"] == "dense":
            continue
        if _key(cell) not in dense:
            continue
        reference = dense[_key(cell)]
        found += [_drop(each, reference, Cell(**cell).label, stage) for stage in STAGES]
        if cell["method"] not in ("svd", *BY_BITS):
            groups.setdefault((*_key(cell), cell["compression"], cell["method"]), []).append(each)
    several = len({method for *_, method in groups}) > 1
    for (task, seed, _, method), runs in groups.items():
        if len(runs) > 1:
            name = f"{ENSEMBLE} of {method}" if several else ENSEMBLE
            found += [_drop(_best(runs, stage), dense[task, seed], name, stage) for stage in STAGES]
    return found


def orphans(results: Iterable[dict[str, Any]]) -> list[str]:
    """Return task and seed of finished compressed runs without their finished dense run."""
    done = [each["cell"] for each in results if each["status"] == "done"]
    dense = {_key(cell) for cell in done if cell["method"] == "dense"}
    return sorted({f"{task}, seed {seed}" for task, seed in {_key(c) for c in done} - dense})


def _key(cell: dict[str, Any]) -> tuple[str, int]:
    return cell["task"], cell["seed"]


def _drop(run: dict[str, Any], dense: dict[str, Any], method: str, stage: str) -> Drop:
    cell = run["cell"]
    task = TASKS[cell["task"]]
    return Drop(
        task=task.name,
        seed=cell["seed"],
        compression=_removed(run),
        method=method,
        stage=stage,
        score=plotted_score(run, stage),
        dense=plotted_score(dense, stage),
        majority=float(dense["majority"][task.validation[0]][task.plotted]),
        num_bytes=run["table"]["bytes_after"],
    )


def _removed(run: dict[str, Any]) -> float:
    """Return the compression; of integers and codes in terms of the dtype that the model had."""
    cell = Cell(**run["cell"])
    if cell.method not in BY_BITS:
        return cell.compression
    import torch

    return round(1 - cell.bits / torch.finfo(getattr(torch, run["table"]["dtype"])).bits, 6)


def _best(runs: list[dict[str, Any]], stage: str) -> dict[str, Any]:
    """Return the run of the best training score; of equals the one of fewest clusters."""

    def merit(run: dict[str, Any]) -> tuple[float, int]:
        cell = run["cell"]
        return run[f"train_{stage}"][TASKS[cell["task"]].plotted], -cell["n_clusters"]

    return max(runs, key=merit)
