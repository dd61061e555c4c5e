"""``python -m tests.sweep.causes ROWS``: the problems of a run, grouped by what they say."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.sweep.outcome import CANNOT, ERROR, REFUSED, SILENT

Rows = Iterable[dict[str, Any]]
_VARYING = [
    (re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)"), "…"),
    (re.compile(r"[\w.]+\.[\w.]+\.\w+"), "…"),
    (re.compile(r"\b[A-Z]\w+(Model|For\w+|Encoder|Decoder|Head\w*|Embeddings?)\b"), "…"),
    (re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?"), "#"),
]


def cause(step: str, message: str) -> str:
    """Return a message without the names and numbers that differ from class to class."""
    if step == "padding":
        message = message.partition(": ")[2]
    for pattern, mark in _VARYING:
        message = pattern.sub(mark, message)
    return f"{step}: {message[:150]}"


def render(rows: Rows) -> str:
    """Return Markdown: counts, then every cause with an example and its classes."""
    rows = list(rows)
    counts = Counter(row["outcome"] for row in rows)
    lines = [f"{len(rows)} rows: " + ", ".join(f"{n} {name}" for name, n in counts.most_common())]
    for kind in (SILENT, ERROR, REFUSED, CANNOT):
        groups: dict[str, list[tuple[dict[str, Any], str]]] = defaultdict(list)
        for row in rows:
            for step, message in _problems(row, kind):
                groups[cause(step, message)].append((row, message))
        lines += ["", f"## {kind}: {len(groups)} causes", ""]
        for name, found in sorted(groups.items(), key=lambda item: -len(item[1])):
            lines += _group(name, found)
    return "\n".join(lines) + "\n"


def _problems(row: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    if "problems" in row:
        return [(e["step"], e["message"]) for e in row["problems"] if e["kind"] == kind]
    known = row["outcome"] == kind
    return [(row.get("step", "compress"), row.get("reason", ""))] if known else []


def _group(name: str, found: list[tuple[dict[str, Any], str]]) -> list[str]:
    by_class: dict[str, set[str]] = defaultdict(set)
    for row, _ in found:
        by_class[f"{row['family']}/{row['class']}"].add(row["form"])
    classes = ", ".join(
        name if len(forms) == 2 or "all" in forms else f"{name} ({', '.join(forms)})"
        for name, forms in by_class.items()
    )
    return [f"- **{name}** ({len(by_class)} classes)", f"  e.g. `{found[0][1]}`", f"  {classes}"]


if __name__ == "__main__":
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    sys.stdout.write(render(json.loads(line) for line in lines))
