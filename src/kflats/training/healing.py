"""heal_: let a compressed model learn from its dense teacher on unlabelled text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn

from kflats.errors import InputError, UnsupportedModelError
from kflats.layers import TableBag
from kflats.layers.trainable import TrainableTable
from kflats.quantization.training import pack_
from kflats.report.healing import HealingReport
from kflats.storage.manifest import factor_layers
from kflats.training.batches import Batches, Pieces, split
from kflats.training.distillation import Student
from kflats.training.scope import kept_modes, trainable
from kflats.training.trainer import check_installed, train_student

PARTS = ("table", "all")
_MOST, _OF_ERROR = 1e-2, 0.04


def heal_(
    model: nn.Module,
    texts: Iterable[str],
    *,
    teacher: nn.Module,
    tokenizer: Any = None,
    parts: str = "table",
    epochs: float = 1.0,
    max_steps: int | None = 1000,
    learning_rate: float | None = None,
    body_learning_rate: float = 2e-5,
    batch_size: int = 64,
    max_length: int = 16,
    seed: int = 0,
    arguments: dict[str, Any] | None = None,
) -> HealingReport:
    """Train a compressed model for a short while to give what its dense teacher gives, in place.

    The tables keep their size: packed codes are unpacked, trained and packed again. The trainer
    of transformers runs it, where the model is; everything it seeds it seeds with ``seed``. A
    model that is no nearer to its teacher in the end, on text that was held out, is left as it was.

    Parameters
    ----------
    model : nn.Module
        A compressed model of sentence-transformers or transformers.
    texts : iterable of str
        Unlabelled text in the language of the model, shuffled; some is held out for the report.
    teacher : nn.Module
        The model before compression.
    tokenizer : transformers tokenizer, optional
        Needed for models that have none of their own.
    parts : {'table', 'all'}, default='table'
        What trains: the compressed tables only, or everything.
    epochs : float, default=1.0
        How often every text is used.
    max_steps : int or None, default=1000
        Most batches.
    learning_rate : float, optional
        Of what the rows of a packed table share, relative to the size of the numbers; those of
        single rows have 0.3 of it, and float factors a tenth. If left out 0.04 times the squared
        relative error that the table was compressed with (a table that is nearly right must move
        less than its codes are wide), at most 0.01.
    body_learning_rate : float, default=2e-5
        Of everything else, for ``parts='all'``.
    batch_size : int, default=64
        Pieces of text per step.
    max_length : int, default=16
        Most tokens of a piece of text; longer texts become several pieces.
    seed : int, default=0
        Of the order of the texts.
    arguments : dict, optional
        More of :class:`transformers.TrainingArguments`, for instance ``{"bf16": True}``.

    Returns
    -------
    HealingReport
        Distances from the teacher before and after.

    Raises
    ------
    InputError
        If a setting is out of range, the model has no compressed table or its teacher has one, the
        texts hold no token it knows, or a loss is not finite. The model is as it was then.
    UnsupportedModelError
        If the table is that of an embedding bag, or the model has a decoder with input of its own.
    MissingExtraError
        If transformers or accelerate is not installed.

    Examples
    --------
    >>> from kflats.models import open_sentence_model
    >>> teacher, model = (open_sentence_model("minilm") for _ in range(2))  # doctest: +SKIP
    >>> report = compress_(model, CompressionConfig(bits=1))  # doctest: +SKIP
    >>> print(heal_(model, open("text.txt"), teacher=teacher))  # doctest: +SKIP
    """
    started = time.perf_counter()
    check_installed()
    if learning_rate is None:
        learning_rate = _learning_rate(model)
    numbers = {
        "epochs": epochs,
        "max_steps": 1 if max_steps is None else max_steps,
        "learning_rate": learning_rate,
        "body_learning_rate": body_learning_rate,
        "batch_size": batch_size,
        "max_length": max_length,
    }
    _check(model, teacher, parts, numbers)
    batches = Batches(_tokenizer(model, tokenizer), max_length)
    train, held = split(batches.pieces(texts), seed)
    steps = math.ceil(epochs * len(train) / batch_size)
    steps = steps if max_steps is None else min(steps, max_steps)
    settings = {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
        "seed": seed,
        **(arguments or {}),
    }
    before, after = _distance(model, teacher, held, batches), math.inf
    try:
        with trainable(model, teacher, parts) as groups:
            rates = (learning_rate, body_learning_rate)
            with kept_modes(model, teacher):
                train_student(Student(model, teacher), groups, rates, train, batches, settings)
            _pack(model)
            after = _distance(model, teacher, held, batches)
            if after >= before:
                raise _NoBetterError
        _describe(model, steps)
    except _NoBetterError:
        pass
    return HealingReport(
        loss_before=before,
        loss_after=after,
        steps=steps,
        pieces=len(train),
        parts=parts,
        seconds=time.perf_counter() - started,
    )


class _NoBetterError(Exception):
    """Training has not brought the model nearer to its teacher."""


def _pack(model: nn.Module) -> None:
    if any(isinstance(each, TrainableTable) for each in factor_layers(model).values()):
        pack_(model)


def _learning_rate(model: nn.Module) -> float:
    names = ("relative_error", "error_before_healing")
    layers = factor_layers(model).values()
    errors = [float(each.origin[name]) for each in layers for name in names if name in each.origin]
    return min([_MOST, *(_OF_ERROR * error**2 for error in errors if error > 0)])


def _describe(model: nn.Module, steps: int) -> None:
    """Say in the tables that they were healed; their error on the dense rows is another now."""
    for layer in factor_layers(model).values():
        known = dict(layer.origin)
        if "relative_error" in known:
            known["error_before_healing"] = known.pop("relative_error")
        layer.origin = {**known, "healing_steps": steps + known.get("healing_steps", 0)}


def _check(model: nn.Module, teacher: nn.Module, parts: str, numbers: dict[str, float]) -> None:
    if parts not in PARTS:
        raise InputError(f"parts={parts!r} must be one of {PARTS}.")
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name}={value} must be a finite number above 0.")
    layers = factor_layers(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no compressed table: run compress_ first.")
    if teacher is model:
        raise InputError("the teacher is the model itself; load the dense model once more.")
    if factor_layers(teacher):
        refuse_teacher(type(teacher).__name__)
    for name, each in layers.items():
        if isinstance(each, TableBag):
            refuse_bag(name)


def refuse_teacher(name: str) -> NoReturn:
    """Raise InputError: a teacher is compressed itself."""
    raise InputError(
        f"the teacher {name} has a compressed table itself; give the model as it was before "
        "compression."
    )


def refuse_bag(name: str) -> NoReturn:
    """Raise UnsupportedModelError: a table is that of an embedding bag."""
    raise UnsupportedModelError(
        f"{name!r} is an embedding bag, the table of a static embedding model; only embeddings and "
        "output heads can be healed. Compress it with more bits instead."
    )


def _tokenizer(model: Any, given: Any) -> Any:
    found = getattr(model, "tokenizer", None) if given is None else given
    if found is None:
        raise InputError(f"{type(model).__name__} has no tokenizer of its own: give tokenizer=.")
    return found


def _distance(model: nn.Module, teacher: nn.Module, pieces: Pieces, batches: Batches) -> float:
    """Return the mean loss over all pieces."""
    total = 0.0
    with kept_modes(model, teacher), torch.no_grad():
        student = Student(model, teacher).train(False)
        for start in range(0, len(pieces), 32):
            part = pieces[start : start + 32]
            features = batches(part)["features"]
            features = {name: each.to(_device(model)) for name, each in features.items()}
            total += float(student(features)["loss"]) * len(part)
    return total / len(pieces)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
