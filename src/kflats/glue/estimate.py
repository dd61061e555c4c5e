"""How long the open runs of a sweep take, from a few steps of the model on this machine."""

from __future__ import annotations

import time
from typing import Any

import torch

from kflats.glue.protocol import Experiment, new_model
from kflats.glue.settings import Cell

_SAMPLE = 64
_BACKWARD = 3.0  # forward and backward together, in forwards


def estimate_seconds(experiments: dict[str, Experiment], cells: list[Cell]) -> float:
    """Return about how many seconds the runs take one after another.

    One batch of the first task is put through the model; rows of the others are weighed by the
    length of their texts. Compressing is not counted: it is short beside training.
    """
    if not cells:
        return 0.0
    first = experiments[cells[0].task]
    model = new_model(first, cells[0]).eval()
    per_character = _seconds(model, first) / (_SAMPLE * _length(first))
    total = 0.0
    for cell in cells:
        experiment = experiments[cell.task]
        training = experiment.training
        rows = min(training.train_limit or len(experiment.data.train), len(experiment.data.train))
        epochs = training.extra_epochs + (training.epochs if cell.method == "dense" else 0)
        scored = 2 * sum(map(len, experiment.data.validation.values()))
        scored += 2 * min(training.score_limit or rows, rows)
        forwards = _BACKWARD * epochs * rows + scored
        total += forwards * _length(experiment) * per_character
    return total


def _texts(experiment: Experiment) -> list[str]:
    rows = experiment.data.train.select(range(min(_SAMPLE, len(experiment.data.train))))
    columns = [rows[column] for column in experiment.task.columns]
    return [" ".join(parts) for parts in zip(*columns, strict=True)]


def _length(experiment: Experiment) -> float:
    """Return the characters of a row on average."""
    texts = _texts(experiment)
    return sum(map(len, texts)) / len(texts)


def _seconds(model: Any, experiment: Experiment) -> float:
    from transformers import AutoTokenizer

    from kflats.models import resolve

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    tokenizer = AutoTokenizer.from_pretrained(resolve(experiment.sweep.model))
    texts = _texts(experiment)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    batch = batch.to(device)
    times = []
    with torch.no_grad():
        for _ in range(3):
            started = time.perf_counter()
            model(**batch)[0].cpu()  # waits for a GPU
            times.append(time.perf_counter() - started)
    return min(times) * _SAMPLE / len(texts)
