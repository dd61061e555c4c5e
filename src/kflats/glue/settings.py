"""The settings of a sweep: TOML files that hold what differs from the defaults."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from kflats.errors import InputError
from kflats.glue.names import nearest
from kflats.glue.tasks import find_task

METHODS = ("svd", "projective", "messi", "flats")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is fine-tuned; the names are those of transformers' TrainingArguments.

    Attributes
    ----------
    epochs : float
        Epochs of the dense model on the task.
    extra_epochs : float
        Epochs after compression; the dense model gets them too (paper, section 4: 2).
    batch_size, learning_rate, extra_learning_rate, weight_decay, warmup_ratio : numbers
        ``extra_learning_rate`` is that of the extra epochs.
    max_length : int
        Tokens per text or pair.
    train_limit, score_limit : int or None
        Use only so many training rows; score only so many of them to choose k.
    mixed_precision : {'no', 'bf16', 'fp16'} or None
        Of training and scoring; None leaves it to ``accelerate launch`` ('no' without it).
    """

    epochs: float = 3.0
    extra_epochs: float = 2.0
    batch_size: int = 32
    learning_rate: float = 2e-5
    extra_learning_rate: float = 2e-5
    weight_decay: float = 0.0
    warmup_ratio: float = 0.06
    max_length: int = 128
    train_limit: int | None = None
    score_limit: int | None = 2000
    mixed_precision: str | None = None

    def __post_init__(self) -> None:
        if self.mixed_precision not in (None, *PRECISIONS):
            raise InputError(
                f"mixed_precision={self.mixed_precision!r} is unknown; "
                f"{nearest(str(self.mixed_precision), PRECISIONS)}"
            )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    A dense run (``method`` 'dense', nothing removed) trains the model that the compressed runs of
    its task and seed start from.
    """

    task: str
    seed: int
    method: str = "dense"
    compression: float = 0.0
    n_clusters: int = 1

    @property
    def name(self) -> str:
        """File name of the result, without its end."""
        base = f"{self.task}-seed{self.seed}"
        if self.method == "dense":
            return f"{base}-dense"
        return f"{base}-{self.method}-k{self.n_clusters}-c{round(100 * self.compression):02d}"

    @property
    def dense(self) -> Cell:
        """The dense run of the same task and seed."""
        return Cell(task=self.task, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All runs of an experiment.

    Attributes
    ----------
    model : str
        Folder, Hub name or 'minilm'.
    data : str
        Hub name or folder, see :func:`kflats.glue.data.load_data`.
    tasks, methods, compressions, n_clusters, seeds : tuples
        Their product is swept; 'svd' has one cluster.
    training : Training
        For every task.
    task_training : dict
        What differs in single tasks.
    """

    model: str
    data: str = "nyu-mll/glue"
    tasks: tuple[str, ...]
    methods: tuple[str, ...] = ("svd", "projective")
    compressions: tuple[float, ...] = (0.4,)
    n_clusters: tuple[int, ...] = (3, 5)
    seeds: tuple[int, ...] = (0,)
    training: Training = field(default_factory=Training)
    task_training: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task in (*self.tasks, *self.task_training):
            find_task(task)
        for method in self.methods:
            if method not in METHODS:
                raise InputError(f"there is no method {method!r}; {nearest(method, METHODS)}")
        for value in self.compressions:
            if not 0 < value < 1:
                raise InputError(f"compression={value} must be between 0 and 1, both excluded.")
        for value in self.n_clusters:
            if value < 1:
                raise InputError(f"n_clusters={value} must be at least 1.")
        for task in self.task_training:
            self.training_of(task)

    def training_of(self, task: str) -> Training:
        """Return the training settings of a task."""
        changes = self.task_training.get(task, {})
        _check_keys(changes, Training, f"training.{task}")
        return replace(self.training, **changes)

    def cells(self) -> list[Cell]:
        """Return every run once: dense runs before those that start from them."""
        found = []
        for seed in self.seeds:
            for task in self.tasks:
                found.append(Cell(task=task, seed=seed))
                for method in self.methods:
                    clusters = (1,) if method == "svd" else self.n_clusters
                    found += [
                        Cell(task=task, seed=seed, method=method, compression=c, n_clusters=k)
                        for c in self.compressions
                        for k in clusters
                    ]
        return found

    def digest(self, cell: Cell, data_digest: str) -> str:
        """Return what identifies a run: everything its numbers depend on."""
        parts = [self.model, data_digest, asdict(cell), asdict(self.training_of(cell.task))]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def from_toml(cls, path: str | Path, **changes: Any) -> Self:
        """Return the sweep in a TOML file, or one that comes with kflats (such as 'smoke').

        ``defaults.toml`` of kflats holds what the file leaves out; ``changes`` replace settings.

        Raises
        ------
        InputError
            If the file is missing or no TOML, or a key or value is unknown.
        """
        data = _merged(_read(_shipped("defaults")), _read(_find(path)))
        training = data.pop("training", {})
        tasks = {name: training.pop(name) for name in list(training) if _is_table(training[name])}
        _check_keys(training, Training, "training")
        settings = {**data, **{k: v for k, v in changes.items() if v is not None}}
        _check_keys(settings, cls, "the file", without=("training", "task_training"))
        for missing in {"model", "tasks"} - set(settings):
            raise InputError(f"{path} has no {missing!r}: add it.")
        lists = ("tasks", "methods", "compressions", "n_clusters", "seeds")
        try:
            tuples = {key: tuple(settings[key]) for key in lists if key in settings}
            return cls(**{**settings, **tuples}, training=Training(**training), task_training=tasks)
        except TypeError as error:
            raise InputError(f"{path}: {error}") from error


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _find(path: str | Path) -> Path:
    given = Path(path).expanduser()
    if given.is_file():
        return given
    shipped = _shipped(given.name.removesuffix(".toml"))
    if not shipped.is_file():
        names = [each.stem for each in shipped.parent.glob("*.toml") if each.stem != "defaults"]
        raise InputError(f"{path} is no file, and no config of kflats; {nearest(str(path), names)}")
    return shipped


def _shipped(name: str) -> Path:
    return Path(str(files("kflats.glue"))) / "configs" / f"{name}.toml"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read as TOML: {error}") from error


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = _merged(old or {}, value) if both else value
    return result


def _check_keys(
    data: dict[str, Any], owner: type, where: str, without: tuple[str, ...] = ()
) -> None:
    known = [each.name for each in fields(owner) if each.name not in without]
    for key in data:
        if key not in known:
            raise InputError(f"unknown key {key!r} in {where}; {nearest(key, known)}")
