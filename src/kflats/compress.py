"""compress_: replace the embedding tables of a model by factorised layers, in place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kflats.budget import FactorShape
from kflats.clustering import FitProgress
from kflats.config import CompressionConfig
from kflats.errors import InputError
from kflats.factorization import PAPER, Factorization
from kflats.layers import FactorizedEmbedding, replace_module
from kflats.linalg import check_table, row_blocks, squared_norm
from kflats.report import CompressionReport, TableReport
from kflats.report.compression import tensor_bytes
from kflats.search import choose_n_clusters
from kflats.tables import Table, check_replaceable, find_tables, scale_of

Progress = Callable[[FitProgress], None]


def compress_(
    model: nn.Module, config: CompressionConfig, *, callback: Progress | None = None
) -> CompressionReport:
    """Replace embedding tables of ``model`` by :class:`FactorizedEmbedding` layers, in place.

    All factors are found before anything is replaced, so an error leaves the model as it was.
    Modules that share a table go on sharing its factors.

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
        If the table is tied to an output head or read in an unknown way.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(500, 32), torch.nn.Linear(32, 2))
    >>> report = compress_(model, CompressionConfig(compression=0.5, n_clusters=2))
    >>> type(model[0]).__name__, report.tables[0].shape.rank
    ('FactorizedEmbedding', 14)
    """
    tables = find_tables(model, config.modules)
    for table in tables:
        check_replaceable(model, table)
    before = tensor_bytes(model)
    made = [_factor(table, config, callback) for table in tables]
    for table, (layers, _) in zip(tables, made, strict=True):
        for names, layer in zip(table.names, layers, strict=True):
            for name in names:
                replace_module(model, name, layer)
    _tell_transformers(model)
    return CompressionReport(
        tables=tuple(report for _, report in made),
        model_bytes_before=before,
        model_bytes_after=tensor_bytes(model),
        random_state=config.random_state,
    )


def _factor(
    table: Table, config: CompressionConfig, callback: Progress | None
) -> tuple[list[FactorizedEmbedding], TableReport]:
    weight = table.weight.detach()
    started = time.perf_counter()
    try:
        check_table(weight, "the table")
        exact_ids = _exact_ids(config.exact_ids, weight)
        factors = _factorization(
            weight, config, len(exact_ids), _weights(config, exact_ids, weight), callback
        )
    except InputError as error:
        raise type(error)(
            f"while compressing {table.name!r} {tuple(weight.shape)}: {error}"
        ) from error
    seconds = time.perf_counter() - started
    layers = _layers(table, factors, exact_ids)
    shape = layers[0].shape
    report = TableReport(
        name=table.name,
        method=config.method if shape.n_clusters > 1 else "svd",
        shape=shape,
        dtype=str(weight.dtype).removeprefix("torch."),
        bytes_before=weight.numel() * weight.element_size(),
        bytes_after=layers[0].num_bytes,
        relative_error=_layer_error(layers[0], weight),
        seconds=seconds,
    )
    return layers, report


def _factorization(
    weight: Tensor,
    config: CompressionConfig,
    n_exact: int,
    sample_weight: Tensor | None,
    callback: Progress | None,
) -> Factorization:
    options: dict[str, Any] = {"device": config.device, "random_state": config.random_state}
    options |= {"callback": callback, "sample_weight": sample_weight, "affine": config.affine}
    options |= PAPER if config.method == "messi" else {}
    options |= config.options
    shape = _shape(weight, config, n_exact, options)
    return Factorization.projective(weight, shape.n_clusters, shape.rank, **options)


def _shape(
    weight: Tensor, config: CompressionConfig, n_exact: int, options: dict[str, Any]
) -> FactorShape:
    """Return the sizes, found by trial where the number of clusters is left open."""
    n_clusters = 1 if config.method == "svd" else config.n_clusters
    if n_clusters is None:
        trial_options = {**options, "n_init": 1} if config.method == "messi" else options
        return choose_n_clusters(weight, config.budget, n_exact=n_exact, **trial_options)[0]
    shape = config.budget.shape(
        *weight.shape,
        n_clusters=n_clusters,
        affine=config.affine,
        n_exact=n_exact,
        dtype=weight.dtype,
    )
    if shape.compression <= 0:
        raise InputError(
            f"n_clusters={n_clusters}, rank={shape.rank} would take {shape.num_parameters} "
            f"parameters instead of {shape.dense_parameters}; lower the rank, or give a "
            "compression."
        )
    return shape


def _exact_ids(ids: tuple[int, ...], weight: Tensor) -> Tensor:
    unique = sorted(set(ids))
    if unique and not (unique[0] >= 0 and unique[-1] < len(weight)):
        raise InputError(f"exact_ids={ids} must be between 0 and {len(weight) - 1}.")
    return torch.tensor(unique, dtype=torch.int64, device=weight.device)


def _weights(config: CompressionConfig, exact_ids: Tensor, weight: Tensor) -> Tensor | None:
    """Return the row weights, zero for rows that are stored exactly anyway."""
    if config.sample_weight is None and not len(exact_ids):
        return None
    if config.sample_weight is None:
        weights = torch.ones(len(weight), device=weight.device)
    else:
        weights = config.sample_weight.to(weight.device, copy=True)
    if weights.shape == (len(weight),) and len(exact_ids):
        weights[exact_ids] = 0
    return weights


def _layers(table: Table, factors: Factorization, exact_ids: Tensor) -> list[FactorizedEmbedding]:
    """Return one layer per module of the table; all share the parameters of the first."""
    first: FactorizedEmbedding | None = None
    layers = []
    for module in table.modules:
        layer = FactorizedEmbedding.from_embedding(module, factors, exact_ids=exact_ids)
        layer.scale = scale_of(module)
        if first is None:
            first = layer
        else:
            layer.share_with(first)
        layers.append(layer)
    return layers


def _layer_error(layer: FactorizedEmbedding, weight: Tensor) -> float:
    """Return the relative error of the rows that the layer gives, before any scale."""
    error = 0.0
    with torch.no_grad():
        for block in row_blocks(*weight.shape):
            ids = torch.arange(block.start, block.stop, device=weight.device)
            rows = layer.rows(ids).to(torch.float64)
            error += float((weight[block].to(torch.float64) - rows).square_().sum())
    norm = squared_norm(weight)
    return (error / norm) ** 0.5 if norm else float(error > 0)


def _tell_transformers(module: nn.Module) -> None:
    """Let the outermost transformers models know, so that they save and load the factors."""
    if hasattr(module, "save_pretrained") and hasattr(module, "base_model_prefix"):
        from kflats.hf import describe_

        describe_(module)
        return
    for child in module.children():
        _tell_transformers(child)
