"""The settings of a sweep: TOML files that hold what differs from the defaults."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from kflats.errors import InputError
from kflats.glue.names import nearest
from kflats.glue.tasks import find_task
from kflats.glue.toml_files import find, merged, read, shipped
from kflats.quantization.codebooks import WIDTHS

BY_BITS = ("int", "codes")
"""Methods whose size is in bits: plain integers, and codes with bits where they pay."""
METHODS = ("svd", "projective", "messi", "flats", *BY_BITS)
PRECISIONS = ("no", "bf16", "fp16")
_FLOAT_BITS = 32
_LISTS = ("tasks", "methods", "compressions", "n_clusters", "bits", "seeds")
_AT_LEAST = {
    "epochs": 0,
    "extra_epochs": 0,
    "learning_rate": 0,
    "extra_learning_rate": 0,
    "weight_decay": 0,
    "warmup_ratio": 0,
}
_WHOLE_AT_LEAST = {"batch_size": 1, "max_length": 1, "train_limit": 1, "score_limit": 1}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is fine-tuned.

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
        for name, least in _AT_LEAST.items():
            check_number(name, getattr(self, name), (int, float), least)
        for name, least in _WHOLE_AT_LEAST.items():
            if getattr(self, name) is not None or name in ("batch_size", "max_length"):
                check_number(name, getattr(self, name), (int,), least)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    A dense run (``method`` 'dense', nothing removed) trains the model that the compressed runs of
    its task and seed start from. ``compression`` is the share of the parameters that is removed, or
    with the methods :data:`BY_BITS` of the 32 bits of a parameter.
    """

    task: str
    seed: int
    method: str = "dense"
    compression: float = 0.0
    n_clusters: int = 1

    @property
    def bits(self) -> float:
        """Bits per parameter of the dense table that are left."""
        return round(_FLOAT_BITS * (1 - self.compression), 6)

    @property
    def label(self) -> str:
        """The method in tables and figures: 'svd', 'projective k = 3', 'int4'."""
        if self.method in BY_BITS:
            words = f"codes of {self.bits:g} {'bit' if self.bits == 1 else 'bits'}"
            return f"int{self.bits:g}" if self.method == "int" else words
        return self.method if self.method == "svd" else f"{self.method} k = {self.n_clusters}"

    @property
    def name(self) -> str:
        """File name of the result, without its end."""
        base = f"{self.task}-seed{self.seed}"
        if self.method == "dense":
            return f"{base}-dense"
        if self.method in BY_BITS:
            return f"{base}-{self.method}-b{self.bits:g}"
        return f"{base}-{self.method}-k{self.n_clusters}-c{100 * self.compression:g}"

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
    bits : tuple of float
        Sizes of the methods 'int' (whole bits) and 'codes', in place of ``compressions``.
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
    bits: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    training: Training = field(default_factory=Training)
    task_training: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task in (*self.tasks, *self.task_training):
            find_task(task)
        for method in self.methods:
            if method not in METHODS:
                raise InputError(f"there is no method {method!r}; {nearest(method, METHODS)}")
        self._check_numbers()
        self._check_bits()
        for task in self.task_training:
            self.training_of(task)

    def _check_numbers(self) -> None:
        for name, least in (("n_clusters", 1), ("seeds", 0)):
            for value in getattr(self, name):
                check_number(name, value, (int,), least)
        for value in self.compressions:
            check_number("compressions", value, (int, float), 0)
            if not 0 < value < 1:
                raise InputError(f"compression={value} must be between 0 and 1, both excluded.")
        for name in _LISTS:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(f"{name}={list(values)} has an entry twice: remove one.")

    def _check_bits(self) -> None:
        wanted = [method for method in self.methods if method in BY_BITS]
        if bool(self.bits) != bool(wanted):
            raise InputError(
                f"methods={list(self.methods)} with bits={list(self.bits)}: bits are the sizes of "
                "the methods 'int' and 'codes'; give both or neither."
            )
        for value in self.bits:
            check_number("bits", value, (int, float), 0)
            if not 0 < value < _FLOAT_BITS:
                raise InputError(f"bits={value} must be above 0 and below {_FLOAT_BITS}.")
            if "int" in wanted and value not in WIDTHS:
                raise InputError(f"bits={value}: method 'int' has one of {WIDTHS}.")

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
                    found += [
                        Cell(task=task, seed=seed, method=method, compression=c, n_clusters=k)
                        for c, k in self._sizes(method)
                    ]
        return found

    def _sizes(self, method: str) -> list[tuple[float, int]]:
        """Return the compressions and numbers of clusters of a method."""
        if method in BY_BITS:
            return [(1 - bits / _FLOAT_BITS, 1) for bits in self.bits]
        clusters = (1,) if method == "svd" else self.n_clusters
        return [(compression, k) for compression in self.compressions for k in clusters]

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
        data = merged(read(shipped("defaults")), read(find(path)))
        training = data.pop("training", {})
        if not _is_table(training):
            raise InputError(f"training={training!r} must be a table: [training], then its keys.")
        tasks = {name: training.pop(name) for name in list(training) if _is_table(training[name])}
        _check_keys(training, Training, "training")
        settings = {**data, **{k: v for k, v in changes.items() if v is not None}}
        _check_keys(settings, cls, "the file", without=("training", "task_training"))
        for missing in {"model", "tasks"} - set(settings):
            raise InputError(f"{path} has no {missing!r}: add it.")
        for key in _LISTS:
            if not isinstance(settings.get(key, ()), list | tuple):
                raise InputError(f"{key}={settings[key]!r} must be a list: [{settings[key]!r}].")
        try:
            tuples = {key: tuple(settings[key]) for key in _LISTS if key in settings}
            return cls(**{**settings, **tuples}, training=Training(**training), task_training=tasks)
        except TypeError as error:
            raise InputError(f"{path}: {error}") from error


def check_number(name: str, value: Any, kinds: tuple[type, ...], least: float) -> None:
    """Raise InputError unless ``value`` is a finite number of these types, large enough."""
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not least <= value < math.inf:
        kind = "number" if float in kinds else "whole number"
        raise InputError(f"{name}={value!r} must be a {kind} of at least {least}.")


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _check_keys(
    data: dict[str, Any], owner: type, where: str, without: tuple[str, ...] = ()
) -> None:
    known = [each.name for each in fields(owner) if each.name not in without]
    for key in data:
        if key not in known:
            raise InputError(f"unknown key {key!r} in {where}; {nearest(key, known)}")
