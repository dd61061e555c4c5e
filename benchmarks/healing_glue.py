"""Four GLUE tasks of MiniLM in packed codes of 1.088 bits, before and after healing.

The dense model of each task is that of ``bytes_glue``. Healing reads unlabelled text (Brown), never
the rows of the task, so it moves the table on text of another kind than that it is scored on.
"""

from __future__ import annotations

import copy
from typing import Any

from benchmarks.bytes_glue import dense_models
from benchmarks.common import brown_counts, data_folder
from kflats import CompressionConfig, compress_, heal_
from kflats.glue.protocol import Work

BITS = 1.088
STEPS = 300


def measure() -> dict[str, Any]:
    """Measure every task with one rotation; counts and text are those of Brown."""
    brown = data_folder() / "text" / "brown.txt"
    texts = brown.read_text(encoding="utf-8").splitlines()
    results: dict[str, Any] = {}
    for experiment, cell, model in dense_models():
        work, teacher = Work(experiment, cell, model), copy.deepcopy(model)
        tokenizer = work.tokenizer
        config = CompressionConfig(bits=BITS, **brown_counts(tokenizer))
        compress_(model, config)
        before = _score(work, experiment)
        healing = heal_(model, texts, teacher=teacher, tokenizer=tokenizer, max_steps=STEPS)
        results[experiment.task.name] = {
            "before": before,
            "after": _score(work, experiment),
            "distance_before": round(healing.loss_before, 6),
            "distance_after": round(healing.loss_after, 6),
        }
        print(f"{experiment.task.name}: {results[experiment.task.name]}", flush=True)
    return results


def _score(work: Work, experiment: Any) -> float:
    split = work.scores()[experiment.task.validation[0]]
    return round(split[experiment.task.plotted], 2)
