"""Changes of a model that end with a block, or are undone after an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from kflats.layers import replace_module
from kflats.layers.coded import CodedTable
from kflats.quantization.training import unpack_
from kflats.storage.manifest import factor_layers
from kflats.training.groups import Groups, parameter_groups


@contextmanager
def kept_modes(*models: nn.Module) -> Iterator[None]:
    """Let all modules be in training or evaluation mode again as they are now."""
    modes = [(each, each.training) for model in models for each in model.modules()]
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


@contextmanager
def trainable(model: nn.Module, teacher: nn.Module, parts: str) -> Iterator[Groups]:
    """Unpack the tables, let the parts train and give their parameters.

    After an error the model is as it was.
    """
    packed = {n: each for n, each in factor_layers(model).items() if isinstance(each, CodedTable)}
    if packed:
        unpack_(model, teacher)
    groups = parameter_groups(model, parts)
    flags = [(each, each.requires_grad) for each in (*model.parameters(), *teacher.parameters())]
    old = [(each, each.detach().clone()) for each in groups.kept]
    for each, _ in flags:
        each.requires_grad_(False)
    for each in groups.parameters:
        each.requires_grad_(True)
    try:
        yield groups
    except BaseException:
        for name, layer in packed.items():
            replace_module(model, name, layer)
        with torch.no_grad():
            for each, values in old:
                each.copy_(values)
        raise
    finally:
        for each, flag in flags:
            each.requires_grad_(flag)
