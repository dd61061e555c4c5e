"""STS-B test of MiniLM against the bytes of its table, every method at the same size."""

from __future__ import annotations

from typing import Any

from benchmarks.common import brown_counts, data_folder
from kflats import CompressionConfig
from kflats.evaluation.sts import load_pairs, sts_spearman
from kflats.models import open_sentence_model, tokenizer_of
from kflats.planning.candidates import Candidate, Candidates
from kflats.planning.plan import standing_in
from kflats.tables import find_tables

BITS = (16.0, 8.0, 4.032, 3.04, 2.08, 1.5, 1.088, 0.544)
"""Bits per parameter; 4.032, 2.08, 1.088 and 0.544 are 12.6, 6.5, 3.4 and 1.7 % of float32."""


def measure() -> dict[str, Any]:
    """Measure every row; the data are looked for in ``KFLATS_DATA``, else ``../shared/data``."""
    data = data_folder()
    pairs = load_pairs(data / "sts")
    model = open_sentence_model("minilm")
    tokenizer = tokenizer_of(model, "minilm")
    weight = find_tables(model)[0].weight
    counts = brown_counts(tokenizer)
    results: dict[str, Any] = {"dense": {"spearman": round(sts_spearman(model, pairs), 2)}}

    def row(candidate: Candidate) -> dict[str, Any]:
        with standing_in(weight, candidate.table):
            score = sts_spearman(model, pairs)
        return {
            "spearman": round(score, 2),
            "bytes": candidate.num_bytes,
            "bits": round(8 * candidate.num_bytes / weight.numel(), 3),
            "weighted_squared_error": round(candidate.error, 5),
            "saved_by_kflats": candidate.config is not None,
        }

    for bits in BITS:
        config = CompressionConfig(bits=bits, **counts)
        candidates = Candidates(weight, config)
        if "plain" not in results:
            results["plain"] = {each.name: row(each) for each in candidates.references()}
        target = config.code_bytes(weight.numel())
        found = {each.name: row(each) for each in candidates.at(target)}
        results[f"{bits:g} bits"] = found
        print(f"{bits:g} bits: {found}", flush=True)
    return results
