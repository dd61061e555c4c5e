"""``kflats glue``: the paper's experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kflats.cli.console import JsonOption, emit, errors, new_table, output, quiet_libraries, steps

app = typer.Typer(help="The paper's experiment: nine GLUE tasks, SVD against clustering.")

ResultsArgument = Annotated[
    Path,
    typer.Argument(metavar="RESULTS", help="Folder of kflats glue run.", show_default=False),
]


@app.command()
def run(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="TOML file, or a shipped one: smoke, minilm-small, paper-..."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for results; goes on where it stopped.")
    ] = Path("glue-results"),
    data: Annotated[
        str | None, typer.Option(help="Folder of parquet files, or a name on the Hub.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; repeatable.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many runs are open and about how long.")
    ] = False,
    ray: Annotated[
        str | None, typer.Option(help="Run on this Ray cluster: an address, auto or local.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Do every run of CONFIG that is not done yet; stop and start again at any time."""
    from kflats.extras import need

    need("glue", "transformers", "datasets", "accelerate")
    if ray is not None:
        need("cluster", "ray")
    from kflats.glue.runner import prepare, run_sweep
    from kflats.glue.settings import Sweep
    from kflats.glue.store import read_results

    _quiet_datasets()
    quiet_libraries()
    sweep = Sweep.from_toml(config, data=data, tasks=task or None, seeds=seed or None)
    if dry_run:
        with errors.status("reading the data and timing a batch"):
            summary = _plan(*prepare(sweep, out), total=len(sweep.cells()))
        line = (
            f"{summary['total']} runs, {summary['open']} open; about "
            f"{_duration(summary['seconds'])} on this machine"
        )
        output.print(line, markup=False, highlight=False, soft_wrap=True)
        emit(summary, json)
        return
    with steps("reading the data", total=len(sweep.cells())) as next_step:
        outcome = run_sweep(
            sweep,
            out,
            ray_address=ray,
            on_start=lambda name, number, total: next_step(f"{name}, {number} of {total}"),
        )
    line = (
        f"{outcome.done} runs done, {outcome.skipped} were done before, {outcome.failed} failed; "
        f"kflats glue report {out}"
    )
    output.print(line, markup=False, highlight=False, soft_wrap=True)
    emit({"output": str(out), **vars(outcome)}, json)
    if outcome.failed:
        _print_failures(read_results(out))
        raise typer.Exit(1)


@app.command()
def report(
    results: ResultsArgument,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the report; RESULTS if left out."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write tables and the paper's figures: report.md, PNG files and one HTML page."""
    from kflats.extras import need

    need("glue", "matplotlib", "plotly")
    from kflats.glue.drops import drops
    from kflats.glue.figures import draw_figures
    from kflats.glue.means import mean_drops
    from kflats.glue.page import write_page
    from kflats.glue.store import check_alike, read_results, write_text
    from kflats.glue.tables import dense_table, lead_table, markdown, mean_table

    found = read_results(results)
    check_alike(found)
    folder = results if out is None else out
    found_drops = drops(found)
    means = mean_drops(found_drops)
    write_text(folder / "report.md", markdown(found))
    if found_drops:
        draw_figures(found_drops, folder)
        write_page(found, folder / "report.html")
    for title, (head, rows) in (
        ("dense models", dense_table(found)),
        ("mean drop over tasks", mean_table(means)),
        ("how much less than SVD is lost, points", lead_table(means)),
    ):
        if not rows:
            continue
        table = new_table(title)
        for name in head:
            table.add_column(name)
        for row in rows:
            table.add_row(*row)
        output.print(table)
    _print_failures(found)
    output.print(f"saved to {folder}", markup=False, highlight=False, soft_wrap=True)
    emit({"output": str(folder), "means": [vars(each) for each in means]}, json)


@app.command()
def tasks(json: JsonOption = False) -> None:
    """List the tasks with their columns, labels and metrics."""
    from kflats.glue.tasks import TASKS

    table = new_table("GLUE")
    for name in ("task", "columns", "labels", "metrics", "plotted", "train"):
        table.add_column(name)
    for each in TASKS.values():
        labels = ", ".join(each.labels) or "0 to 5"
        columns = (", ".join(each.columns), labels, ", ".join(each.metrics), each.plotted)
        table.add_row(each.name, *columns, str(each.train_size))
    output.print(table)
    emit({name: vars(each) for name, each in TASKS.items()}, json)


def _print_failures(results: list[dict[str, Any]]) -> None:
    from kflats.glue.tables import failures

    for line in failures(results):
        errors.print(f"failed: {line}", markup=False, highlight=False, soft_wrap=True)


def _plan(experiments: dict[str, Any], cells: list[Any], *, total: int) -> dict[str, Any]:
    from kflats.glue.estimate import estimate_seconds

    seconds = estimate_seconds(experiments, [cell for cell, _ in cells])
    return {"total": total, "open": len(cells), "seconds": round(seconds)}


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{max(1, minutes)} min"


def _quiet_datasets() -> None:
    import datasets

    datasets.disable_progress_bars()
