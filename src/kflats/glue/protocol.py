"""One run: fine-tune, compress, score, fine-tune again, score (paper, section 4)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kflats.errors import CheckpointError, InputError
from kflats.files import temporary_folder
from kflats.glue.compressed import compress_table, trainable_table
from kflats.glue.data import TaskData
from kflats.glue.metrics import majority_scores, scores
from kflats.glue.settings import Cell, Sweep, Training
from kflats.glue.tasks import Task
from kflats.models import is_compressed, resolve
from kflats.storage.folder import new_folder


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What all runs of one task have in common.

    Attributes
    ----------
    sweep : Sweep
        Settings.
    task : Task
        Which task.
    data : TaskData
        Its rows.
    checkpoints : Path
        Folder for the fine-tuned dense models, one for each task and seed.
    """

    sweep: Sweep
    task: Task
    data: TaskData
    checkpoints: Path

    @property
    def training(self) -> Training:
        """Training settings of the task."""
        return self.sweep.training_of(self.task.name)

    def checkpoint(self, cell: Cell) -> Path:
        """Return the folder of the dense model that a run starts from."""
        return self.checkpoints / cell.dense.name


def run_cell(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Return the scores of one run before and after the extra epochs.

    A dense run also leaves its fine-tuned model in ``experiment.checkpoint(cell)``; the other runs
    start from it.

    Returns
    -------
    dict
        ``before`` and ``after``: scores by validation split; ``train_before`` and
        ``train_after``: on training rows; ``table``: the report of the compression; seconds.

    Raises
    ------
    InputError
        If the model has no classification head or is compressed already, or training diverged.
    """
    started = time.perf_counter()
    training = experiment.training
    if cell.method == "dense":
        work = Work(experiment, cell, new_model(experiment, cell))
        work.train(training.epochs, training.learning_rate)
        if work.is_first:
            with new_folder(experiment.checkpoint(cell)) as partial:
                work.model.save_pretrained(partial)
        table = None
    else:
        work = Work(experiment, cell, load_dense(experiment.checkpoint(cell)))
        table = compress_table(work.model, cell)
    before, train_before = work.scores(), work.train_scores()
    if training.extra_epochs > 0:
        with trainable_table(work.model, cell, lambda: load_dense(experiment.checkpoint(cell))):
            work.train(training.extra_epochs, training.extra_learning_rate)
    return {
        "before": before,
        "after": work.scores(),
        "train_before": train_before,
        "train_after": work.train_scores(),
        "majority": _majority(experiment),
        "table": table,
        "train_rows": len(work.rows),
        "mixed_precision": work.mixed_precision,
        "devices": work.devices,
        "official_data": experiment.data.official and training.train_limit is None,
        "seconds": time.perf_counter() - started,
    }


def _majority(experiment: Experiment) -> dict[str, dict[str, float]]:
    train = experiment.data.train["label"]
    return {
        split: majority_scores(experiment.task, train, rows["label"])
        for split, rows in experiment.data.validation.items()
    }


def check_model(name: str) -> None:
    """Check, without loading it, that a model is dense and can have a head for classification.

    Raises
    ------
    InputError
        If it is compressed already, cannot be read, or is of a kind without such a head.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

    source = resolve(name)
    if Path(source).is_dir() and is_compressed(Path(source)):
        raise InputError(f"{name!r} is compressed already; the experiment needs the dense model.")
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _not_for_classification(name, error) from error
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"{name!r} is quantized already; the experiment needs the dense model.")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        why = f"transformers has no such head for {type(config).__name__}."
        raise _not_for_classification(name, why)


def _not_for_classification(name: str, why: object) -> InputError:
    first = str(why).strip().splitlines()[0]
    return InputError(
        f"{name!r} cannot be loaded for classification: {first} Give an encoder that "
        "AutoModelForSequenceClassification knows."
    )


