"""Milliseconds of looking up 32 x 128 tokens, and of a whole forward of MiniLM on as many."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import brown_counts, data_folder, median_seconds, minilm_table
from kflats import CompressionConfig, Factorization, FactorizedEmbedding, compress_
from kflats.factors.fit import factorize
from kflats.layers import QuantizedEmbedding
from kflats.models import open_sentence_model, tokenizer_of

TOKENS = (32, 128)
SVD_RANK = 227
BITS = 2.08
"""Bits per parameter of the packed codes, 6.5 % of float32."""


def measure() -> dict[str, Any]:
    """Measure ``nn.Embedding``, SVD, k = 5, 16 and flats at 40 %, and packed codes of 6.5 %."""
    models = coded_models()
    ids = {**drawn_ids(), "text": text_ids()}
    results: dict[str, Any] = {}
    for name, layer in {**factor_layers(), **packed_layers(models)}.items():
        for kind, numbers in ids.items():
            trains = not isinstance(layer, QuantizedEmbedding)
            runs = [("forward", _forward), ("forward_backward", _train)][: 1 + trains]
            for what, run in runs:
                seconds = median_seconds(partial(run, layer, numbers), 15)
                results.setdefault(name, {})[f"{kind}_{what}_ms"] = round(1e3 * seconds, 2)
    results["distinct"] = {kind: len(torch.unique(numbers)) for kind, numbers in ids.items()}
    results["forward"] = forwards(models, ids["text"])
    results["resident"] = {
        name: round(held_bytes(layer) / layer.num_bytes, 3)
        for name, layer in packed_layers(models).items()
    }
    return results


def factor_layers() -> dict[str, nn.Module]:
    """Return the dense table and its factors, at 40 % compression."""
    table = minilm_table()
    dense = nn.Embedding.from_pretrained(table, freeze=False)
    svd = Factorization.svd(table, SVD_RANK)
    outer = nn.Linear(SVD_RANK, table.shape[1], bias=False)
    outer.weight.data.copy_(svd.bases[0].T)
    inner = nn.Embedding.from_pretrained(svd.coefficients, freeze=False)
    layers: dict[str, nn.Module] = {
        "nn.Embedding": dense,
        "nn.Embedding and nn.Linear": nn.Sequential(inner, outer),
        "SVD": FactorizedEmbedding.from_embedding(dense, svd),
    }
    for name, k, rank in (("k = 5", 5, 216), ("k = 16", 16, 191)):
        factors = Factorization.projective(table, k, rank)
        layers[name] = FactorizedEmbedding.from_embedding(dense, factors)
    flats = factorize(table, CompressionConfig(compression=0.4))
    layers["flats"] = FactorizedEmbedding.from_embedding(dense, flats)
    return layers


def coded_models() -> dict[str, Any]:
    """Return MiniLM in packed codes: plain int2, and two forms with token counts of Brown."""
    forms: dict[str, dict[str, Any]] = {
        "int2, fitted levels": {"rotated": False, "max_rungs": 1},
        "codes of columns": {"rotated": False},
        "codes, one rotation": {"rotated": True},
    }
    models = {}
    for name, options in forms.items():
        model = open_sentence_model("minilm")
        config = CompressionConfig(bits=BITS, options=options)
        if "max_rungs" not in options:
            config = replace(config, **brown_counts(tokenizer_of(model, "minilm")))
        compress_(model, config)
        models[name] = model
    return models


def packed_layers(models: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of the models."""
    return {
        name: next(each for each in model.modules() if isinstance(each, QuantizedEmbedding))
        for name, model in models.items()
    }


def drawn_ids() -> dict[str, Tensor]:
    """Return ids drawn uniformly, and with a frequency of one over their number."""
    generator = torch.Generator().manual_seed(0)
    count = 30522
    uniform = torch.randint(0, count, TOKENS, generator=generator)
    ranks = torch.rand(TOKENS, generator=generator).mul(torch.log(torch.tensor(count))).exp()
    return {"uniform": uniform, "zipf": ranks.long().clamp(max=count - 1)}


def text_ids() -> Tensor:
    """Return the first tokens of Brown."""
    tokenizer = tokenizer_of(open_sentence_model("minilm"), "minilm")
    found: list[int] = []
    with (data_folder() / "text" / "brown.txt").open(encoding="utf-8") as lines:
        while len(found) < TOKENS[0] * TOKENS[1]:
            found += tokenizer(next(lines), add_special_tokens=False)["input_ids"]
    return torch.tensor(found[: TOKENS[0] * TOKENS[1]]).view(TOKENS)


def forwards(models: dict[str, Any], ids: Tensor) -> dict[str, Any]:
    """Return the medians of a whole forward, taken in turns, and their ratios to dense."""
    every = {"dense": open_sentence_model("minilm"), **models}
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(9):
        for name, model in every.items():
            features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            times[name].append(median_seconds(partial(_embed, model, features), 1))
    medians = {name: float(torch.tensor(each).median()) for name, each in times.items()}
    return {
        name: {"ms": round(1e3 * each, 1), "over_dense": round(each / medians["dense"], 3)}
        for name, each in medians.items()
    }


def held_bytes(layer: nn.Module) -> int:
    """Return the bytes of all tensors a layer holds."""
    return sum(
        each.numel() * each.element_size() for each in (*layer.parameters(), *layer.buffers())
    )


def _embed(model: nn.Module, features: dict[str, Tensor]) -> None:
    with torch.no_grad():
        model(dict(features))


def _forward(layer: nn.Module, ids: Tensor) -> None:
    with torch.no_grad():
        layer(ids)


def _train(layer: nn.Module, ids: Tensor) -> None:
    layer.zero_grad()
    layer(ids).sum().backward()
