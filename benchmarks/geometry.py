"""What each extension buys on the MiniLM table, its time, and STS-B, at equal parameters."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import data_folder, median_seconds, minilm_table
from benchmarks.truncation import truncated_error
from kflats import Budget, CompressionConfig, Factorization
from kflats.analysis.dictionary import dictionary_error
from kflats.analysis.steps import steps
from kflats.evaluation.sts import load_pairs, sts_spearman
from kflats.factors.fit import factorize
from kflats.models import open_sentence_model, tokenizer_of
from kflats.tables import find_tables
from kflats.weighting.weights import token_weights

COMPRESSIONS = (0.2, 0.4, 0.5, 0.6, 0.8)
_SLOWEST = 0.6


def measure() -> dict[str, Any]:
    """Measure; STS-B and Brown are looked for in ``KFLATS_DATA``, else ``../shared/data``."""
    table = minilm_table()
    thin_svd = median_seconds(lambda: torch.linalg.svd(table, full_matrices=False))
    results: dict[str, Any] = {"thin SVD, seconds": round(thin_svd, 3)}
    for compression in COMPRESSIONS:
        for step in steps(table, compression, 5):
            results[f"{compression:.0%}, {step.name}"] = asdict(step)
    results |= _side_by_side(table)
    return results | _models(table, thin_svd)


def _side_by_side(table: Tensor) -> dict[str, Any]:
    """Measure what did not become the default."""
    results: dict[str, Any] = {}
    for compression in (0.2, 0.4, 0.6):
        factors = _flats(table, 32, compression)
        results[f"{compression:.0%}, k = 32, per-row truncation"] = {
            "without": round(factors.squared_relative_error, 4),
            "with": round(truncated_error(table, factors, compression), 4),
        }
    for size in (4000, 8000, 16000, None):
        begin = time.perf_counter()
        factors = _flats(table, 32, 0.5, coreset=size)
        results[f"50%, k = 32, coreset of {size or 'all'} rows"] = {
            "squared_relative_error": round(factors.squared_relative_error, 4),
            "seconds": round(time.perf_counter() - begin, 2),
        }
    rows = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:1500]]
    found = dictionary_error(rows, 0.5, 384, max_iter=5)
    results["50% of 1,500 rows, dictionary of 384 atoms"] = asdict(found)
    budget = Budget(compression=0.5)
    for name, k in (("SVD", 1), ("flats", 4)):
        factors = (
            Factorization.svd(rows, budget.shape(*rows.shape, n_clusters=1).rank)
            if name == "SVD"
            else _flats(rows, k, 0.5)
        )
        error = round(factors.squared_relative_error, 4)
        results[f"50% of 1,500 rows, {name}"] = {"squared_relative_error": error}
    return results


def _flats(table: Tensor, k: int, compression: float, **options: Any) -> Factorization:
    budget = Budget(compression=compression)
    return Factorization.projective(
        table, k, budget, affine=True, echelon=True, search_dtype="auto", **options
    )


def _models(table: Tensor, thin_svd: float) -> dict[str, Any]:
    """Measure error, time in thin SVDs, and STS-B of whole models."""
    data = data_folder()
    pairs, encoder = load_pairs(data / "sts"), open_sentence_model("minilm")
    weight = find_tables(encoder)[0].weight
    brown = data / "text" / "brown.txt"
    counts = token_weights(brown, tokenizer_of(encoder, "minilm"), len(table))
    kinds: dict[str, dict[str, Any]] = {
        "flats, thorough": {},
        "flats, fast": {"effort": "fast"},
        "flats, relative errors": {"relative": 1.0},
        "flats, token counts": {"sample_weight": counts},
        "SVD": {"method": "svd"},
        "the paper's procedure, k = 5": {"method": "messi", "n_clusters": 5},
    }
    results = {}
    for compression in COMPRESSIONS:
        for name, settings in kinds.items():
            if settings.get("method") == "messi" and compression > _SLOWEST:
                continue
            config = CompressionConfig(compression=compression, **settings)
            begin = time.perf_counter()
            factors = factorize(table, config)
            seconds = time.perf_counter() - begin
            with torch.no_grad():
                weight.copy_(factors.reconstruct())
            results[f"{compression:.0%}, {name}"] = {
                "squared_relative_error": round(factors.squared_relative_error, 4),
                "n_clusters": factors.n_clusters,
                "ranks": factors.shape.rank_range,
                "compression": round(factors.shape.compression, 4),
                "thin_svds": round(seconds / thin_svd, 1),
                "spearman": round(sts_spearman(encoder, pairs), 2),
            }
            print(name, compression, results[f"{compression:.0%}, {name}"], flush=True)
    return results
