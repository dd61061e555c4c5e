"""What the command ``kflats`` runs: kflats.cli, stopped by a signal in one line at any moment.

It lies outside the package because it has to answer while the package is still being imported.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

_SAID = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal is gone"}
_INTERRUPTED = 130
_PATIENCE = 1.0
"""Seconds in which pressing Ctrl-C again does not disturb what cleans up."""


class _Stop:
    """Turns signals into KeyboardInterrupt, and remembers the first.

    What is raised in native code may come out as anything, or not at all.
    """

    def __init__(self) -> None:
        self.first = 0
        self._last = -_PATIENCE
        self._kept = sys.unraisablehook

    def listen(self) -> None:
        """Handle the signals, except what the caller has told the process to ignore."""
        for name in _SAID:
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._raise)
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, self._raise)
            sys.unraisablehook = self._again

    def finish(self) -> None:
        """Let nothing but being terminated disturb the end of the process."""
        for name in (*_SAID, "SIGALRM"):
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) == self._raise:
                quiet = name in ("SIGINT", "SIGALRM")
                signal.signal(number, signal.SIG_IGN if quiet else signal.SIG_DFL)
        sys.unraisablehook = self._kept

    def _raise(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.first and now < self._last + _PATIENCE:
            return
        self.first, self._last = self.first or number, now
        raise KeyboardInterrupt

    def _again(self, lost: sys.UnraisableHookArgs) -> None:
        """Raise an interrupt again that fell where nothing can be raised, such as a destructor."""
        if not (self.first and issubclass(lost.exc_type, KeyboardInterrupt)):
            self._kept(lost)
            return
        self._last -= _PATIENCE
        signal.setitimer(signal.ITIMER_REAL, 0.01)


def run() -> None:
    """Run the command line and end the process.

    Its exit code is 0 (done), 1 (the job failed), 2 (wrong usage), or 128 and the signal that
    stopped it: 130 after Ctrl-C, 143 where it was terminated.
    """
    stop, code = _Stop(), 0
    try:
        stop.listen()
        try:
            code = _main(stop)
        finally:
            stop.finish()
    except BaseException:
        if not stop.first:
            raise
    if stop.first or code == _INTERRUPTED:
        number = signal.Signals(stop.first or signal.SIGINT)
        code = 128 + number
        _say(f"{_SAID[number.name]}; nothing half-written is left behind.")
    sys.exit(code)


def _main(stop: _Stop) -> int:
    from kflats.cli.main import explain, main

    try:
        return main()
    except Exception as error:
        if stop.first:
            raise
        return explain(error)


def hand_over() -> None:
    """Give the signals the meaning that they have in a program of its own."""
    for name in _SAID:
        number = getattr(signal, name, None)
        if number and isinstance(getattr(signal.getsignal(number), "__self__", None), _Stop):
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, usual)


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:  # nobody is there to read it
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
