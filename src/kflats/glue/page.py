"""The report of a sweep as one self-contained HTML page."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

from kflats.errors import MissingExtraError
from kflats.glue.drops import ENSEMBLE, STAGES, Drop, drops
from kflats.glue.figures import task_lines
from kflats.glue.store import write_text
from kflats.glue.tables import Row, markdown

COLUMNS = 3


def write_page(results: list[dict[str, Any]], path: Path) -> None:
    """Write tables and interactive figures as one HTML file that needs no network.

    Raises
    ------
    MissingExtraError
        If plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingExtraError("plotly", "glue") from error
    found = drops(results)
    tasks = sorted({drop.task for drop in found})
    parts = []
    styles = _styles(found, tasks)
    for number, (stage, words) in enumerate(STAGES.items()):
        columns = min(COLUMNS, len(tasks))
        rows = -(-len(tasks) // columns)
        figure = make_subplots(rows=rows, cols=columns, subplot_titles=tasks)
        for panel, task in enumerate(tasks):
            for name, line in task_lines(found, task, stage).items():
                bars = {"type": "data", "array": line.spreads, "visible": any(line.spreads)}
                trace = go.Scatter(
                    x=line.sizes, y=line.means, error_y=bars, name=name, legendgroup=name,
                    showlegend=panel == 0, **styles[name],
                )  # fmt: skip
                figure.add_trace(trace, row=panel // columns + 1, col=panel % columns + 1)
        figure.update_xaxes(title_text="removed, %")
        figure.update_yaxes(title_text="relative drop, %", col=1)
        figure.update_layout(title=words, height=100 + 320 * rows)
        library = number == 0
        parts.append(figure.to_html(full_html=False, include_plotlyjs=library))
    write_text(path, _html(markdown(results), parts))


def _styles(found: list[Drop], tasks: list[str]) -> dict[str, dict[str, Any]]:
    """Return how each method is drawn, the same in every panel; the ensemble as rings."""
    from plotly.colors import qualitative

    lines = [line for task in tasks for stage in STAGES for line in task_lines(found, task, stage)]
    styles: dict[str, dict[str, Any]] = {}
    for line, colour in zip(dict.fromkeys(lines), cycle(qualitative.D3), strict=False):
        styles[line] = {"mode": "lines+markers", "line": {"color": colour}}
    for line in styles:
        if line.startswith(ENSEMBLE):
            ring = {"symbol": "circle-open", "size": 13, "color": "black"}
            styles[line] = {"mode": "markers", "marker": ring}
    if "SVD" in styles:
        styles["SVD"] = {"mode": "lines+markers", "line": {"color": "grey", "dash": "dash"}}
    return styles


def _html(report: str, figures: list[str]) -> str:
    from html import escape

    body = []
    for block in report.strip().split("\n\n"):
        if block.startswith("#"):
            level = len(block) - len(block.lstrip("#"))
            body.append(f"<h{level}>{escape(block.lstrip('# '))}</h{level}>")
        elif block.startswith("|"):
            rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
            body.append(_html_table(rows[0], rows[2:]))
        else:
            body.append(f"<p>{escape(block)}</p>")
    style = (
        "body{font-family:system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;display:block;overflow-x:auto;margin-bottom:1.5rem}"
        "td,th{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}"
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>GLUE</title>"
        f"<style>{style}</style><body>{''.join(body)}{''.join(figures)}</body></html>\n"
    )


def _html_table(head: Row, rows: list[Row]) -> str:
    from html import escape

    def line(cells: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
