"""The paper's figures: drop against compression, per task, for each number of clusters."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kflats.glue.drops import ENSEMBLE, STAGES, Drop, reading_order
from kflats.glue.means import mean_and_spread
from kflats.glue.settings import BY_BITS
from kflats.report.plots import draw_curves, new_figure, write_figure


class TaskLine(NamedTuple):
    """Compressions, mean drops over seeds and their standard deviations, all in per cent.

    The deviations of one seed, and of the ensemble, whose points lie on other lines, are 0.
    """

    sizes: list[float]
    means: list[float]
    spreads: list[float]


def task_lines(found: list[Drop], task: str, stage: str) -> dict[str, TaskLine]:
    """Return the line of each method in the panel of a task; the widths of integers are one."""
    points: dict[str, dict[float, list[float]]] = {}
    for drop in found:
        if (drop.task, drop.stage) == (task, stage) and drop.percent == drop.percent:
            line = next((each for each in BY_BITS if drop.method.startswith(each)), drop.method)
            by_size = points.setdefault(line, {})
            by_size.setdefault(drop.compression, []).append(drop.percent)
    order = sorted(points, key=reading_order)
    return {"SVD" if name == "svd" else name: _line(points[name], name) for name in order}


def _line(drops_by_size: dict[float, list[float]], name: str) -> TaskLine:
    sizes = sorted(drops_by_size)
    values = [mean_and_spread(drops_by_size[size]) for size in sizes]
    spreads = [0.0 if name.startswith(ENSEMBLE) else spread or 0.0 for _, spread in values]
    return TaskLine([100 * size for size in sizes], [mean for mean, _ in values], spreads)


def draw_figures(found: list[Drop], folder: Path) -> list[Path]:
    """Write one PNG per stage with a panel per task, bars for the spread; return their paths.

    'after' is as the paper's Figures 5 and 6, 'before' as its Figure 8.
    """
    tasks = sorted({drop.task for drop in found})
    paths = []
    for stage, words in STAGES.items():
        figure, axes = new_figure(len(tasks), columns=3)
        for panel, task in zip(axes, tasks, strict=True):
            lines = task_lines(found, task, stage)
            draw_curves(
                panel,
                {name: (line.sizes, line.means) for name, line in lines.items()},
                title=f"{task}, {words}",
                x_label="removed from the table, %",
                y_label="relative drop, %",
                rings=[name for name in lines if name.startswith(ENSEMBLE)],
                spreads={name: line.spreads for name, line in lines.items() if any(line.spreads)},
            )
        path = folder / f"drops_{stage}.png"
        write_figure(figure, path)
        paths.append(path)
    return paths
