"""unpack_ and pack_: make tables in packed codes trainable, and pack what training has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from kflats.errors import InputError
from kflats.layers import StoredTable, replace_module
from kflats.layers.coded import CodedTable
from kflats.layers.trainable import TrainableTable, packed, unpacked
from kflats.storage.manifest import factor_layers

Model = TypeVar("Model", bound=nn.Module)


def unpack_(model: Model, dense: nn.Module | None = None) -> Model:
    """Replace all layers over packed codes by ones that train, in place.

    The outputs stay what they are. Modules that shared a table go on sharing it. The new layers
    hold about four bytes per code, and as much again for gradients and each moment of an
    optimizer; they cannot be saved: call :func:`pack_` first.

    Parameters
    ----------
    model : nn.Module
        A model with layers over packed codes inside.
    dense : nn.Module, optional
        The model before compression. A code changes when training has moved its number across a
        border; with the dense rows the numbers begin where those lie, near a border or far from
        it, otherwise all in the middle. A table that ``dense`` does not have under the same name,
        in the same size, begins in the middle too.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    InputError
        If the model has no such layer, or is itself one.
    UnsupportedModelError
        If a packed layer is neither an embedding nor an output head.

    Examples
    --------
    >>> import torch
    >>> from kflats import CompressionConfig, compress_
    >>> model = torch.nn.Sequential(torch.nn.Embedding(500, 32), torch.nn.Linear(32, 2))
    >>> _ = compress_(model, CompressionConfig(bits=4))
    >>> model = unpack_(model)
    >>> ids = torch.tensor([3, 7])
    >>> model(ids).sum().backward()  # train it
    >>> type(pack_(model)[0]).__name__
    'QuantizedEmbedding'
    """

    def make(old: Any, name: str) -> TrainableTable:
        new = unpacked(old)
        return new if old.is_shared else new.fill(old.codes, _dense_rows(dense, name, old))

    return _exchange(model, CodedTable, "packed codes: run compress_ with bits first", make)


def pack_(model: Model) -> Model:
    """Replace all layers that :func:`unpack_` has made by packed ones, in place.

    Tables get the shape they had, so the same bytes. Their rows differ from those of the trained
    layers by the rounding of bases, gains and code books only.

    Parameters
    ----------
    model : nn.Module
        A model that was unpacked.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    InputError
        If the model has no such layer, or is itself one, or what was trained is not finite.
    """
    return _exchange(model, TrainableTable, "unpacked tables: call unpack_ first", _packed)


def _dense_rows(dense: nn.Module | None, name: str, layer: CodedTable) -> Tensor | None:
    """Return the weight of the module of a name, None if it is no table of the same size."""
    module = dict([] if dense is None else dense.named_modules()).get(name)
    is_table = isinstance(module, nn.Embedding | nn.Linear)
    sizes = (layer.shape.num_embeddings, layer.shape.embedding_dim)
    if module is None or not is_table or tuple(module.weight.shape) != sizes:
        return None
    weight: Tensor = module.weight.detach()
    return weight.to(layer.like.device)


def _packed(old: Any, _: str) -> CodedTable:
    for name in old.FACTORS:
        if (tensor := getattr(old, name)) is not None and not bool(tensor.isfinite().all()):
            raise InputError(
                f"{name} holds NaN or infinity after training; go back to the packed model and use "
                "a smaller learning rate."
            )
    new = packed(old)
    return new if old.is_shared else new.fill(old.codes())


def _exchange(
    model: Model, kind: type[StoredTable], what: str, make: Callable[[Any, str], StoredTable]
) -> Model:
    """Replace all layers of a kind; nothing is replaced before all new ones are made."""
    layers = {name: each for name, each in factor_layers(model).items() if isinstance(each, kind)}
    if not layers or "" in layers:
        raise InputError(f"{type(model).__name__} has no layers inside that hold {what}.")
    made = {id(layer): make(layer, name) for name, layer in layers.items()}
    for layer in layers.values():
        for owner in layer._owner:
            made[id(layer)].share_with(made[id(owner)])
    for name, layer in layers.items():
        replace_module(model, name, made[id(layer)])
    return model
