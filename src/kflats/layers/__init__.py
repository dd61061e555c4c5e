"""Layers that hold factorised tables."""

from kflats.layers.embedding import FactorizedEmbedding
from kflats.layers.linear import FactorizedLinear
from kflats.layers.replace import replace_module
from kflats.layers.table import FactorTable

__all__ = ["FactorTable", "FactorizedEmbedding", "FactorizedLinear", "replace_module"]
