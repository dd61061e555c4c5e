"""``kflats heal``: let a compressed model learn from its dense teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kflats.cli.console import (
    JsonOption,
    OutputOption,
    SeedOption,
    emit,
    errors,
    output,
    quiet_libraries,
    tokenizer_saver,
)


def heal(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Compressed model.", show_default=False)
    ],
    out: OutputOption,
    teacher: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The model before compression.", show_default=False),
    ],
    text: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Unlabelled text: a text file, line by line, or a parquet file.",
            show_default=False,
        ),
    ],
    column: Annotated[str, typer.Option(help="Text column of a parquet file.")] = "text",
    parts: Annotated[str, typer.Option(help="What trains: table or all.")] = "table",
    epochs: Annotated[float, typer.Option(help="How often every text is used.")] = 1.0,
    max_steps: Annotated[int, typer.Option(help="Most batches.")] = 1000,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of the tables, relative to the size of their numbers; by their error if left out."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pieces of text per step.")] = 64,
    max_length: Annotated[int, typer.Option(help="Most tokens of a piece of text.")] = 16,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train the table of the model in FOLDER on text to give what MODEL gives; same size after."""
    from kflats.errors import InputError
    from kflats.models import open_model, tokenizer_of
    from kflats.storage.folder import check_new_folder, save
    from kflats.training import heal_
    from kflats.training.trainer import check_installed
    from kflats.weighting.weights import check_texts, read_texts

    check_installed()
    check_new_folder(out)
    check_texts(text)
    _check_folders(folder, teacher)
    quiet_libraries()
    with errors.status("loading the models"):
        model, dense = open_model(folder), open_model(teacher)
    with errors.status("healing"):
        report = heal_(
            model,
            read_texts(text, column),
            teacher=dense,
            tokenizer=tokenizer_of(model, folder),
            parts=parts,
            epochs=epochs,
            max_steps=max_steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
        )
    if not report.is_better:
        raise InputError(f"{report}. Give more text, or a smaller --learning-rate.")
    save(model, out, extras=tokenizer_saver(model, folder))
    output.print(f"{report}\nsaved to {out}", markup=False, highlight=False, soft_wrap=True)
    emit({"output": str(out), **report.to_dict()}, json)


def _check_folders(name: str, teacher: str) -> None:
    """Refuse what cannot be healed, or teach, before anything is loaded."""
    from kflats.errors import InputError
    from kflats.models import is_compressed, resolve
    from kflats.storage.check import read_manifest
    from kflats.training.healing import refuse_bag, refuse_teacher

    source, dense = Path(resolve(name)), Path(resolve(teacher))
    if source.is_dir():
        if not is_compressed(source):
            raise InputError(f"{name} has no compressed table: run kflats compress first.")
        for module, spec in read_manifest(source)[0].modules.items():
            if spec.kind == "bag":
                refuse_bag(module)
    if dense.is_dir() and is_compressed(dense):
        refuse_teacher(teacher)
