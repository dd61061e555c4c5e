"""Small models with a vocabulary that is large beside the rest, and their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kflats
from kflats import CompressionConfig
from tests.conftest import tiny_bert

SETTINGS: dict[str, Any] = {"compression": 0.4, "n_clusters": 2, "exact_ids": (0, 3)}
IDS = torch.randint(4, 90, (2, 12), generator=torch.Generator().manual_seed(1))


def tiny_gpt2(**changes: Any) -> Any:
    """Return a GPT-2 of width 16 with random weights, in evaluation mode."""
    import transformers

    sizes = {"vocab_size": 200, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**{**sizes, **ends, **changes})
    return transformers.GPT2LMHeadModel(config).eval()


def compressed_bert(kind: str = "BertForMaskedLM", **changes: Any) -> Any:
    model = tiny_bert(kind, **changes)
    kflats.compress_(model, CompressionConfig(**SETTINGS))
    return model


def compressed_gpt2(**changes: Any) -> Any:
    model = tiny_gpt2(**changes)
    kflats.compress_(model, CompressionConfig(**SETTINGS))
    return model


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    """Return the first output without gradients."""
    with torch.no_grad():
        found: Tensor = model(ids)[0]
    return found


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the quantization_config in a saved folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors in a saved folder."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
