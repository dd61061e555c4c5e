"""set_trainable: choose what of the factorised tables trains."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from kflats.errors import InputError
from kflats.layers import FactorTable
from kflats.storage.manifest import factor_layers


def set_trainable(model: nn.Module, factors: Iterable[str]) -> nn.Module:
    """Let only the named factors of every factorised table train, in place.

    Everything else of the model is left as it is; freeze it with ``requires_grad_(False)`` first
    if nothing but the factors shall train.

    Parameters
    ----------
    model : nn.Module
        A model with factorised layers.
    factors : iterable of {'coefficients', 'bases', 'means'}
        What trains; empty freezes the tables.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    InputError
        If a name is unknown, or the model has no factorised layer.

    Examples
    --------
    >>> import torch
    >>> from kflats import CompressionConfig, compress_
    >>> model = torch.nn.Sequential(torch.nn.Embedding(500, 32), torch.nn.Linear(32, 2))
    >>> _ = compress_(model, CompressionConfig(compression=0.5, n_clusters=2))
    >>> _ = set_trainable(model, ["bases"])
    >>> [name for name, each in model[0].named_parameters() if each.requires_grad]
    ['bases']
    """
    names = FactorTable.FACTORS
    wanted = {factors} if isinstance(factors, str) else set(factors)
    if wanted - set(names):
        raise InputError(f"{sorted(wanted - set(names))} are no factors; allowed are {names}.")
    layers = factor_layers(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no factorised layer: run compress_ first.")
    for name, layer in layers.items():
        if not isinstance(layer, FactorTable):
            raise InputError(
                f"{name!r} holds packed codes, which do not train: call kflats.unpack_ first."
            )
    for layer in layers.values():
        for name in names:
            parameter = getattr(layer, name)
            if parameter is not None:
                parameter.requires_grad_(name in wanted)
    return model
