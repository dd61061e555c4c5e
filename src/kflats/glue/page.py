"""The report of a sweep: tables as Markdown, and one self-contained HTML page."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

from kflats.errors import MissingExtraError
from kflats.glue.figures import task_lines
from kflats.glue.paper import reported_for
from kflats.glue.store import write_text
from kflats.glue.summary import ENSEMBLE, STAGES, Drop, MeanDrop, drops, mean_drops, plotted_score
from kflats.glue.tasks import TASKS

Row = list[str]


def mean_table(means: list[MeanDrop]) -> tuple[Row, list[Row]]:
    """Return head and rows: mean drop over tasks by method and compression, both stages."""
    head = ["method", "removed", *(f"drop {words}, %" for words in STAGES.values()), "runs over"]
    lines: dict[tuple[str, float], dict[str, MeanDrop]] = {}
    for each in means:
        lines.setdefault((each.method, each.compression), {})[each.stage] = each
    rows = []
    for (method, compression), stages in sorted(lines.items(), key=lambda item: item[0][::-1]):
        some = next(iter(stages.values()))
        cells = [_spread(stages[stage]) if stage in stages else "" for stage in STAGES]
        over = f"{len(some.tasks)} tasks, {len(some.seeds)} seeds"
        rows.append([method, f"{compression:.0%}", *cells, over])
    return head, rows


def _spread(each: MeanDrop) -> str:
    return f"{each.mean:.2f}" + ("" if each.spread is None else f" ± {each.spread:.2f}")


def dense_table(results: list[dict[str, Any]]) -> tuple[Row, list[Row]]:
    """Return head and rows: scores of the dense models, and what no model would reach."""
    head = ["task", "metric", "seeds", "dense", "after the extra epochs", "majority", "data"]
    rows = []
    for name, task in TASKS.items():
        runs = [
            each
            for each in results
            if each["status"] == "done"
            and each["cell"]["task"] == name
            and each["cell"]["method"] == "dense"
        ]
        if runs:
            split = task.validation[0]
            majority = runs[0]["majority"][split][task.plotted]
            stages = [_mean([plotted_score(run, stage) for run in runs]) for stage in STAGES]
            data = "official" if all(run["official_data"] for run in runs) else "a part"
            rows.append([name, task.plotted, str(len(runs)), *stages, f"{majority:.1f}", data])
    return head, rows


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f}"


def task_table(found: list[Drop]) -> tuple[Row, list[Row]]:
    """Return head and rows: the drop of every task, mean over seeds."""
    tasks = sorted({drop.task for drop in found})
    head = ["stage", "method", "removed", *tasks]
    groups: dict[tuple[str, float, str], dict[str, list[float]]] = {}
    for drop in found:
        line = groups.setdefault((drop.stage, drop.compression, drop.method), {})
        line.setdefault(drop.task, []).append(drop.percent)
    rows = []
    for (stage, compression, method), line in sorted(groups.items(), reverse=True):
        cells = [_mean(line[task]) if task in line else "" for task in tasks]
        rows.append([STAGES[stage], method, f"{compression:.0%}", *cells])
    return head, rows


def failures(results: list[dict[str, Any]]) -> list[str]:
    """Return a line for every failed run."""
    return [
        f"{each['cell']['task']}, seed {each['cell']['seed']}, {each['cell']['method']}, "
        f"{each['cell']['compression']:.0%}: {each['error']}"
        for each in results
        if each["status"] == "failed"
    ]


def markdown(results: list[dict[str, Any]]) -> str:
    """Return the whole report as Markdown."""
    found = drops(results)
    model = str(results[0]["model"])
    parts = [
        f"# {model} on GLUE",
        "Relative drops of the plotted metric on the validation split, in per cent of the dense "
        "model, which got the same extra epochs; negative is a gain. ± is the standard deviation "
        "over seeds of the mean over tasks. A task on which the dense model is no better than the "
        "majority baseline is shown, but left out of the means.",
        "## Dense models",
        _markdown(*dense_table(results)),
        "## Mean drop over tasks",
        _markdown(*mean_table(mean_drops(found))),
    ]
    reported = reported_for(model)
    if reported:
        rows = [
            [each.method, f"{each.compression:.0%}", f"{each.bound}{each.drop}"]
            for each in reported
        ]
        parts += ["## The paper, nine tasks", _markdown(["method", "removed", "drop, %"], rows)]
    parts += ["## Drop per task", _markdown(*task_table(found))]
    failed = failures(results)
    if failed:
        parts += ["## Failed runs", "\n".join(f"- {line}" for line in failed)]
    return "\n\n".join(parts) + "\n"


def _markdown(head: Row, rows: list[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
        figure = make_subplots(rows=1, cols=len(tasks), subplot_titles=tasks)
        for column, task in enumerate(tasks, start=1):
            for line, (x, y) in task_lines(found, task, stage).items():
                trace = go.Scatter(
                    x=x, y=y, name=line, legendgroup=line, showlegend=column == 1, **styles[line]
                )  # fmt: skip
                figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(title_text="removed, %")
        figure.update_yaxes(title_text="relative drop, %", col=1)
        figure.update_layout(title=words, height=420)
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
    if ENSEMBLE in styles:
        ring = {"symbol": "circle-open", "size": 13, "color": "black"}
        styles[ENSEMBLE] = {"mode": "markers", "marker": ring}
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
        "table{border-collapse:collapse}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;"
        "text-align:left}"
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
