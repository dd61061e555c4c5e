"""Milliseconds of looking up 32 x 128 tokens, forward and with gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.common import median_seconds, minilm_table
from kflats import CompressionConfig, Factorization, FactorizedEmbedding
from kflats.fit import factorize
from kflats.layers import QuantizedEmbedding
from kflats.quantization.fit import code_table
from kflats.quantization.settings import CodeSettings

TOKENS = (32, 128)
CODE_BYTES = 3_047_316  # 6.5 % of float32


def measure() -> dict[str, Any]:
    """Measure ``nn.Embedding``, SVD, k = 5, 16 and flats at 40 %, and packed codes of 6.5 %."""
    table = minilm_table()
    dense = nn.Embedding.from_pretrained(table, freeze=False)
    layers: dict[str, nn.Module] = {"nn.Embedding": dense}
    for name, k, rank in (("SVD", 1, 227), ("k = 5", 5, 216), ("k = 16", 16, 191)):
        factors = Factorization.projective(table, k, rank)
        layers[name] = FactorizedEmbedding.from_embedding(dense, factors)
    config = CompressionConfig(compression=0.4)
    factors = factorize(table, config)
    layers["flats"] = FactorizedEmbedding.from_embedding(dense, factors)
    for name, rotated in (("codes of columns", False), ("codes, one rotation", True)):
        codes = code_table(table, CODE_BYTES, settings=CodeSettings(rotated=rotated))
        layers[name] = QuantizedEmbedding.from_embedding(dense, codes)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.randint(0, len(table), TOKENS, generator=generator)
    ranks = torch.rand(TOKENS, generator=generator).mul(torch.log(torch.tensor(30522.0))).exp()
    zipf = ranks.long().clamp(max=len(table) - 1)
    results: dict[str, Any] = {}
    for name, layer in layers.items():
        for kind, ids in (("uniform", uniform), ("zipf", zipf)):
            trains = not isinstance(layer, QuantizedEmbedding)
            runs = [("forward", _forward), ("forward_backward", _train)][: 1 + trains]
            for what, run in runs:
                seconds = median_seconds(partial(run, layer, ids), 15)
                results.setdefault(name, {})[f"{kind}_{what}_ms"] = round(1e3 * seconds, 2)
    return results


def _forward(layer: nn.Module, ids: torch.Tensor) -> None:
    with torch.no_grad():
        layer(ids)


def _train(layer: nn.Module, ids: torch.Tensor) -> None:
    layer.zero_grad()
    layer(ids).sum().backward()
