"""The committed results of the sweep, and what a run adds to them."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.sweep.outcome import CANNOT, SAME, SKIPPED

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks" / "results" / "sweep.json"
Families = dict[str, dict[str, dict[str, Any]]]


def gather(rows: Iterable[dict[str, Any]]) -> Families:
    """Return, by family and class, the outcome of every form in words."""
    families: Families = {}
    for row in rows:
        if row["outcome"] == SKIPPED:
            continue
        entry = families.setdefault(row["family"], {}).setdefault(row["class"], {})
        entry[row["form"]] = words(row)
        if row["outcome"] != CANNOT and row.get("dense cannot"):
            entry["dense cannot"] = row["dense cannot"]
    return families


def words(row: dict[str, Any]) -> str:
    """Return an outcome in words."""
    if row["outcome"] == SAME:
        return SAME
    step = f" at {row['step']}" if "step" in row else ""
    return f"{row['outcome']}{step}: {row.get('reason', '')}"


def read() -> dict[str, Any]:
    """Return the committed results."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def write(families: Families, tried: Iterable[str]) -> None:
    """Replace the families that were tried, and say where the results come from."""
    import sklearn
    import torch
    import transformers

    import kflats

    known = read()["result"] if FILE.exists() else {}
    kept = {name: found for name, found in known.items() if name not in set(tried)}
    merged = dict(sorted((kept | families).items()))
    provenance = {
        "kflats": kflats.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "scikit-learn": sklearn.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": "1",
        "seed": "0",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    text = json.dumps({"result": merged, "provenance": provenance}, indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")
