"""Running a sweep: what is done stays done, what fails is recorded, and the rest goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from kflats.glue.attempt import Progress, Results, attempt, is_first_process
from kflats.glue.data import load_data
from kflats.glue.protocol import Experiment, check_model
from kflats.glue.settings import Cell, Sweep
from kflats.glue.store import (
    DENSE,
    RUNS,
    SETTINGS,
    is_done,
    other_settings,
    read_json,
    write_json,
    write_result,
)
from kflats.glue.tasks import find_task


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call of :func:`run_sweep` did: numbers of runs."""

    done: int
    skipped: int
    failed: int


def run_sweep(
    sweep: Sweep,
    results: Path,
    *,
    ray_address: str | None = None,
    on_start: Progress | None = None,
) -> Outcome:
    """Do every run of a sweep that is not done yet.

    Each run ends in one JSON file. Stopped at any moment and started again, it repeats only the
    run it was in. A failed run is recorded and tried again the next time.

    Parameters
    ----------
    sweep : Sweep
        Settings.
    results : Path
        Folder for results and fine-tuned dense models; with Ray, one that all machines share.
    ray_address : str, optional
        A Ray cluster ('auto', 'local' or an address); None runs in this process.
    on_start : callable, optional
        Called with the name of a run, its number and the number of all before it starts.

    Raises
    ------
    InputError
        If data is missing or results of other settings are in the folder: before anything runs.
    """
    experiments, open_cells = prepare(sweep, results)
    total = len(sweep.cells())
    _write_settings(sweep, results)
    work: Callable[..., Results] = _here
    if ray_address is not None:
        from kflats.glue.cluster import in_ray

        work = in_ray(ray_address)
    counts = {"done": 0, "failed": 0}
    number = total - len(open_cells)
    for cell, digest, result in work(experiments, open_cells, on_start, number, total):
        # A dense run that is repeated for its model alone keeps the result that others refer to.
        if is_first_process() and not is_done(results, cell, digest):
            write_result(results, cell, digest, result)
        counts[result["status"]] += 1
        _wait_for_others()
    return Outcome(done=counts["done"], failed=counts["failed"], skipped=number)


def prepare(sweep: Sweep, results: Path) -> tuple[dict[str, Experiment], list[tuple[Cell, str]]]:
    """Return the data of every task, and the runs that are not done with their digests."""
    check_model(sweep.model)
    experiments = {}
    for name in sweep.tasks:
        task = find_task(name)
        experiments[name] = Experiment(
            sweep=sweep,
            task=task,
            data=load_data(task, sweep.data),
            checkpoints=(results / DENSE).absolute(),
        )
    _check_folder(results, sweep, experiments)
    left = []
    for cell in sweep.cells():
        digest = sweep.digest(cell, experiments[cell.task].data.digest)
        has_model = cell.method != "dense" or experiments[cell.task].checkpoint(cell).is_dir()
        if not is_done(results, cell, digest):
            left.append((cell, digest))
        elif not has_model and _is_needed(sweep, results, cell, experiments[cell.task]):
            left.append((cell, digest))  # its model was cleared away; it is the same again
    return experiments, left


def _check_folder(results: Path, sweep: Sweep, experiments: dict[str, Experiment]) -> None:
    """Refuse a folder with results that cannot stand in one table with those of the sweep."""
    for path in sorted((results / RUNS).glob("*.json")):
        found = read_json(path)
        experiment = experiments.get(found["cell"]["task"])
        if found.get("status") != "done":
            continue
        fits = found["model"] == sweep.model
        if experiment is not None:
            fits &= found["training"] == asdict(experiment.training)
            fits &= found["data"]["sha256"] == experiment.data.digest
        if not fits:
            raise other_settings(path)


def _is_needed(sweep: Sweep, results: Path, dense: Cell, experiment: Experiment) -> bool:
    followers = [each for each in sweep.cells() if each != dense and each.dense == dense]
    return not all(
        is_done(results, each, sweep.digest(each, experiment.data.digest)) for each in followers
    )


def _here(
    experiments: dict[str, Experiment],
    cells: list[tuple[Cell, str]],
    on_start: Progress | None,
    number: int,
    total: int,
) -> Results:
    for offset, (cell, digest) in enumerate(cells, start=1):
        if on_start is not None:
            on_start(cell.name, number + offset, total)
        yield cell, digest, attempt(experiments[cell.task], cell)


def _write_settings(sweep: Sweep, results: Path) -> None:
    """Keep the settings beside the results, without machine paths."""
    if is_first_process():
        settings = asdict(sweep) | {"data": Path(sweep.data).name}
        write_json(results / SETTINGS, settings)


def _wait_for_others() -> None:
    """Wait for the processes that ``accelerate launch`` or ``torchrun`` started."""
    if "RANK" in os.environ:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
