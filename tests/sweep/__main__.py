"""``python -m tests.sweep``: run the sweep and write its rows, one JSON object a line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from tests.sweep import page, results
from tests.sweep.classes import SKIP, families
from tests.sweep.outcome import SKIPPED
from tests.sweep.run import sweep


def main() -> None:
    """Run what the command line asks for."""
    options = _parsed()
    wanted = options.only.split(",") if options.only else families()
    os.environ[SKIP] = options.skip
    parts = [wanted[start :: options.jobs] for start in range(options.jobs)]
    rows: list[dict[str, Any]] = []
    with options.out.open("w", encoding="utf-8") as file, ThreadPoolExecutor(options.jobs) as pool:
        for found in pool.map(lambda part: _run(part, file), parts):
            rows += found
    counts = Counter(row["outcome"] for row in rows)
    sys.stdout.write(", ".join(f"{number} {name}" for name, number in counts.items()) + "\n")
    if options.write:
        results.write(results.gather(rows), wanted)
        page.PAGE.write_text(page.render(results.read()), encoding="utf-8")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("--only", help="families, separated by commas; all without it")
    parser.add_argument("--skip", default="", help="pattern of names of classes to leave out")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--out", type=Path, default=Path("sweep.jsonl"), help="file of the rows")
    parser.add_argument("--write", action="store_true", help="update the results and their page")
    options = parser.parse_args()
    unknown = sorted(set(options.only.split(",")) - set(families())) if options.only else []
    if unknown:
        parser.error(f"transformers has no family {', '.join(unknown)}")
    return options


def _run(families: list[str], file: TextIO) -> list[dict[str, Any]]:
    rows = []
    for row in sweep(families):
        rows.append(row)
        file.write(json.dumps(row) + "\n")
        file.flush()
        if row["outcome"] != SKIPPED:
            line = f"{row['class']} {row['form']}: {results.words(row)}"
            sys.stdout.write(line + "\n")
    return rows


if __name__ == "__main__":
    main()
