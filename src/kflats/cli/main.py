"""Entry point: commands, exit codes, and errors in one line."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.markup import escape

from kflats import __version__
from kflats.cli import compress, demo, evaluate, export, glue, heal, info, inspect, restore
from kflats.cli import run as run_program
from kflats.cli.console import STATE, errors
from kflats.errors import KflatsError
from kflats_command import run  # noqa: F401  scripts of earlier installations start here

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""What all wrong usage raises; typer exports only this sub-class of it."""

app = typer.Typer(
    name="kflats",
    help="Make the embedding table of a model small by projective clustering.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(inspect.inspect)
app.command()(compress.compress)
app.command()(heal.heal)
app.command()(info.info)
app.command()(restore.restore)
app.command()(export.export)
app.command(
    context_settings={"allow_interspersed_args": False, "allow_extra_args": True},
)(run_program.run)
app.command()(evaluate.evaluate)
app.command()(demo.demo)
app.add_typer(glue.app, name="glue")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kflats {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    STATE.debug = debug
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> int:
    """Run the command line and return its exit code."""
    # Bars of the libraries would mix with ours; both switches only affect this process.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    STATE.debug = False
    return app(prog_name="kflats", standalone_mode=False) or 0


def explain(error: Exception) -> int:
    """Print an error that was raised on purpose in one line and return 1, or 2 for wrong usage.

    All others, and all with ``--debug``, are raised again.
    """
    if STATE.debug or not isinstance(error, KflatsError | _UsageError):
        raise error
    describe = getattr(error, "format_message", error.__str__)
    line = escape(" ".join(describe().split()))
    errors.print(f"[bold red]error:[/] {line}", highlight=False, soft_wrap=True)
    return 2 if isinstance(error, _UsageError) else 1
