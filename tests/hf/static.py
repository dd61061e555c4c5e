"""Small static embedding models: a tokenizer of words, and a table for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

import kflats
from kflats import CompressionConfig
from kflats.layers import FactorizedEmbeddingBag, QuantizedEmbeddingBag, TableBag
from tests.conftest import spectral_table

TEXTS = ["w1 w2 w3", "w7", "", "w9 w9 unheard w200", "w399 w1"]
METHODS: dict[str, dict[str, Any]] = {
    "factors": {"compression": 0.4, "n_clusters": 2},
    "codes": {"method": "codes", "bits": 5.0},
}
KINDS = {"factors": FactorizedEmbeddingBag, "codes": QuantizedEmbeddingBag}


def tokenizer() -> Tokenizer:
    words = ["[UNK]", "[PAD]", *(f"w{i}" for i in range(2, 400)), "w1"]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = WhitespaceSplit()
    made.add_special_tokens([AddedToken("[PAD]", special=True)])
    return made


def dense() -> SentenceTransformer:
    table = torch.cat([spectral_table(), torch.ones(1, 24)])
    static = StaticEmbedding(tokenizer(), embedding_weights=table)
    return SentenceTransformer(modules=[static, Normalize()], device="cpu")


def compressed(method: str = "factors") -> SentenceTransformer:
    model = dense()
    kflats.compress_(model, CompressionConfig(**METHODS[method]))
    return model


def encode(model: SentenceTransformer) -> Tensor:
    found: Tensor = model.encode(TEXTS, convert_to_tensor=True)
    return found


def bag_of(model: SentenceTransformer) -> TableBag:
    layer = model[0].embedding
    assert isinstance(layer, TableBag)
    return layer


def model2vec_folder(folder: Path) -> Path:
    """Write what model2vec writes: rows, a place of each token among them, and weights."""
    folder.mkdir()
    rows = torch.arange(200.0)[:, None] * torch.ones(1, 8) + torch.arange(8.0)
    place = torch.arange(401) // 2 % 200
    weights = torch.linspace(1, 2, 401)
    tensors = {"embeddings": rows, "mapping": place, "weights": weights}
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder
