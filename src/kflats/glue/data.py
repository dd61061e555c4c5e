"""GLUE data from the Hub or from a folder of parquet files in the same form."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kflats.errors import InputError, MissingExtraError
from kflats.glue.tasks import Task

HUB = "nyu-mll/glue"


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """The splits of a task.

    Attributes
    ----------
    train : datasets.Dataset
        Training rows.
    validation : dict of str to datasets.Dataset
        By the name of the split.
    digest : str
        SHA-256 of texts and labels, for results.
    official : bool
        Whether these are whole splits with as many training rows as the official one.
    source : str
        Where they came from.
    """

    train: Any
    validation: dict[str, Any]
    digest: str
    official: bool
    source: str


def load_data(task: Task, source: str = HUB) -> TaskData:
    """Return the data of a task.

    Parameters
    ----------
    task : Task
        Which task.
    source : str
        A name on the Hub, or a folder with ``<task>/<split>.parquet``. A file named
        ``<split>_partial.parquet`` stands for a part of the split, and the result says so.

    Raises
    ------
    InputError
        If a split is not there, with where it was looked for and both ways to get it.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "glue") from error
    splits = ("train", *task.validation)
    folder = Path(source).expanduser()
    if folder.is_dir():
        loaded, official = _from_folder(datasets, task, folder, splits)
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise _missing(task, source, "there is no such folder")
    else:
        try:
            loaded = {
                split: datasets.load_dataset(source, task.name, split=split, keep_in_memory=True)
                for split in splits
            }
        except (OSError, ValueError, RuntimeError) as error:
            raise _missing(task, source, str(error).splitlines()[0]) from error
        official = True
    for split, rows in loaded.items():
        _check(task, split, rows)
    return TaskData(
        train=loaded["train"],
        validation={split: loaded[split] for split in task.validation},
        digest=_digest(task, loaded),
        official=official,
        source=os.fspath(source),
    )


def _from_folder(
    datasets: Any, task: Task, folder: Path, splits: tuple[str, ...]
) -> tuple[dict[str, Any], bool]:
    found, official = {}, True
    for split in splits:
        whole = folder / task.name / f"{split}.parquet"
        part = folder / task.name / f"{split}_partial.parquet"
        path = whole if whole.is_file() else part
        if not path.is_file():
            raise _missing(task, str(folder), f"{whole} is missing")
        official = official and path is whole
        try:
            found[split] = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
        except Exception as error:  # datasets has no common class for damaged files
            why = error.__cause__ or error
            raise InputError(f"{path} cannot be read as parquet: {why}") from error
    return found, official and len(found["train"]) == task.train_size


def _missing(task: Task, source: str, why: str) -> InputError:
    return InputError(
        f"no data for {task.name!r} at {source!r}: {why}. Give a folder with "
        f"{task.name}/train.parquet and {task.name}/{task.validation[0]}.parquet (--data FOLDER), "
        f"or have the Hub in reach for {HUB!r} (pip install datasets, no HF_HUB_OFFLINE)."
    )


def _check(task: Task, split: str, rows: Any) -> None:
    wanted = {*task.columns, "label"}
    if not wanted <= set(rows.column_names) or not len(rows):
        raise InputError(
            f"{task.name}/{split} has {len(rows)} rows with the columns {rows.column_names}; "
            f"{sorted(wanted)} are needed."
        )
    names = getattr(rows.features["label"], "names", None)
    if names is not None and tuple(names) != task.labels:
        raise InputError(
            f"the labels of {task.name}/{split} are in the order {names}, not {task.labels}."
        )
    values = set(rows.unique("label"))
    most = task.num_labels - 1 if task.labels else 5
    allowed = values <= set(range(most + 1)) if task.labels else all(0 <= v <= 5 for v in values)
    if not allowed:
        raise InputError(
            f"{task.name}/{split} has the labels {sorted(values)[:9]}; 0 to {most} are allowed. "
            "Labels of -1 are hidden: use a training or validation split."
        )


def _digest(task: Task, splits: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, rows in sorted(splits.items()):
        digest.update(name.encode())
        for column in (*task.columns, "label"):
            for value in rows[column]:
                digest.update(str(value).encode() + b"\0")
    return digest.hexdigest()
