"""compress_: replace the embedding tables of a model by factorised layers, in place."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kflats.config import CompressionConfig
from kflats.errors import InputError
from kflats.factors.factorization import Factorization
from kflats.factors.fit import Progress, factorize
from kflats.factors.shape import FactorShape
from kflats.layers import (
    FactorizedEmbedding,
    FactorizedEmbeddingBag,
    FactorizedLinear,
    QuantizedEmbedding,
    QuantizedEmbeddingBag,
    QuantizedLinear,
    StoredTable,
    replace_module,
)
from kflats.linalg import are_safe, check_table, row_blocks, scaled_error, squared_norm
from kflats.quantization.codes import Codes
from kflats.quantization.search import fit_codes
from kflats.quantization.shape import CodeShape
from kflats.report import CompressionReport, TableReport
from kflats.report.compression import tensor_bytes
from kflats.tables import (
    Reader,
    Table,
    check_replaceable,
    find_tables,
    scale_of,
    transformers_roots,
)
from kflats.trial import check_trial


def compress_(
    model: nn.Module, config: CompressionConfig, *, callback: Progress | None = None
) -> CompressionReport:
    """Replace embedding tables of ``model``, and output heads, by factorised layers, in place.

    All factors are found before anything is replaced, so an error leaves the model as it was.
    Modules that share a table, tied output heads among them, go on sharing its factors; an output
    head with a table of its own gets factors of its own. A target size is that of all tables
    together. The row of ``padding_idx`` stays zero if it is.

    Parameters
    ----------
    model : nn.Module
        Any model: of transformers (the token table is found), sentence-transformers, or plain.
    config : CompressionConfig
        Size and method.
    callback : callable, optional
        Called with a :class:`FitProgress` after every refitting.

    Returns
    -------
    CompressionReport
        Sizes before and after, errors, provenance.

    Raises
    ------
    InputError
        If a table or a setting cannot be used; the message names the table.
    BudgetError
        If no rank or number of clusters meets the size.
    UnsupportedModelError
        If the table is read in a way that factors cannot serve. A copy of a transformers model,
        which shares its parameters, is run on a few ids to find out.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(500, 32), torch.nn.Linear(32, 2))
    >>> report = compress_(model, CompressionConfig(compression=0.5, n_clusters=2))
    >>> type(model[0]).__name__, report.tables[0].compression >= 0.5
    ('FactorizedEmbedding', True)
    """
    tables = find_tables(model, config.modules)
    for table in tables:
        check_replaceable(model, table)
    check_trial(model, tables)
    before = tensor_bytes(model)
    made = [_factor(table, _share(config, table, tables), callback) for table in tables]
    for table, (layers, _) in zip(tables, made, strict=True):
        for names, layer in zip(table.names, layers, strict=True):
            for name in names:
                replace_module(model, name, layer)
    for root in transformers_roots(model):
        from kflats.hf import describe_

        describe_(root)
    return CompressionReport(
        tables=tuple(report for _, report in made),
        model_bytes_before=before,
        model_bytes_after=tensor_bytes(model),
        random_state=config.random_state,
    )


def _share(config: CompressionConfig, table: Table, tables: list[Table]) -> CompressionConfig:
    """Return the config with this table's part of the target size, by its share of the numbers."""
    if config.target_bytes is None or len(tables) == 1:
        return config
    total = sum(each.weight.numel() for each in tables)
    part = max(1, config.target_bytes * table.weight.numel() // total)
    return dataclasses.replace(config, target_bytes=part)


def _factor(
    table: Table, config: CompressionConfig, callback: Progress | None
) -> tuple[list[StoredTable], TableReport]:
    weight = table.weight.detach()
    started = time.perf_counter()
    try:
        check_table(weight, "the table")
        # Only a linear subspace holds a row of zeros as it is.
        zeros = table.zero_ids if config.has_means else ()
        exact_ids = _exact_ids((*config.exact_ids, *zeros), weight)
        if config.method == "codes":
            codes = fit_codes(weight, config, exact_ids)
            layers = _layers(table, lambda module: _coded_layer(module, codes))
        else:
            factors = factorize(weight, config, exact_ids, callback)
            layers = _layers(table, lambda module: _factor_layer(module, factors, exact_ids))
    except InputError as error:
        raise type(error)(
            f"while compressing {table.name!r} {tuple(weight.shape)}: {error}"
        ) from error
    seconds = time.perf_counter() - started
    method = _found_method(config.method, layers[0].shape)
    relative_error = _layer_error(layers[0], weight)
    for layer in layers:
        layer.origin = {"method": method, "relative_error": relative_error}
    report = TableReport(
        name=table.name,
        readers=table.all_names,
        method=method,
        shape=layers[0].shape,
        dtype=str(weight.dtype).removeprefix("torch."),
        bytes_before=weight.numel() * weight.element_size(),
        bytes_after=layers[0].num_bytes,
        relative_error=relative_error,
        seconds=seconds,
    )
    return layers, report


def _found_method(asked: str, shape: FactorShape | CodeShape) -> str:
    if isinstance(shape, CodeShape) or shape.n_clusters > 1 or shape.echelon:
        return asked
    return "svd"


def _exact_ids(ids: tuple[int, ...], weight: Tensor) -> Tensor:
    unique = sorted(set(ids))
    if unique and not (unique[0] >= 0 and unique[-1] < len(weight)):
        raise InputError(f"exact_ids={ids} must be between 0 and {len(weight) - 1}.")
    return torch.tensor(unique, dtype=torch.int64, device=weight.device)


def _layers(table: Table, make: Callable[[Reader], StoredTable]) -> list[StoredTable]:
    """Return one layer per module of the table; all share the tensors of the first."""
    layers = [make(module) for module in table.modules]
    for layer in layers[1:]:
        layer.share_with(layers[0])
    return layers


def _factor_layer(module: Reader, factors: Factorization, exact_ids: Tensor) -> StoredTable:
    if isinstance(module, nn.Linear):
        return FactorizedLinear.from_linear(module, factors, exact_ids=exact_ids)
    if isinstance(module, nn.EmbeddingBag):
        return FactorizedEmbeddingBag.from_bag(module, factors, exact_ids=exact_ids)
    layer = FactorizedEmbedding.from_embedding(module, factors, exact_ids=exact_ids)
    layer.scale = scale_of(module)
    return layer


def _coded_layer(module: Reader, codes: Codes) -> StoredTable:
    if isinstance(module, nn.Linear):
        return QuantizedLinear.from_linear(module, codes)
    if isinstance(module, nn.EmbeddingBag):
        return QuantizedEmbeddingBag.from_bag(module, codes)
    layer = QuantizedEmbedding.from_embedding(module, codes)
    layer.scale = scale_of(module)
    return layer


def _layer_error(layer: StoredTable, weight: Tensor) -> float:
    """Return the relative error of the rows that the layer gives, before any scale."""

    def rows(block: slice) -> Tensor:
        return layer.rows(torch.arange(block.start, block.stop, device=weight.device))

    with torch.no_grad():
        error, norm = 0.0, squared_norm(weight)
        for block in row_blocks(*weight.shape):
            difference = weight[block].to(torch.float64) - rows(block).to(torch.float64)
            error += float(difference.square_().sum())
        return (error / norm) ** 0.5 if are_safe(error, norm) else scaled_error(weight, rows)
