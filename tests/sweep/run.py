"""Running the three processes over all families, and one line of results for each class."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from tests.sweep.classes import class_names
from tests.sweep.outcome import rows_of

KINDS = ("write", "compressed", "plain")


def sweep(families: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield one row for every class and form, family by family."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as place, ExitStack() as stack:
        folder = Path(place)
        workers = [stack.enter_context(_Worker(kind, folder)) for kind in KINDS]
        for family in families:
            for worker in workers:
                worker.run(family)
            yield from _rows(family, folder)
            for path in folder.iterdir():
                shutil.rmtree(path)


class _Worker:
    """A process that waits for the names of families."""

    def __init__(self, kind: str, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.sweep.worker", kind, str(folder)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, stderr=self.errors, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()
        self.errors.close()

    def run(self, family: str) -> None:
        """Run a family and wait for it."""
        process = self.process
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process has no pipes")
        with suppress(BrokenPipeError):
            process.stdin.write(f"{family}\n")
            process.stdin.flush()
        if not process.stdout.readline():
            self.errors.seek(0)
            raise RuntimeError(f"a process of the sweep ended: {self.errors.read()[-2000:]}")


def _rows(family: str, folder: Path) -> Iterator[dict[str, Any]]:
    for name in class_names(family):
        found = {kind: _found(folder / name / f"{kind}.json") for kind in KINDS}
        for row in rows_of(**found):
            yield {"family": family, "class": name.split(":")[1], **row}


def _found(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"fault": "no result"}