def new_model(experiment: Experiment, cell: Cell) -> Any:
    """Return the pretrained model with a fresh head for the task, the same for a seed."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

    source = resolve(experiment.sweep.model)
    task = experiment.task
    labels = dict(enumerate(task.labels or ("score",)))
    set_seed(cell.seed)
    try:
        config = AutoConfig.from_pretrained(
            source,
            num_labels=task.num_labels,
            id2label=labels,
            label2id={name: number for number, name in labels.items()},
            problem_type=None if task.labels else "regression",
        )
        return AutoModelForSequenceClassification.from_pretrained(source, config=config)
    except (OSError, ValueError) as error:
        raise _not_for_classification(experiment.sweep.model, error) from error


def load_dense(folder: Path) -> Any:
    """Return the fine-tuned dense model of a task and seed."""
    from transformers import AutoModelForSequenceClassification

    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is missing: the dense run of this task and seed did not finish."
        )
    return AutoModelForSequenceClassification.from_pretrained(folder)


def per_device(batch_size: int, devices: int) -> int:
    """Return the rows of a batch on each device, so that the batch is the same on any number.

    Raises
    ------
    InputError
        If the batch cannot be divided.
    """
    if batch_size % devices:
        raise InputError(
            f"batch_size={batch_size} cannot be divided among {devices} devices: take a multiple."
        )
    return batch_size // devices


class Work:
    """A model with the rows of its task, and a Trainer for each step.

    Parameters
    ----------
    experiment : Experiment
        Task, rows and settings.
    cell : Cell
        Gives the seed.
    model : transformers model
        With a classification head for the task.
    """

    def __init__(self, experiment: Experiment, cell: Cell, model: Any) -> None:
        from transformers import AutoTokenizer

        self.task = experiment.task
        self.training = experiment.training
        self.seed = cell.seed
        self.model = model
        self.tokenizer = AutoTokenizer.from_pretrained(resolve(experiment.sweep.model))
        limit = self.training.train_limit
        train = experiment.data.train
        self.rows = self._tokens(train.select(range(min(limit or len(train), len(train)))))
        self.validation = {
            split: self._tokens(rows) for split, rows in experiment.data.validation.items()
        }
        self.is_first = True
        self.mixed_precision = "no"
        self.devices = 1

    def _tokens(self, rows: Any) -> Any:
        columns, tokenizer, length = self.task.columns, self.tokenizer, self.training.max_length

        def encode(batch: dict[str, Any]) -> Any:
            texts = [batch[column] for column in columns]
            return tokenizer(*texts, truncation=True, max_length=length)

        kept = [column for column in rows.column_names if column != "label"]
        return rows.map(encode, batched=True, remove_columns=kept, keep_in_memory=True)

    def _trainer(self, epochs: float, learning_rate: float, place: Path) -> Any:
        import torch
        from transformers import (
            DataCollatorWithPadding,
            PrinterCallback,
            Trainer,
            TrainingArguments,
        )

        settings = TrainingArguments(
            str(place),
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_eval_batch_size=64,
            weight_decay=self.training.weight_decay,
            warmup_steps=self.training.warmup_ratio,
            train_sampling_strategy="group_by_length",
            seed=self.seed,
            data_seed=self.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),  # else processes on CPUs stay alone
            **self._precision(),
            dataloader_pin_memory=False,
        )
        if self.training.mixed_precision is not None:
            settings.mixed_precision = self.training.mixed_precision  # not that of the launcher
        self.devices = max(1, settings.n_gpu) * settings.world_size
        settings.per_device_train_batch_size = per_device(self.training.batch_size, self.devices)
        trainer = Trainer(
            self.model,
            settings,
            train_dataset=self.rows,
            data_collator=DataCollatorWithPadding(self.tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        self.is_first = trainer.is_world_process_zero()
        self.mixed_precision = trainer.accelerator.mixed_precision
        return trainer

    def _precision(self) -> dict[str, bool]:
        """Return what overrides the precision of ``accelerate launch``; nothing if none is set."""
        wanted = self.training.mixed_precision
        return {} if wanted is None else {name: name == wanted for name in ("bf16", "fp16")}

    def train(self, epochs: float, learning_rate: float) -> None:
        """Fine-tune; the order of the rows depends on the seed only."""
        if epochs > 0:
            with temporary_folder() as place:
                self._trainer(epochs, learning_rate, place).train()

    def scores(self) -> dict[str, dict[str, float]]:
        """Return the scores of every validation split."""
        return {split: self._scores(rows) for split, rows in self.validation.items()}

    def train_scores(self) -> dict[str, float]:
        """Return the scores on (some) training rows."""
        limit = self.training.score_limit or len(self.rows)
        return self._scores(self.rows.select(range(min(limit, len(self.rows)))))

    def _scores(self, rows: Any) -> dict[str, float]:
        with temporary_folder() as place:
            found = self._trainer(1, 0.0, place).predict(rows)
        return scores(self.task, found.predictions, found.label_ids)
