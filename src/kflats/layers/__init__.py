"""Layers that hold factorised tables."""

from kflats.layers.embedding import FactorizedEmbedding
from kflats.layers.replace import replace_module

__all__ = ["FactorizedEmbedding", "replace_module"]
