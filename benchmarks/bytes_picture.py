"""Draw docs/bytes.png, STS-B against the bytes of the table, from the results in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kflats.report.plots import draw_curves, new_figure, write_figure

_CODES = "kflats: codes"
_NAMES = {
    "codes of columns": _CODES,
    "codes, one rotation": _CODES,
    "codes, 2 rotations": _CODES,
    "PQ, faiss": "product quantisation",
    "RQ, faiss": "residual quantisation",
    "flats": "kflats: flats, float32",
    "the paper, k = 5": "the paper's geometry, float32",
    "SVD": "SVD",
}
_LEAST = 60.0


def curves(result: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Return percent of the float32 bytes and Spearman per method; of codes the best at a size."""
    points: dict[str, dict[float, float]] = {}
    for key, rows in result.items():
        for name, row in rows.items() if key not in ("dense", "plain") else ():
            line = points.setdefault(_NAMES.get(name, "plain integers, fitted levels"), {})
            share = round(100 * row["bits"] / 32, 1)
            line[share] = max(row["spearman"], line.get(share, 0.0))
    kept = {
        name: sorted((x, y) for x, y in line.items() if y >= _LEAST and x <= 13)
        for name, line in points.items()
    }
    return {
        name: ([x for x, _ in line], [y for _, y in line]) for name, line in kept.items() if line
    }


def healed(result: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return percent of the float32 bytes and Spearman after healing."""
    full = 30522 * 384 * 4
    points = sorted((100 * row["bytes"] / full, row["after"]) for row in result.values())
    return [x for x, _ in points], [y for _, y in points]


def read(name: str) -> dict[str, Any]:
    """Return what a benchmark has measured."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
    return result


def main() -> None:
    """Draw the picture."""
    result = read("bytes_quality")
    lines = {**curves(result), "kflats: codes, healed": healed(read("healing_quality"))}
    figure, (axes,) = new_figure(1)
    axes.axhline(result["dense"]["spearman"], color="0.6", linewidth=1, label="dense float32")
    draw_curves(
        axes,
        lines,
        title="all-MiniLM-L6-v2, STS-B test, no training but healing",
        x_label="bytes of the table, % of float32",
        y_label="Spearman x 100",
    )
    write_figure(figure, Path(__file__).parents[1] / "docs" / "bytes.png")


if __name__ == "__main__":
    main()
