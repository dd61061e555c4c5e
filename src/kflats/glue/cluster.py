"""The runs of a sweep as tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kflats.errors import InputError, MissingExtraError
from kflats.glue.attempt import Progress, Results, attempt, failure
from kflats.glue.protocol import Experiment
from kflats.glue.settings import Cell


def in_ray(address: str) -> Callable[..., Results]:
    """Return what runs the cells as tasks of a Ray cluster, each after its dense run.

    Every task has one CPU, and one GPU if the cluster has any.

    Parameters
    ----------
    address : str
        'local' starts a cluster on this machine; else what ``ray.init`` takes, such as 'auto'.

    Raises
    ------
    MissingExtraError
        If Ray is not installed.
    InputError
        If there is no such cluster, when the first run is asked for.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "cluster") from error

    def run(
        experiments: dict[str, Experiment],
        cells: list[tuple[Cell, str]],
        on_start: Progress | None,
        number: int,
        total: int,
    ) -> Results:
        _connect(ray, address)
        # Without retries: a run that was killed is recorded, and tried again by the next sweep.
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        remote = ray.remote(max_retries=0, num_gpus=gpus)(_attempt_after)
        shared = {name: ray.put(each) for name, each in experiments.items()}
        dense: dict[Cell, Any] = {}
        waiting: dict[Any, tuple[Cell, str]] = {}
        for cell, digest in cells:
            reference = remote.remote(shared[cell.task], cell, dense.get(cell.dense))
            waiting[reference] = (cell, digest)
            if cell.method == "dense":
                dense[cell] = reference
        while waiting:
            (ready,), _ = ray.wait(list(waiting))
            cell, digest = waiting.pop(ready)
            number += 1
            if on_start is not None:
                on_start(f"{cell.name} ended", number, total)
            yield cell, digest, _result(ready, experiments[cell.task], cell)

    return run


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, ignore_reinit_error=True)
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"no Ray cluster at {address!r}: {error}. Start one with `ray start --head`, or give "
            "'local'."
        ) from error


def _result(reference: Any, experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Return the result of a task, or the record of a failure that killed its process."""
    import ray

    try:
        return dict(ray.get(reference))
    except ray.exceptions.RayError as error:
        return failure(experiment, cell, error)


def _attempt_after(experiment: Experiment, cell: Cell, _: Any) -> dict[str, Any]:
    """Run a cell; Ray calls it when the result of the dense run, the last argument, is there."""
    return attempt(experiment, cell)
