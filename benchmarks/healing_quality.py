"""STS-B test of MiniLM in packed codes, before and after healing on unlabelled text."""

from __future__ import annotations

from typing import Any

from benchmarks.common import brown_counts, data_folder
from kflats import CompressionConfig, compress_, heal_
from kflats.evaluation.sts import load_pairs, sts_spearman
from kflats.models import open_sentence_model, tokenizer_of

BITS = (4.032, 2.08, 1.088, 0.544)
"""Bits per parameter: 12.6, 6.5, 3.4 and 1.7 % of float32."""
STEPS = 300


def measure() -> dict[str, Any]:
    """Measure every size; counts and text are those of Brown, STS-B is only tested on."""
    pairs = load_pairs(data_folder() / "sts")
    brown = data_folder() / "text" / "brown.txt"
    texts = brown.read_text(encoding="utf-8").splitlines()
    results: dict[str, Any] = {}
    for bits in BITS:
        model, teacher = (open_sentence_model("minilm") for _ in range(2))
        tokenizer = tokenizer_of(model, "minilm")
        config = CompressionConfig(bits=bits, **brown_counts(tokenizer))
        report = compress_(model, config)
        before = sts_spearman(model, pairs)
        healing = heal_(model, texts, teacher=teacher, max_steps=STEPS)
        results[f"{bits:g} bits"] = {
            "bytes": report.tables[0].bytes_after,
            "before": round(before, 2),
            "after": round(sts_spearman(model, pairs), 2),
            "distance_before": round(healing.loss_before, 5),
            "distance_after": round(healing.loss_after, 5),
            "steps": healing.steps,
            "seconds": round(healing.seconds),
        }
        print(f"{bits:g} bits: {results[f'{bits:g} bits']}", flush=True)
    return results
