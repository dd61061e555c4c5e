"""The trainer of transformers on a student and its teacher."""

from __future__ import annotations

from typing import Any

from kflats.errors import InputError
from kflats.extras import need
from kflats.files import temporary_folder
from kflats.training.batches import Batches, Pieces
from kflats.training.distillation import DIVERGED, Student
from kflats.training.groups import Groups

_SETTINGS: dict[str, Any] = {
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.05,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
}


def check_installed() -> None:
    """Check that the trainer of transformers can run.

    Raises
    ------
    MissingExtraError
        If transformers or accelerate is not installed.
    """
    need("train", "transformers", "accelerate")


def train_student(
    student: Student,
    groups: Groups,
    rates: tuple[float, float],
    pieces: Pieces,
    batches: Batches,
    settings: dict[str, Any],
) -> None:
    """Run the trainer of transformers.

    Raises
    ------
    InputError
        If a loss or a trained number is not finite.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    device = next(student.model.parameters()).device
    with temporary_folder() as place:
        chosen = TrainingArguments(
            str(place), **{**_SETTINGS, "use_cpu": device.type == "cpu", **settings}
        )
        kind, options = Trainer.get_optimizer_cls_and_kwargs(chosen, student)
        optimizer = kind(groups.for_optimizer(*rates), **options)
        trainer = Trainer(
            student,
            chosen,
            train_dataset=pieces,
            data_collator=batches,
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    student.to(device)
    if not all(bool(each.isfinite().all()) for each in groups.parameters):
        raise InputError(DIVERGED)
