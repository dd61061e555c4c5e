"""The tables of a report, and the whole report as Markdown."""

from __future__ import annotations

from typing import Any

from kflats.glue.drops import STAGES, Drop, drops, plotted_score
from kflats.glue.means import MeanDrop, mean_drops
from kflats.glue.paper import reported_for
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
