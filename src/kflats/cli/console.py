"""Consoles, progress and the little parsers that the commands share."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from torch import nn

    from kflats.clustering import FitProgress


@dataclass
class State:
    """Global options of one run."""

    debug: bool = False


STATE = State()
output = Console()
errors = Console(stderr=True)
_BAR: dict[str, Any] = {
    "console": errors,
    "transient": True,
    "disable": not errors.is_terminal,  # a file would only get an empty line
}

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder, Hub name, or 'minilm' for the packaged all-MiniLM-L6-v2.",
        show_default=False,
    ),
]

OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="New folder to write.", show_default=False)
]


def _seed(value: int) -> int:
    if not 0 <= value < 2**32:
        raise typer.BadParameter(f"{value} must be between 0 and 2**32 - 1.")
    return value


SeedOption = Annotated[int, typer.Option(callback=_seed, help="Seed of the clustering, 0 or more.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="End with one line that is a JSON document.")
]

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_size(text: str) -> int:
    """Return the bytes that '5MB', '800 kB', '2MiB' or '123456' mean."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no size; give bytes, or a number with KB, MB, MiB.")
    return int(float(match.group(1)) * _UNITS[unit])


def parse_numbers(text: str, kind: type[int] | type[float]) -> list[Any]:
    """Return the numbers in a comma-separated list."""
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values:
        raise typer.BadParameter(f"{text!r} is no list of numbers; separate them by commas.")
    return values


def new_table(title: str) -> Table:
    """Return a table that fits a terminal of 80 columns."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def emit(data: dict[str, Any], wanted: bool) -> None:
    """Print a JSON document as the last line of the output, if wanted."""
    if wanted:
        typer.echo(json.dumps(data, default=str))


def quiet_libraries() -> None:
    """Silence the bars and notices of the libraries; errors still come through.

    Raises
    ------
    MissingExtraError
        If transformers is not installed.
    """
    from kflats.extras import need

    need("hf", "transformers")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


@contextmanager
def fitting(title: str) -> Iterator[Callable[[FitProgress], None]]:
    """Show a bar on stderr while clustering runs; gives the callback that moves it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, **_BAR) as progress:
        task = progress.add_task(title, total=None)

        def advance(step: FitProgress) -> None:
            start = f", start {step.run + 1} of {step.n_runs}" if step.n_runs > 1 else ""
            progress.update(task, description=f"{title}{start}, refitting {step.iteration}")

        yield advance


@contextmanager
def steps(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar of ``total`` steps on stderr; gives a function that announces the next one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, **_BAR) as progress:
        task = progress.add_task(title, total=total)
        begun = False

        def next_step(description: str) -> None:
            nonlocal begun
            progress.update(task, description=description, advance=1 if begun else 0)
            begun = True

        yield next_step


def tokenizer_saver(
    opened: nn.Module, name: str, *, always: bool = False
) -> Callable[[Path], None] | None:
    """Return a function that adds tokenizer and processors, where the model does not itself."""
    if hasattr(opened, "tokenizer") and not always:
        return None

    def add(folder: Path) -> None:
        from kflats.companions import copy_processors
        from kflats.errors import CheckpointError
        from kflats.models import resolve, tokenizer_of

        copy_processors(resolve(name), folder)
        try:
            tokenizer_of(opened, name).save_pretrained(str(folder))
        except CheckpointError:
            note = f"note: {name} has no tokenizer; none was saved."
            errors.print(note, markup=False, highlight=False, soft_wrap=True)

    return add
