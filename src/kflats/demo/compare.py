"""Compare sizes and methods on a sentence encoder, through the layer that would be shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from kflats.analysis.baselines import BASELINES
from kflats.analysis.grid import factorizations
from kflats.evaluation.sts import embed
from kflats.layers import FactorizedEmbedding, replace_module
from kflats.linalg import relative_error
from kflats.tables import Table

BATCH = 32


@dataclass(frozen=True)
class Row:
    """One way to store the table.

    Attributes
    ----------
    method : str
        'dense', 'SVD', 'k = ...', 'flats', or the name of a baseline.
    compression : float or None
        Fraction of the parameters removed; None where only bits were.
    n_clusters : int or None
        Subspaces; None for dense tables.
    parameters : int
        Numbers stored.
    num_bytes : int
        Bytes on disk.
    relative_error : float
        Of the table, not squared.
    similarity : float
        Spearman correlation x 100 of all pairwise cosines with those of the dense model.
    """

    method: str
    compression: float | None
    n_clusters: int | None
    parameters: int
    num_bytes: int
    relative_error: float
    similarity: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def sentences() -> list[str]:
    """Return the 120 English sentences that were written for this demonstration."""
    text = files("kflats.demo").joinpath("sentences.txt").read_text(encoding="utf-8")
    return text.splitlines()


def pairwise_cosines(encoder: Any, texts: list[str]) -> Tensor:
    """Return the cosines of all pairs of sentences, each pair once."""
    vectors = embed(encoder, texts, BATCH)
    first, second = torch.triu_indices(len(texts), len(texts), offset=1)
    return (vectors @ vectors.T)[first, second]


def compare(
    encoder: Any,
    table: Table,
    compressions: Sequence[float],
    n_clusters: Sequence[int],
    on_step: Callable[[str], None] | None = None,
) -> Iterator[Row]:
    """Yield the dense table, the bit baselines and the grid of factorisations.

    The encoder is used with every one of them in turn and has its own table back at the end.
    """
    texts = sentences()
    weight = table.weight.detach()
    announce = on_step or (lambda _: None)
    announce("dense")
    reference = pairwise_cosines(encoder, texts)
    size = weight.numel() * weight.element_size()
    yield Row("dense", None, None, weight.numel(), size, 0.0, 100.0)

    def similarity(module: nn.Module) -> float:
        from scipy.stats import spearmanr

        for name in table.all_names:
            replace_module(encoder, name, module)
        try:
            cosines = pairwise_cosines(encoder, texts)
        finally:
            for names, own in zip(table.names, table.modules, strict=True):
                for name in names:
                    replace_module(encoder, name, own)
        return 100 * float(spearmanr(reference.numpy(), cosines.numpy()).statistic)

    padding = table.embedding.padding_idx
    for name, make in BASELINES.items():
        announce(name)
        baseline = make(weight)
        module = nn.Embedding.from_pretrained(baseline.table, padding_idx=padding)
        error = relative_error(weight, baseline.table)
        yield Row(name, None, None, weight.numel(), baseline.num_bytes, error, similarity(module))
    grid = factorizations(weight, compressions, n_clusters, flats=True, on_start=announce)
    for point, factors in grid:
        layer = FactorizedEmbedding.from_embedding(table.embedding, factors)
        yield Row(
            point.method,
            point.compression,
            point.shape.n_clusters,
            point.shape.num_parameters,
            layer.num_bytes,
            point.relative_error,
            similarity(layer),
        )
