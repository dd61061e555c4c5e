"""``python -m kflats.cli``: the command line without the installed script."""

from kflats_command import run

run()
