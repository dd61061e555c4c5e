"""Scores of predictions, times 100, by the implementations of scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kflats.errors import InputError
from kflats.glue.tasks import Task

Values = NDArray[Any]


def _accuracy(labels: Values, found: Values) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, found))


def _f1(labels: Values, found: Values) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, found, zero_division=0.0))


def _matthews(labels: Values, found: Values) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, found))


def _pearson(labels: Values, found: Values) -> float:
    from scipy.stats import pearsonr

    return 0.0 if np.ptp(found) == 0 else float(pearsonr(labels, found).statistic)


def _spearman(labels: Values, found: Values) -> float:
    from scipy.stats import spearmanr

    return 0.0 if np.ptp(found) == 0 else float(spearmanr(labels, found).statistic)


METRICS: dict[str, Callable[[Values, Values], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""``f1`` is that of the label 1, as GLUE counts it for MRPC and QQP."""


def scores(task: Task, logits: Values, labels: Values) -> dict[str, float]:
    """Return the metrics of a task, times 100.

    A constant prediction has no correlation: it scores 0.

    Parameters
    ----------
    task : Task
        Which metrics.
    logits : array of shape (n, num_labels)
        Outputs of the model; the largest is the predicted label, for regression the only one the
        value.
    labels : array of shape (n,)
        Gold labels.

    Raises
    ------
    InputError
        If labels are hidden (-1, as in the test splits) or the outputs are not finite.
    """
    if not task.labels:
        found: Values = np.asarray(logits, dtype=np.float64).reshape(-1)
    else:
        found = np.asarray(logits).argmax(-1)
    labels = np.asarray(labels)
    if bool((labels < 0).any()):
        raise InputError(
            f"{int((labels < 0).sum())} of {len(labels)} labels of {task.name} are -1: hidden, as "
            "in the test splits of GLUE. Score a validation split."
        )
    if not np.isfinite(np.asarray(logits, dtype=np.float64)).all():
        raise InputError(
            f"the model gave NaN or infinity on {task.name}: training diverged; lower the rate."
        )
    return {name: 100 * METRICS[name](labels, found) for name in task.metrics}


def majority_scores(task: Task, train_labels: Values, labels: Values) -> dict[str, float]:
    """Return the scores of always answering the most frequent training label (or the mean)."""
    if not task.labels:
        return scores(task, np.full((len(labels), 1), np.mean(train_labels)), labels)
    counts = np.bincount(np.asarray(train_labels), minlength=task.num_labels)
    return scores(task, np.tile(counts, (len(labels), 1)), labels)
