"""Run the benchmarks that are named, or all, and keep their results."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from kflats.report.compression import provenance

NAMES = (
    "fit_speed",
    "fit_memory",
    "lookup_speed",
    "head_speed",
    "load_memory",
    "start_quality",
    "geometry",
    "losses",
    "sts_quality",
    "bytes_quality",
    "healing_quality",
    "bytes_glue",
    "healing_glue",
    "paper_speed",
)


def main(names: list[str]) -> int:
    """Run the named benchmarks; return the exit code."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; allowed: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        print(f"== {name}", flush=True)
        result = import_module(f"benchmarks.{name}").measure()
        for key, value in result.items():
            print(f"{key}: {value}", flush=True)
        path = Path(__file__).parent / "results" / f"{name}.json"
        path.write_text(json.dumps({"result": result, "provenance": provenance()}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
