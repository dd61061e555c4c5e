"""Four GLUE tasks of MiniLM against the bytes of its token table, without training after it.

The dense model of each task is fine-tuned as in ``kflats glue run minilm-small`` (seed 0), or taken
from the results of that command in ``KFLATS_GLUE``; then its table is replaced.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import brown_counts, data_folder
from kflats import CompressionConfig
from kflats.glue.protocol import Work, load_dense, run_cell
from kflats.glue.runner import prepare
from kflats.glue.settings import Sweep
from kflats.planning.candidates import Candidate, Candidates
from kflats.planning.plan import standing_in
from kflats.tables import find_tables

TASKS = ("mrpc", "rte", "stsb", "cola")
BITS = (4.032, 2.08, 1.088, 0.544)
"""Bits per parameter: 12.6, 6.5, 3.4 and 1.7 % of float32."""
WITH_RIVALS = (2.08, 1.088, 0.544)
"""Where factors of floats and the vector codes of faiss are measured too."""


def measure() -> dict[str, Any]:
    """Measure every task; counts are those of Brown."""
    found = {each.task.name: _task(each, cell, model) for each, cell, model in dense_models()}
    names = list(dict.fromkeys(row for rows in found.values() for row in rows))
    shared = [name for name in names if all(name in rows for rows in found.values())]
    mean = {name: sum(rows[name]["score"] for rows in found.values()) for name in shared}
    return {**found, "mean score": {name: round(mean[name] / len(TASKS), 2) for name in shared}}


def dense_models() -> Iterator[tuple[Any, Any, Any]]:
    """Yield the experiment of each task, its dense run and the model that this has fine-tuned."""
    sweep = Sweep.from_toml(
        "minilm-small", data=str(data_folder() / "glue"), tasks=TASKS, seeds=(0,)
    )
    with tempfile.TemporaryDirectory() as place:
        experiments, _ = prepare(sweep, Path(os.environ.get("KFLATS_GLUE", place)))
        dense = {cell.task: cell.dense for cell in sweep.cells()}
        for name in TASKS:
            experiment, cell = experiments[name], dense[name]
            if not experiment.checkpoint(cell).is_dir():
                run_cell(experiment, cell)
            yield experiment, cell, load_dense(experiment.checkpoint(cell))


def _task(experiment: Any, cell: Any, model: Any) -> dict[str, Any]:
    work, weight = Work(experiment, cell, model), find_tables(model)[0].weight
    counts = brown_counts(work.tokenizer)

    def row(candidate: Candidate | None) -> dict[str, Any]:
        with standing_in(weight, weight.detach().clone() if candidate is None else candidate.table):
            split = work.scores()[experiment.task.validation[0]]
        size = weight.numel() * 4 if candidate is None else candidate.num_bytes
        return {"score": round(split[experiment.task.plotted], 2), "bytes": size}

    rows = {"dense": row(None)}
    for bits in BITS:
        config = CompressionConfig(bits=bits, **counts)
        candidates = Candidates(weight, config)
        if "fp16, absmax" not in rows:
            rows |= {each.name: row(each) for each in candidates.references()}
        for each in candidates.at(
            config.code_bytes(weight.numel()), everything=bits in WITH_RIVALS
        ):
            rows[f"{bits:g} bits: {each.name}"] = row(each)
    print(f"{experiment.task.name}: {rows}", flush=True)
    return rows
