"""The paper's figures: drop against compression, per task, for each number of clusters."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from kflats.glue.drops import ENSEMBLE, STAGES, Drop
from kflats.report.plots import draw_curves, new_figure, write_figure

Lines = dict[str, tuple[list[float], list[float]]]


def task_lines(found: list[Drop], task: str, stage: str) -> Lines:
    """Return compression and mean drop over seeds, both in per cent, for each method."""
    points: dict[str, dict[float, list[float]]] = {}
    for drop in found:
        if (drop.task, drop.stage) == (task, stage) and drop.percent == drop.percent:
            by_size = points.setdefault(drop.method, {})
            by_size.setdefault(drop.compression, []).append(drop.percent)
    order = sorted(points, key=lambda name: (name != "svd", name == ENSEMBLE, name))
    return {
        "SVD" if name == "svd" else name: (
            [100 * size for size in sorted(points[name])],
            [fmean(points[name][size]) for size in sorted(points[name])],
        )
        for name in order
    }


def draw_figures(found: list[Drop], folder: Path) -> list[Path]:
    """Write one PNG per stage with a panel per task; return their paths.

    'after' is as the paper's Figures 5 and 6, 'before' as its Figure 8.
    """
    tasks = sorted({drop.task for drop in found})
    paths = []
    for stage, words in STAGES.items():
        figure, axes = new_figure(len(tasks))
        for panel, task in zip(axes, tasks, strict=True):
            draw_curves(
                panel,
                task_lines(found, task, stage),
                title=f"{task}, {words}",
                x_label="parameters of the table removed, %",
                y_label="relative drop, %",
                rings=(ENSEMBLE,),
            )
        path = folder / f"drops_{stage}.png"
        write_figure(figure, path)
        paths.append(path)
    return paths
