"""The tables of a report, and the whole report as Markdown."""

from __future__ import annotations

from typing import Any

from kflats.glue.drops import STAGES, Drop, drops, orphans, plotted_score, reading_order
from kflats.glue.means import REFERENCE, MeanDrop, mean_and_spread, mean_drops
from kflats.glue.paper import reported_for
from kflats.glue.settings import BY_BITS, Cell
from kflats.glue.tasks import TASKS

Row = list[str]


def mean_table(means: list[MeanDrop]) -> tuple[Row, list[Row]]:
    """Return head and rows: mean drop over tasks by method and compression, both stages."""
    head = [
        "method",
        "removed",
        "table, MB",
        *(f"drop {words}, %" for words in STAGES.values()),
        "tasks x seeds",
    ]
    rows = []
    for (compression, method), stages in _lines(means):
        cells = [_words((each.mean, each.spread)) if each else "" for each in stages]
        known = [each for each in stages if each]
        over = " / ".join(dict.fromkeys(_counts(each.tasks) for each in known))
        size = f"{known[0].num_bytes / 1e6:.2f}"
        rows.append([method, _share(compression), size, *cells, over])
    return head, rows


def _counts(tasks: dict[str, int]) -> str:
    seeds = sorted({min(tasks.values()), max(tasks.values())})
    return f"{len(tasks)} x {' to '.join(map(str, seeds))}"


def lead_table(means: list[MeanDrop]) -> tuple[Row, list[Row]]:
    """Return head and rows: how much less than SVD a method lost, seed by seed, both stages."""
    head = ["method", "removed", *STAGES.values()]
    rows = []
    for (compression, method), stages in _lines(means):
        cells = [_words(each.lead) if each and each.lead else "" for each in stages]
        if any(cells):
            rows.append([method, _share(compression), *cells])
    return head, rows


def _lines(means: list[MeanDrop]) -> list[tuple[tuple[float, str], list[MeanDrop | None]]]:
    """Return compression and method with the mean of each stage, smallest compression first."""
    found = {(each.compression, each.method, each.stage): each for each in means}
    lines = sorted({key[:2] for key in found}, key=lambda line: (line[0], reading_order(line[1])))
    return [(line, [found.get((*line, stage)) for stage in STAGES]) for line in lines]


def _share(compression: float) -> str:
    return f"{100 * compression:.3g}%"


def _words(values: tuple[float, float | None]) -> str:
    mean, spread = values
    return f"{mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


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
            values = [[plotted_score(run, stage) for run in runs] for stage in STAGES]
            stages = [_words(mean_and_spread(each)) for each in values]
            data = "official" if all(run["official_data"] for run in runs) else "a part"
            rows.append([name, task.plotted, str(len(runs)), *stages, f"{majority:.1f}", data])
    return head, rows


def task_table(found: list[Drop]) -> tuple[Row, list[Row]]:
    """Return head and rows: the drop of every task, mean and spread over seeds."""
    return _by_task([(drop, drop.percent) for drop in found])


def task_lead_table(found: list[Drop]) -> tuple[Row, list[Row]]:
    """Return head and rows: as :func:`lead_table`, for every task."""
    svd = {
        (drop.task, drop.seed, drop.compression, drop.stage): drop.percent
        for drop in found
        if drop.method == REFERENCE
    }
    places = [(drop, (drop.task, drop.seed, drop.compression, drop.stage)) for drop in found]
    return _by_task(
        [
            (drop, svd[place] - drop.percent)
            for drop, place in places
            if place in svd and drop.method != REFERENCE
        ]
    )


def _by_task(values: list[tuple[Drop, float]]) -> tuple[Row, list[Row]]:
    """Return head and rows: a number of each run as mean and spread over seeds, task by task."""
    tasks = sorted({drop.task for drop, _ in values})
    head = ["stage", "method", "removed", *tasks]
    groups: dict[tuple[str, float, str], dict[str, list[float]]] = {}
    for drop, value in values:
        line = groups.setdefault((drop.stage, drop.compression, drop.method), {})
        line.setdefault(drop.task, []).append(value)
    rows = []
    for stage, compression, method in sorted(groups, key=_task_order):
        line = groups[stage, compression, method]
        cells = [_words(mean_and_spread(line[task])) if task in line else "" for task in tasks]
        rows.append([STAGES[stage], method, _share(compression), *cells])
    return head, rows


def _task_order(line: tuple[str, float, str]) -> tuple[object, ...]:
    stage, compression, method = line
    return list(STAGES).index(stage), compression, reading_order(method)


def _sizes(results: list[dict[str, Any]]) -> list[str]:
    """Return a sentence about the bytes of the dense table, if a run has replaced it."""
    tables = [each["table"] for each in results if each.get("table")]
    if not tables:
        return []
    size = tables[0]["bytes_before"] / 1e6
    text = f"The dense table takes {size:.2f} MB; sizes count labels, scales and code books."
    if any(each["cell"]["method"] in BY_BITS for each in results):
        text += (
            " What is removed is a share of the parameters, with int and codes of the bits of a "
            "parameter: compare the MB."
        )
    return [text]


def failures(results: list[dict[str, Any]]) -> list[str]:
    """Return why runs failed: a line for each reason, with the first run that it stopped."""
    stopped: dict[str, list[str]] = {}
    for each in results:
        if each["status"] == "failed":
            stopped.setdefault(each["error"], []).append(Cell(**each["cell"]).name)
    return [
        f"{runs[0]}{f' and {len(runs) - 1} more' if len(runs) > 1 else ''}: {reason}"
        for reason, runs in stopped.items()
    ]


def markdown(results: list[dict[str, Any]]) -> str:
    """Return the whole report as Markdown."""
    found = drops(results)
    means = mean_drops(found)
    model = str(results[0]["model"])
    parts = [
        f"# {model} on GLUE",
        "Relative drops of the plotted metric on the validation split, in per cent of the dense "
        "model, which got the same extra epochs; negative is a gain. ± is the standard deviation "
        "from one seed to the next. The ensemble takes, for each task and seed, the number "
        "of clusters with the best training score. A task on which the dense models, all seeds "
        "together, are no better than the majority baseline is shown, but left out of the means.",
        "## Dense models",
        _markdown(*dense_table(results)),
        "## Mean drop over tasks",
        *_sizes(results),
        _markdown(*mean_table(means)),
    ]
    head, leads = lead_table(means)
    if leads:
        parts += [
            "## How much less than SVD is lost",
            "Percentage points, seed by seed on the same dense models.",
            _markdown(head, leads),
            _markdown(*task_lead_table(found)),
        ]
    reported = reported_for(model)
    if reported:
        rows = [
            [each.method, _share(each.compression), f"{each.bound}{each.drop}"] for each in reported
        ]
        parts += ["## The paper, nine tasks", _markdown(["method", "removed", "drop, %"], rows)]
    parts += ["## Drop per task", _markdown(*task_table(found))]
    missing = orphans(results)
    if missing:
        parts += [
            "## Without a dense run",
            f"These have no finished dense run, so no drop: {'; '.join(missing)}.",
        ]
    failed = failures(results)
    if failed:
        parts += ["## Failed runs", "\n".join(f"- {line}" for line in failed)]
    return "\n\n".join(parts) + "\n"


def _markdown(head: Row, rows: list[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
