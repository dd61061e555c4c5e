"""One run that must not stop the others: its result, or the record of its failure."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kflats.glue.protocol import Experiment, run_cell
from kflats.glue.settings import Cell
from kflats.report.compression import provenance

Progress = Callable[[str, int, int], None]
"""Called with the name of a run, its number, and the number of all."""
Results = Iterator[tuple[Cell, str, dict[str, Any]]]
"""Runs with their digests and results, as they end."""
_LIBRARIES = ("transformers", "accelerate", "datasets", "tokenizers", "numpy", "scipy")


def attempt(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Return the result of a run, or the record of its failure."""
    folder = experiment.checkpoint(cell)
    if cell.method == "dense" and is_first_process():
        for old in (folder, *folder.parent.glob(f".{folder.name}-*")):
            shutil.rmtree(old, ignore_errors=True)  # of a run that was killed, or is repeated
    try:
        return {"status": "done", **run_cell(experiment, cell), **_context(experiment, cell)}
    except Exception as error:  # noqa: BLE001  whatever happens in a run must not stop the others
        return failure(experiment, cell, error)


def failure(experiment: Experiment, cell: Cell, error: Exception) -> dict[str, Any]:
    """Return the record of a run that ended in this error."""
    return {
        "status": "failed",
        "error": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
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


def is_first_process() -> bool:
    """Return whether this process writes, of those that ``accelerate launch`` started."""
    return os.environ.get("RANK", "0") == "0"
