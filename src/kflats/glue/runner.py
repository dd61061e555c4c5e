"""Running a sweep: what is done stays done, what fails is recorded, and the rest goes on."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kflats.glue.data import load_data
from kflats.glue.protocol import Experiment, run_cell
from kflats.glue.settings import Cell, Sweep
from kflats.glue.store import DENSE, is_done, write_json, write_result
from kflats.glue.tasks import find_task
from kflats.report.compression import provenance

Progress = Callable[[str, int, int], None]
_LIBRARIES = ("transformers", "accelerate", "datasets", "tokenizers", "numpy", "scipy")


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
        if _is_first_process():
            write_result(results, cell, digest, result)
        counts[result["status"]] += 1
        _wait_for_others()
    return Outcome(done=counts["done"], failed=counts["failed"], skipped=number)


def prepare(sweep: Sweep, results: Path) -> tuple[dict[str, Experiment], list[tuple[Cell, str]]]:
    """Return the data of every task, and the runs that are not done with their digests."""
    experiments = {}
    for name in sweep.tasks:
        task = find_task(name)
        experiments[name] = Experiment(
            sweep=sweep,
            task=task,
            data=load_data(task, sweep.data),
            checkpoints=(results / DENSE).absolute(),
        )
    left = []
    for cell in sweep.cells():
        digest = sweep.digest(cell, experiments[cell.task].data.digest)
        has_model = cell.method != "dense" or experiments[cell.task].checkpoint(cell).is_dir()
        if not is_done(results, cell, digest):
            left.append((cell, digest))
        elif not has_model and _is_needed(sweep, results, cell, experiments[cell.task]):
            left.append((cell, digest))  # its model was cleared away; it is the same again
    return experiments, left


def _is_needed(sweep: Sweep, results: Path, dense: Cell, experiment: Experiment) -> bool:
    followers = [each for each in sweep.cells() if each != dense and each.dense == dense]
    return not all(
        is_done(results, each, sweep.digest(each, experiment.data.digest)) for each in followers
    )


Results = Iterator[tuple[Cell, str, dict[str, Any]]]


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


def attempt(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Return the result of a run, or the record of its failure."""
    folder = experiment.checkpoint(cell)
    if cell.method == "dense" and folder.exists() and _is_first_process():
        shutil.rmtree(folder)  # of a run that did not end, or one that is repeated
    try:
        return {"status": "done", **run_cell(experiment, cell), **_context(experiment, cell)}
    except Exception as error:  # noqa: BLE001  whatever happens in a run must not stop the others
        return {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
            **_context(experiment, cell),
        }


def _context(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "model": experiment.sweep.model,
        "training": asdict(experiment.sweep.training_of(cell.task)),
        "data": {"source": Path(experiment.data.source).name, "sha256": experiment.data.digest},
        "provenance": provenance() | {name: version(name) for name in _LIBRARIES} | _hardware(),
    }


def _hardware() -> dict[str, str]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"cpus": str(os.cpu_count()), "gpu": gpu}


def _write_settings(sweep: Sweep, results: Path) -> None:
    """Keep the settings beside the results, without machine paths."""
    if _is_first_process():
        settings = asdict(sweep) | {"data": Path(sweep.data).name}
        write_json(results / "sweep.json", settings)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _wait_for_others() -> None:
    """Wait for the processes that ``accelerate launch`` or ``torchrun`` started."""
    if "RANK" in os.environ:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
