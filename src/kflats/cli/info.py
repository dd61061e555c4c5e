"""``kflats info``: what a compressed checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from kflats.cli.console import JsonOption, emit, new_table, output

if TYPE_CHECKING:
    from kflats.storage.info import TableInfo

FolderArgument = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="Folder that kflats wrote.", show_default=False),
]


def info(folder: FolderArgument, json: JsonOption = False) -> None:
    """Say what a compressed FOLDER holds; checks the tables and reads the headers of the rest."""
    from kflats.storage.info import folder_info

    found = folder_info(folder)
    table = new_table(escape(f"{folder}: {found.architecture}, format {found.format_version}"))
    for column in ("table", "size", "method", "k", "rank", "exact"):
        table.add_column(column, justify="left" if column in ("table", "method") else "right")
    for each in found.tables:
        shape = each.shape
        table.add_row(
            escape("\n= ".join(each.readers)),
            f"{shape.num_embeddings} x {shape.embedding_dim}",
            escape(each.method) + (", affine" if shape.affine else ""),
            "" if each.is_packed else str(shape.n_clusters),
            "" if each.is_packed else shape.rank_range,
            str(shape.n_exact),
        )
    output.print(table)
    lines = [
        f"{each.name}: {each.num_bytes:,} bytes of {_content(each)} instead of "
        f"{each.dense_bytes:,} of {each.dtype} ({each.saving}), "
        f"{each.resident_bytes:,} in memory, relative error "
        + ("not recorded" if each.relative_error is None else f"{each.relative_error:.4f}")
        for each in found.tables
    ]
    lines.append(
        f"all tensors: {found.tensor_bytes:,} bytes, with dense tables {found.dense_tensor_bytes:,}"
    )
    output.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    emit(found.to_dict(), json)


def _content(table: TableInfo) -> str:
    """Say what the bytes of a table are."""
    if table.is_packed:
        return "packed codes and what unpacks them"
    return f"{table.dtype} factors and labels"
