"""The part of ``kflats compress`` that compares methods before it takes one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kflats.cli.console import errors, new_table, output

if TYPE_CHECKING:
    from torch import nn

    from kflats.config import CompressionConfig
    from kflats.planning.plan import Metric, Plan


def planning(
    model: nn.Module, config: CompressionConfig, metric: str | None, max_drop: float | None
) -> CompressionConfig:
    """Print the frontier of a model and return the config of the best plan."""
    from kflats.planning.plan import plan
    from kflats.tables import find_tables

    names = [table.name for table in find_tables(model, config.modules)]
    if len(names) > 1:
        if metric is not None:
            raise typer.BadParameter(
                f"--metric plans one table, the model has {names}; use --module."
            )
        note = f"note: {len(names)} tables share the size in packed codes; no methods are compared."
        errors.print(note, markup=False, highlight=False, soft_wrap=True)
        return config
    measure = None if metric is None else _metric(metric)
    with errors.status("planning") as status:
        found = plan(
            model,
            config,
            metric=measure,
            max_drop=max_drop,
            on_start=lambda title: status.update(f"planning: {title}"),
        )
    _print(found)
    return found.config


def _metric(text: str) -> Metric:
    """Return what ``sts=FILE`` names."""
    kind, _, place = text.partition("=")
    if kind != "sts" or not place:
        raise typer.BadParameter(f"--metric {text!r} is unknown; give sts=FILE.")
    from kflats.evaluation.sts import load_pairs, sts_spearman

    pairs = load_pairs(Path(place))

    def measure(model: nn.Module) -> float:
        if not hasattr(model, "encode"):
            raise typer.BadParameter("--metric sts needs a sentence-transformers model.")
        return sts_spearman(model, pairs)

    return measure


def _print(found: Plan) -> None:
    with_metric = found.dense_metric is not None
    table = new_table("ways to store the table, by size")
    for name in ("method", "bytes", "bits", "sq. error", *(["metric"] if with_metric else [])):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in found.rows:
        mark = "" if row.can_be_saved else " *"
        style = "bold" if row == found.chosen else None
        cells = [row.name + mark, f"{row.num_bytes:,}", f"{row.bits:.2f}", f"{row.error:.5f}"]
        if with_metric:
            cells.append("" if row.metric is None else f"{row.metric:.2f}")
        table.add_row(*cells, style=style)
    output.print(table)
    output.print("* for comparison; not a form that kflats saves", highlight=False)
    output.print(found.verdict, markup=False, highlight=False, soft_wrap=True)
