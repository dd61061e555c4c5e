"""``python -m kflats.cli``: the command line without the installed script."""

from kflats.cli.main import run

run()
