"""STS-B test of MiniLM with its table compressed: Spearman x 100, no fine-tuning."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.common import data_folder
from kflats import CompressionConfig, compress_
from kflats.analysis.baselines import BASELINES
from kflats.evaluation.sts import load_pairs, sts_spearman
from kflats.layers import replace_module
from kflats.models import open_sentence_model, tokenizer_of
from kflats.tables import find_tables
from kflats.weighting.weights import token_weights

ROWS: dict[str, dict[str, Any]] = {
    "SVD, 40 %": {"compression": 0.4, "method": "svd"},
    "k = 5, 40 %, the paper's procedure": {
        "compression": 0.4,
        "n_clusters": 5,
        "method": "messi",
    },
    "k = 5, 40 %": {"compression": 0.4, "n_clusters": 5, "method": "projective"},
    "flats, 40 %": {"compression": 0.4},
    "SVD, 60 %": {"compression": 0.6, "method": "svd"},
    "k = 5, 60 %": {"compression": 0.6, "n_clusters": 5, "method": "projective"},
    "flats, 60 %": {"compression": 0.6},
    "flats, 60 %, token counts": {"compression": 0.6, "weights": True},
    "flats, 80 %": {"compression": 0.8},
    "flats, 80 %, token counts": {"compression": 0.8, "weights": True},
}


def measure() -> dict[str, Any]:
    """Measure every row; the data are looked for in ``KFLATS_DATA``, else ``../shared/data``."""
    data = data_folder()
    pairs = load_pairs(data / "sts")
    encoder = open_sentence_model("minilm")
    counts = token_weights(data / "text" / "brown.txt", tokenizer_of(encoder, "minilm"), 30522)
    results: dict[str, Any] = {"dense": {"spearman": round(sts_spearman(encoder, pairs), 2)}}
    table = find_tables(encoder)[0]
    for name, make in BASELINES.items():
        baseline = make(table.weight.detach())
        rounded = nn.Embedding.from_pretrained(baseline.table, padding_idx=0)
        replace_module(encoder, table.name, rounded)
        score = round(sts_spearman(encoder, pairs), 2)
        results[f"{name} per row"] = {"spearman": score, "bytes": baseline.num_bytes}
    for name, settings in ROWS.items():
        encoder = open_sentence_model("minilm")
        chosen = dict(settings)
        if chosen.pop("weights", False):
            chosen["sample_weight"] = counts
        (report,) = compress_(encoder, CompressionConfig(**chosen)).tables
        results[name] = {
            "spearman": round(sts_spearman(encoder, pairs), 2),
            "n_clusters": report.shape.n_clusters,
            "ranks": report.shape.rank_range,
            "relative_error": round(report.relative_error, 4),
            "bytes": report.bytes_after,
        }
    return results
