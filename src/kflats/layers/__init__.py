"""Layers that hold compressed tables: as factors, or as packed codes."""

from kflats.layers.bag import FactorizedEmbeddingBag, QuantizedEmbeddingBag, TableBag
from kflats.layers.coded import CodedTable, QuantizedEmbedding, QuantizedLinear
from kflats.layers.embedding import FactorizedEmbedding, TableEmbedding, TableLookup
from kflats.layers.linear import FactorizedLinear, TableLinear
from kflats.layers.replace import replace_module
from kflats.layers.stored import StoredTable
from kflats.layers.table import FactorTable

__all__ = [
    "CodedTable",
    "FactorTable",
    "FactorizedEmbedding",
    "FactorizedEmbeddingBag",
    "FactorizedLinear",
    "QuantizedEmbedding",
    "QuantizedEmbeddingBag",
    "QuantizedLinear",
    "StoredTable",
    "TableBag",
    "TableEmbedding",
    "TableLinear",
    "TableLookup",
    "replace_module",
]
