"""to_dense_: give a compressed model its dense tables back."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from torch import nn

from kflats.errors import InputError
from kflats.layers import TableBag, TableLinear, replace_module
from kflats.storage.manifest import factor_layers
from kflats.tables import transformers_roots

Model = TypeVar("Model", bound=nn.Module)


def to_dense_(model: Model) -> Model:
    """Replace all factorised layers by dense ones with the same output, in place.

    The result is an ordinary model of its library: modules that shared a factorised table share
    the dense one, and what kflats wrote into the config is taken out. The table is the
    approximation, not the original. ``model.dequantize()`` of a transformers model does the same.

    Parameters
    ----------
    model : nn.Module
        A model with factorised layers.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    InputError
        If there is no factorised layer, or the model is itself one.

    Examples
    --------
    >>> import torch
    >>> from kflats import CompressionConfig, compress_
    >>> model = torch.nn.Sequential(torch.nn.Embedding(500, 32), torch.nn.Linear(32, 2))
    >>> _ = compress_(model, CompressionConfig(compression=0.5, n_clusters=2))
    >>> to_dense_(model)[0]
    Embedding(500, 32)
    """
    layers = factor_layers(model)
    if not layers or "" in layers:
        raise InputError(
            f"{type(model).__name__} has no factorised layer inside; a layer alone has "
            "to_embedding(), to_bag() or to_linear()."
        )
    made: dict[int, nn.Module] = {}
    weights: dict[int, nn.Parameter] = {}
    for name, layer in layers.items():
        dense = made.get(id(layer))
        if dense is None:
            dense = made[id(layer)] = _dense(layer, weights)
        replace_module(model, name, dense)
    for root in transformers_roots(model):
        from kflats.hf import forget_

        forget_(root)
    return model


def _dense(layer: Any, weights: dict[int, nn.Parameter]) -> nn.Module:
    """Return the dense form; modules of one table get one weight."""
    table = weights.get(layer.table_id)
    dense: nn.Module
    if isinstance(layer, TableLinear):
        dense = layer.to_linear(table)
    elif isinstance(layer, TableBag):
        dense = layer.to_bag(table)
    else:
        dense = layer.to_embedding(table)
    if not layer.folds_scale:
        weights[layer.table_id] = cast(nn.Parameter, dense.weight)
    return dense
