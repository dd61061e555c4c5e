"""Entry point: commands, exit codes, and errors in one line."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from kflats import __version__
from kflats.cli import compress, demo, evaluate, inspect
from kflats.cli.console import STATE, errors
from kflats.errors import KflatsError

app = typer.Typer(
    name="kflats",
    help="Make the embedding table of a model small by projective clustering.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(inspect.inspect)
app.command()(compress.compress)
app.command()(evaluate.evaluate)
app.command()(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kflats {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    STATE.debug = debug


def run() -> None:
    """Run the command line; exit with 0 (done), 1 (the job failed) or 2 (wrong usage)."""
    # Bars of the libraries would mix with ours; both switches only affect this process.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except KflatsError as error:
        if STATE.debug:
            raise
        errors.print(f"[bold red]error:[/] {_one_line(error)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("interrupted; nothing half-written is left behind.", highlight=False)
        sys.exit(130)


def _one_line(error: BaseException) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
