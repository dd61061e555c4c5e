"""Putting a module where another one was."""

from __future__ import annotations

from torch import nn

from kflats.errors import InputError


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``name`` (dotted) is in ``model``."""
    parent, _, leaf = name.rpartition(".")
    if not leaf:
        raise InputError(
            "the model is itself the embedding: wrap it in a module, or use "
            "FactorizedEmbedding.from_embedding."
        )
    setattr(model.get_submodule(parent), leaf, module)
