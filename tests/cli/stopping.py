"""Runs of the command line that a signal stops at a defined moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# The tests may run where signals are ignored, as in the background of a shell.
_USUAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
"""
_PROGRAM = f"""{_USUAL}
import os, signal, sys
from kflats_command import run

event, count, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
del sys.argv[1:4]
writing = False

def stop(name, _):
    global count, writing
    writing = writing or name == "tempfile.mkdtemp"
    if name == event or (event == "writing" and writing and name.split(".")[0] in _FILES):
        count -= 1
        if count == 0:
            os.kill(os.getpid(), number)

_FILES = ("open", "os", "shutil", "tempfile", "import")
sys.addaudithook(stop)
run()
"""


@dataclass(frozen=True)
class Stopped:
    """How a stopped run ended."""

    code: int
    err: str


def run_until(
    event: str, count: int, number: signal.Signals, *words: object, usual: Path
) -> Stopped:
    """Run ``kflats`` and send it a signal at the ``count``-th audit event of a name.

    ``writing`` stands for all events of files after the first temporary folder was made; ``usual``
    is the folder for temporary files.
    """
    command = [sys.executable, "-c", _PROGRAM, event, str(count), str(int(number))]
    done = subprocess.run(
        [*command, *map(str, words)],
        env=_environment(usual),
        capture_output=True,
        text=True,
        check=False,
    )
    return Stopped(done.returncode, done.stderr)


def run_for(seconds: float, number: signal.Signals, *words: object, usual: Path) -> Stopped:
    """Run ``kflats`` and send it a signal after a while, wherever it is then."""
    command = [sys.executable, "-c", f"{_USUAL}from kflats_command import run\nrun()"]
    with subprocess.Popen(
        [*command, *map(str, words)],
        env=_environment(usual),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            running.send_signal(number)
        _, err = running.communicate()
    return Stopped(running.returncode, err)


def _environment(usual: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(usual), "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
