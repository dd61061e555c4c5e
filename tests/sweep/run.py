"""Running the three processes over all families, and one line of results for each class."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sweep.classes import class_names
from tests.sweep.outcome import rows_of

KINDS = ("write", "compressed", "plain")
CHUNK = 40
"""Families whose folders lie on the disk at a time."""


def sweep(families: list[str]) -> Iterator[dict[str, Any]]:
    """Yield one row for every class and form, family by family."""
    for start in range(0, len(families), CHUNK):
        chunk = families[start : start + CHUNK]
        folder = Path(tempfile.mkdtemp(prefix="sweep-"))
        try:
            for kind in KINDS:
                _start(kind, folder, chunk)
            for family in chunk:
                yield from _rows(family, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _start(kind: str, folder: Path, families: list[str]) -> None:
    command = [sys.executable, "-m", "tests.sweep.worker", kind, str(folder), *families]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process {kind!r} of the sweep failed: {done.stderr[-2000:]}")


def _rows(family: str, folder: Path) -> Iterator[dict[str, Any]]:
    for name in class_names(family):
        found = {kind: _found(folder / name / f"{kind}.json") for kind in KINDS}
        for row in rows_of(**found):
            yield {"family": family, "class": name.split(":")[1], **row}


def _found(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"fault": "no result"}
