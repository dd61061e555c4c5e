"""The nine GLUE tasks as data: columns, labels, metrics, splits."""

from __future__ import annotations

from dataclasses import dataclass

from kflats.errors import InputError
from kflats.glue.names import nearest


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of GLUE (Wang et al., 2019), as ``nyu-mll/glue`` on the Hub has it.

    Attributes
    ----------
    name : str
        Name of the configuration on the Hub.
    columns : tuple of str
        One text column, or two for pairs.
    labels : tuple of str
        Names in the order of the integer labels; empty for regression (STS-B, 0 to 5).
    metrics : tuple of str
        Official metrics, names of :mod:`kflats.glue.metrics`.
    plotted : str
        The one that the paper plots; drops are counted in it.
    validation : tuple of str
        Validation splits; the first one is plotted. The test labels are not public.
    train_size : int
        Rows of the official training split.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    plotted: str
    validation: tuple[str, ...] = ("validation",)
    train_size: int

    @property
    def num_labels(self) -> int:
        """Outputs of the model: one for regression."""
        return len(self.labels) or 1


_ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
    task.name: task
    for task in (
        Task(
            name="cola",
            columns=("sentence",),
            labels=("unacceptable", "acceptable"),
            metrics=("matthews",),
            plotted="matthews",
            train_size=8551,
        ),
        Task(
            name="sst2",
            columns=("sentence",),
            labels=("negative", "positive"),
            metrics=("accuracy",),
            plotted="accuracy",
            train_size=67349,
        ),
        Task(
            name="mrpc",
            columns=("sentence1", "sentence2"),
            labels=("not_equivalent", "equivalent"),
            metrics=("f1", "accuracy"),
            plotted="f1",
            train_size=3668,
        ),
        Task(
            name="stsb",
            columns=("sentence1", "sentence2"),
            labels=(),
            metrics=("pearson", "spearman"),
            plotted="pearson",
            train_size=5749,
        ),
        Task(
            name="qqp",
            columns=("question1", "question2"),
            labels=("not_duplicate", "duplicate"),
            metrics=("f1", "accuracy"),
            plotted="f1",
            train_size=363846,
        ),
        Task(
            name="mnli",
            columns=("premise", "hypothesis"),
            labels=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            plotted="accuracy",
            validation=("validation_matched", "validation_mismatched"),
            train_size=392702,
        ),
        Task(
            name="qnli",
            columns=("question", "sentence"),
            labels=_ENTAILMENT,
            metrics=("accuracy",),
            plotted="accuracy",
            train_size=104743,
        ),
        Task(
            name="rte",
            columns=("sentence1", "sentence2"),
            labels=_ENTAILMENT,
            metrics=("accuracy",),
            plotted="accuracy",
            train_size=2490,
        ),
        Task(
            name="wnli",
            columns=("sentence1", "sentence2"),
            labels=_ENTAILMENT[::-1],
            metrics=("accuracy",),
            plotted="accuracy",
            train_size=635,
        ),
    )
}


def find_task(name: str) -> Task:
    """Return a task by name.

    Raises
    ------
    InputError
        Naming the nearest known task.
    """
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; {nearest(name, TASKS)}")
    return TASKS[name]
