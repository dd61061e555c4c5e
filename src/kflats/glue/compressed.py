"""The table of a compressed run: replaced by its method, and trained with the rest of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kflats.compress import compress_
from kflats.config import CompressionConfig
from kflats.glue.settings import BY_BITS, Cell
from kflats.planning.plain import plain_config
from kflats.quantization.training import pack_, unpack_
from kflats.tables import find_tables


def compress_table(model: Any, cell: Cell) -> dict[str, Any]:
    """Replace the token table of a fine-tuned model in place; return the report of the table."""
    return compress_(model, config_of(model, cell)).tables[0].to_dict()


def config_of(model: Any, cell: Cell) -> CompressionConfig:
    """Return how the table of a model is compressed in a run."""
    if cell.method not in BY_BITS:
        return CompressionConfig(
            compression=cell.compression,
            n_clusters=cell.n_clusters,
            method=cell.method,
            random_state=cell.seed,
        )
    codes = CompressionConfig(bits=cell.bits, random_state=cell.seed)
    if cell.method == "codes":
        return codes
    table = find_tables(model)[0]
    return plain_config(replace(codes, exact_ids=table.zero_ids), table.weight, round(cell.bits))


@contextmanager
def trainable_table(model: Any, cell: Cell, dense: Callable[[], Any]) -> Iterator[None]:
    """Let packed codes train: within the block they are numbers, after it codes of the same size.

    Their coefficients begin at the rows of the ``dense`` model, see :func:`kflats.unpack_`. Factors
    train as they are.
    """
    if cell.method not in BY_BITS:
        yield
        return
    unpack_(model, dense())
    yield
    pack_(model)
