"""Milliseconds of the logits of a large vocabulary, dense, in factor space and in packed codes.

The size is that of Qwen3-0.6B (151,936 x 1,024) at 40 % compression, and at 2 and 4 bits. The
values are random: the time does not depend on them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import median_seconds
from kflats import Budget, FactorizedLinear, FactorShape
from kflats.layers import QuantizedLinear
from kflats.quantization.shape import CodeShape

ROWS, COLUMNS, COMPRESSION = 151_936, 1_024, 0.4
TOKENS = (1, 8, 64, 256)
CLUSTERS = (1, 8)


def random_head(n_clusters: int) -> FactorizedLinear:
    """Return a head with random factors whose clusters are unequal and mixed over the ids."""
    generator = torch.Generator().manual_seed(0)
    rank = Budget(compression=COMPRESSION).shape(ROWS, COLUMNS, n_clusters=n_clusters).rank
    labels = torch.multinomial(
        torch.linspace(1, 3, n_clusters), ROWS, replacement=True, generator=generator
    )
    counts = tuple(torch.bincount(labels, minlength=n_clusters).tolist())
    shape = FactorShape.uniform(ROWS, COLUMNS, n_clusters=n_clusters, rank=rank, counts=counts)
    head = FactorizedLinear(shape)
    with torch.no_grad():
        head.coefficients.normal_(generator=generator)
        head.bases.normal_(generator=generator)
        if head.labels is not None:
            head.labels.copy_(labels)
    head.index_()
    return head


def random_codes(bits: int, rotated: bool) -> QuantizedLinear:
    """Return a head whose rows all have ``bits`` per coefficient."""
    shape = CodeShape(
        num_embeddings=ROWS,
        embedding_dim=COLUMNS,
        counts=(ROWS,),
        runs=(((bits, COLUMNS),),),
        basis_ids=(0,),
        rotated=(rotated,),
    )
    head = QuantizedLinear(shape)
    with torch.no_grad():
        head.coefficients.random_()
        head.bases.random_(-100, 100)
        head.scales.fill_(0.001)
        head.books.copy_(torch.linspace(-1, 1, len(head.books)))
    return head


def measure() -> dict[str, Any]:
    """Measure every head for several numbers of tokens, inference."""
    generator = torch.Generator().manual_seed(1)
    dense = nn.Linear(COLUMNS, ROWS, bias=False)
    heads: dict[str, nn.Module] = {"dense": dense}
    for k in CLUSTERS:
        heads["SVD" if k == 1 else f"k = {k}"] = random_head(k)
    for bits in (2, 4):
        heads[f"int{bits}"] = random_codes(bits, rotated=False)
        heads[f"{bits} bits, one rotation"] = random_codes(bits, rotated=True)
    results: dict[str, Any] = {}
    for tokens in TOKENS:
        hidden = torch.randn(tokens, COLUMNS, generator=generator)
        for name, head in heads.items():
            seconds = median_seconds(partial(_forward, head, hidden), 9)
            results.setdefault(name, {})[f"{tokens}_tokens_ms"] = round(1e3 * seconds, 2)
    for name in list(heads)[1:]:
        results[name]["over_dense"] = {
            str(tokens): round(
                results[name][f"{tokens}_tokens_ms"] / results["dense"][f"{tokens}_tokens_ms"], 2
            )
            for tokens in TOKENS
        }
    return results


def _forward(head: nn.Module, hidden: Tensor) -> None:
    with torch.no_grad():
        head(hidden)
