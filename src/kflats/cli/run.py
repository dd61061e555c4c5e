"""``kflats run``: run a program that does not import kflats with kflats imported."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from kflats_command import hand_over


def run(
    context: typer.Context,
    program: Annotated[
        str,
        typer.Argument(metavar="SCRIPT", help="Python file, or with -m a module."),
    ],
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is the name of a module.")] = False,
) -> None:
    """Run SCRIPT with its arguments so that it can load compressed models.

    For programs that call from_pretrained themselves; the plug-in is registered when they import
    transformers. Options of kflats come before SCRIPT, everything after it belongs to the program.
    """
    if not (_is_module(program) if module else Path(program).is_file()):
        what = "an installed module" if module else "a file"
        raise typer.BadParameter(f"{program!r} is not {what}; give a Python file, or -m MODULE.")
    hand_over()
    sys.argv = [program, *context.args]
    if module:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    sys.path.insert(0, str(Path(program).resolve().parent))
    runpy.run_path(program, run_name="__main__")


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
