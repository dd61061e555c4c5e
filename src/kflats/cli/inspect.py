"""``kflats inspect``: the tables of a model, and what compressing them would cost."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from kflats.cli.console import (
    JsonOption,
    ModelArgument,
    SeedOption,
    emit,
    errors,
    new_table,
    output,
    parse_numbers,
    quiet_libraries,
    steps,
)

if TYPE_CHECKING:
    from torch import nn

    from kflats.analysis.grid import GridPoint
    from kflats.tables import Table


_PAPER_CLUSTERS = 5


def inspect(
    model: ModelArgument,
    compressions: Annotated[
        str, typer.Option(help="Fractions of the parameters to remove, comma-separated.")
    ] = "0.2,0.4,0.6,0.8",
    clusters: Annotated[
        str, typer.Option(help="Numbers of subspaces to try, comma-separated.")
    ] = "2,3,5,8",
    at: Annotated[
        float, typer.Option(help="Size at which each extension is measured; 0 leaves that out.")
    ] = 0.4,
    module: Annotated[
        list[str] | None,
        typer.Option(help="Embedding to look at instead of the token table; repeatable."),
    ] = None,
    plot: Annotated[Path, typer.Option(help="PNG of the errors.")] = Path("kflats-inspect.png"),
    base_model: Annotated[
        bool, typer.Option("--base-model", help="Load the model without its head.")
    ] = False,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Show every embedding table of MODEL, its spectrum, and the error at several sizes."""
    sizes = parse_numbers(compressions, float)
    ks = parse_numbers(clusters, int)
    if not all(0 < size < 1 for size in [*sizes, at or 0.5]) or not all(k >= 1 for k in ks):
        raise typer.BadParameter(
            "compressions are between 0 and 1, numbers of clusters at least 1."
        )
    from kflats.errors import BudgetError
    from kflats.extras import need
    from kflats.models import open_model
    from kflats.tables import embedding_tables, find_tables

    quiet_libraries()
    need("report", "matplotlib")
    with errors.status("loading the model"):
        opened = open_model(model, base_model=base_model)
    chosen = find_tables(opened, module)
    overview = _overview(opened, embedding_tables(opened))
    _print_overview(overview)
    grids = {table.name: _grid(table, sizes, ks, seed) for table in chosen}
    empty = [name for name, points in grids.items() if not points]
    if empty:
        raise BudgetError(
            f"{empty[0]!r}: none of the compressions {compressions} can be met; give smaller ones."
        )
    for name, points in grids.items():
        _print_grid(name, points)
    extensions = {}
    if at:
        for table in chosen:
            with suppress(BudgetError):
                extensions[table.name] = _extensions(table, at, ks, seed)
    _draw(grids, plot)
    output.print(f"picture: {plot}", markup=False, highlight=False, soft_wrap=True)
    emit(
        {
            "model": model,
            "tables": overview,
            "grid": {name: [p.to_dict() for p in points] for name, points in grids.items()},
            "extensions": extensions,
            "plot": str(plot),
        },
        json,
    )


def _overview(opened: nn.Module, tables: list[Table]) -> list[dict[str, Any]]:
    from kflats.analysis.spectrum import Spectrum

    total = sum(parameter.numel() for parameter in opened.parameters())
    return [
        {
            "name": table.name,
            "shape": list(table.weight.shape),
            "bytes": table.weight.numel() * table.weight.element_size(),
            "share": table.weight.numel() / total,
            "ranks": {
                f"{share:.0%}": rank
                for share, rank in Spectrum.of(table.weight.detach()).ranks_for().items()
            },
        }
        for table in tables
    ]


def _print_overview(rows: list[dict[str, Any]]) -> None:
    shares = list(rows[0]["ranks"])
    view = new_table("embedding tables, and the rank that holds a share of the squared norm")
    view.add_column("module", overflow="fold")
    for title in ("shape", "bytes", "of model", *shares):
        view.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        view.add_row(
            escape(row["name"]),
            "x".join(str(size) for size in row["shape"]),
            f"{row['bytes']:,}",
            f"{row['share']:.1%}",
            *(str(row["ranks"][share]) for share in shares),
        )
    output.print(view)


def _grid(table: Table, sizes: list[float], ks: list[int], seed: int) -> list[GridPoint]:
    from kflats.analysis.grid import factorizations

    clusters = [1, *(k for k in ks if k != 1)]
    weight = table.weight.detach()
    with steps(table.name, len(sizes) * (len(clusters) + 1)) as next_step:
        found = factorizations(
            weight, sizes, clusters, flats=True, random_state=seed, on_start=next_step
        )
        return [point for point, _ in found]


def _extensions(table: Table, at: float, ks: list[int], seed: int) -> list[dict[str, Any]]:
    """Measure and print what each extension of the paper's method buys."""
    from kflats.analysis.steps import STEPS
    from kflats.analysis.steps import steps as extension_steps

    k = max((k for k in ks if k <= _PAPER_CLUSTERS), default=_PAPER_CLUSTERS)
    weight = table.weight.detach()
    with steps(table.name, len(STEPS) + 2) as next_step:
        rows = list(extension_steps(weight, at, k, random_state=seed, on_start=next_step))
    view = new_table(f"{escape(table.name)}: each extension in turn, {at:.0%} removed")
    view.add_column("method")
    for title in ("k", "parameters", "squared rel. error"):
        view.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        error = f"{row.squared_relative_error:.4f}"
        view.add_row(row.name, str(row.n_clusters), f"{row.num_parameters:,}", error)
    output.print(view)
    return [asdict(row) for row in rows]


def _print_grid(name: str, points: list[GridPoint]) -> None:
    methods = list(dict.fromkeys(point.method for point in points))
    view = new_table(f"{escape(name)}: relative error (rank)")
    for title in ("removed", *methods):
        view.add_column(title, justify="right", no_wrap=True)
    for size in dict.fromkeys(point.compression for point in points):
        row = {p.method: p for p in points if p.compression == size}
        best = min(row.values(), key=lambda point: point.squared_relative_error)
        cells = []
        for method in methods:
            point = row.get(method)
            text = "" if point is None else f"{point.relative_error:.4f} ({_rank(point)})"
            cells.append(f"[bold]{text}[/]" if point is best else text)
        view.add_row(f"{size:.0%}", *cells)
    output.print(view)


def _rank(point: GridPoint) -> str:
    """Return the dimensions of the subspaces, and their number where it was chosen."""
    text = point.shape.rank_range
    return f"{text}, k = {point.shape.n_clusters}" if point.shape.echelon else text


def _draw(grids: dict[str, list[GridPoint]], path: Path) -> None:
    from kflats.analysis.grid import curves
    from kflats.report.plots import draw_curves, new_figure, write_figure

    figure, axes = new_figure(len(grids))
    for axis, (name, points) in zip(axes, grids.items(), strict=True):
        draw_curves(
            axis,
            curves(points),
            title=name,
            x_label="parameters removed, %",
            y_label="relative error",
        )
    write_figure(figure, path)
