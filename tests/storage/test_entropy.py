from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kflats
from kflats import CheckpointError, CompressionConfig, InputError
from kflats.errors import MissingExtraError
from kflats.layers import QuantizedEmbedding
from kflats.storage.info import folder_info
from tests.conftest import spectral_table, tiny_bert
from tests.hf.models import logits
from tests.promises import assert_same_model, assert_same_outputs, assert_same_tensors

pytest.importorskip("constriction")
NAME = "embeddings.word_embeddings"


def coded_bert(kind: str = "BertModel") -> Any:
    return deepcopy(_coded_bert(kind))


@cache
def _coded_bert(kind: str) -> Any:
    model = tiny_bert(kind, vocab_size=3000)
    kflats.compress_(model, CompressionConfig(bits=4.0, exact_ids=(0, 3)))
    return model


def stored(folder: Path, name: str = f"{NAME}.weight") -> Tensor:
    found: Tensor = load_file(folder / "model.safetensors")[name]
    return found


def form(folder: Path, name: str = NAME) -> str:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    found: str = config["layers"]["tables"][name]["storage"]["coefficients"]
    return found


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_plain_module_round_trip(tmp_path: Path, device: str) -> None:
    model = nn.Sequential(nn.Embedding(2000, 24), nn.Linear(24, 3))
    model[0] = nn.Embedding.from_pretrained(spectral_table(2000, 24))
    kflats.compress_(model, CompressionConfig(bits=4.0))
    kflats.save(model, tmp_path / "packed")
    kflats.save(model, tmp_path / "small", entropy=True)
    with torch.device(device):
        fresh = nn.Sequential(nn.Embedding(2000, 24), nn.Linear(24, 3))
    loaded = kflats.load(tmp_path / "small", model=fresh)
    layer = model[0]
    assert isinstance(layer, QuantizedEmbedding)
    assert_same_model(loaded, model, lambda each: each(torch.arange(2000)))
    sizes = [(tmp_path / k / "model.safetensors").stat().st_size for k in ("packed", "small")]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_transformers_round_trip_and_saving_again_is_packed(tmp_path: Path, kind: str) -> None:
    model = coded_bert(kind)
    name = NAME if kind == "BertModel" else f"bert.{NAME}"
    kflats.save(model, tmp_path / "small", entropy=True)
    loaded = kflats.load(tmp_path / "small")
    layer = loaded.get_submodule(name)
    assert type(layer) is QuantizedEmbedding
    assert form(tmp_path / "small", name) == "entropy"
    assert len(stored(tmp_path / "small", f"{name}.weight")) < layer.coefficients.numel()
    assert_same_model(loaded, model, logits)
    loaded.save_pretrained(tmp_path / "again")
    assert form(tmp_path / "again", name) == "codes"
    assert torch.equal(stored(tmp_path / "again", f"{name}.weight"), layer.coefficients)
    assert_same_model(kflats.load(tmp_path / "again"), model, logits)


def assert_same_body(found: Any, expected: Any) -> None:
    """Compare two of which one may have a pooler."""
    assert_same_tensors(found.embeddings, expected.embeddings)
    assert_same_tensors(found.encoder, expected.encoder)
    assert_same_outputs(logits(found), logits(expected))


def test_other_classes_load_the_folder(tmp_path: Path) -> None:
    from transformers import AutoModel, BertForMaskedLM, BertModel

    masked, base = coded_bert("BertForMaskedLM"), coded_bert()
    kflats.save(masked, tmp_path / "masked", entropy=True)
    kflats.save(base, tmp_path / "base", entropy=True)
    found = AutoModel.from_pretrained(tmp_path / "masked")
    assert_same_body(found, masked.bert)
    with_head = BertForMaskedLM.from_pretrained(tmp_path / "base")
    assert_same_body(with_head.bert, base)
    assert type(BertModel.from_pretrained(tmp_path / "base")) is BertModel


def test_sharded_checkpoints_round_trip(tmp_path: Path) -> None:
    model = coded_bert()
    kflats.save(model, tmp_path / "out", entropy=True, max_shard_size="20KB")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = {key: value for path in files for key, value in load_file(path).items()}
    assert len(files) > 1
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert folder_info(tmp_path / "out").tables[0].num_bytes < model.get_submodule(NAME).num_bytes
    assert_same_model(kflats.load(tmp_path / "out"), model, logits)


def test_sentence_transformer_round_trip(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from transformers import BertTokenizer

    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the ferry leaves at seven"
    (tmp_path / "vocab.txt").write_text(words.replace(" ", "\n"))
    tiny_bert(vocab_size=3000).save_pretrained(tmp_path / "tiny")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tiny")
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path / "tiny"), device="cpu")
    kflats.compress_(encoder, CompressionConfig(bits=4.0))
    kflats.save(encoder, tmp_path / "out", entropy=True)
    loaded = kflats.load(tmp_path / "out", device="cpu")
    (table,) = folder_info(tmp_path / "out").tables
    assert table.num_bytes < table.resident_bytes
    text = "the ferry leaves"
    assert_same_model(loaded, encoder, lambda each: each.encode(text, convert_to_tensor=True))


def test_static_embedding_round_trip(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    from tests.hf.static import encode, tokenizer

    static = StaticEmbedding(tokenizer(), embedding_weights=spectral_table(3000, 24))
    encoder = sentence_transformers.SentenceTransformer(modules=[static], device="cpu")
    kflats.compress_(encoder, CompressionConfig(bits=4.0))
    kflats.save(encoder, tmp_path / "out", entropy=True)
    (table,) = folder_info(tmp_path / "out").tables
    assert table.num_bytes < static.embedding.num_bytes <= table.resident_bytes
    assert torch.equal(encode(kflats.load(tmp_path / "out", device="cpu")), encode(encoder))


def test_info_and_card_tell_both_sizes(tmp_path: Path) -> None:
    model = coded_bert()
    layer = model.get_submodule(NAME)
    kflats.save(model, tmp_path / "out", entropy=True)
    (table,) = folder_info(tmp_path / "out").tables
    saved = layer.coefficients.numel() - len(stored(tmp_path / "out"))
    names = (*layer.FACTORS, *layer.SAVED_BUFFERS, *layer.DERIVED_BUFFERS)
    held = [tensor for name in names if (tensor := getattr(layer, name)) is not None]
    assert table.num_bytes == layer.num_bytes - saved < layer.num_bytes
    assert table.resident_bytes == sum(tensor.nbytes for tensor in held) >= layer.num_bytes
    assert f"{table.num_bytes:,} bytes" in (tmp_path / "out" / "README.md").read_text()


def change(folder: Path, edit: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    key = next(each for each in tensors if each.endswith(("0.weight", f"{NAME}.weight")))
    tensors[key] = edit(tensors[key].clone())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def flipped(blob: Tensor) -> Tensor:
    blob[-5] ^= 4
    return blob


def drop_checksums(folder: Path) -> None:
    path = next(
        folder / name for name in ("kflats.json", "config.json") if (folder / name).exists()
    )
    data = json.loads(path.read_text())
    del data.get("quantization_config", data)["checksums"]
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("plain", [False, True], ids=["transformers", "plain"])
def test_damage_is_a_checkpoint_error(tmp_path: Path, plain: bool) -> None:
    dense = nn.Sequential(nn.Embedding(3000, 16))
    model = coded_bert()
    if plain:
        model = nn.Sequential(nn.Embedding(3000, 16))
        kflats.compress_(model, CompressionConfig(bits=4.0))
    edits = {flipped: "another checksum", (lambda b: b[:-40].clone()): "are damaged"}
    edits[lambda blob: blob.view(1, -1)] = "has shape"
    for number, (edit, message) in enumerate(edits.items()):
        folder = tmp_path / str(number)
        kflats.save(model, folder, entropy=True)
        change(folder, edit)
        drop_checksums(folder)
        with pytest.raises(CheckpointError, match=message):
            kflats.load(folder, model=dense if plain else None)


def test_without_constriction_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = coded_bert()
    kflats.save(model, tmp_path / "out", entropy=True)
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(MissingExtraError, match=r"\.\[entropy\]"):
        kflats.load(tmp_path / "out")
    with pytest.raises(MissingExtraError, match=r"\.\[entropy\]"):
        kflats.save(model, tmp_path / "other", entropy=True)
    assert not (tmp_path / "other").exists()


def test_tables_without_codes_are_refused_and_incompressible_ones_stay(tmp_path: Path) -> None:
    factors = tiny_bert()
    kflats.compress_(factors, CompressionConfig(rank=4, method="svd"))
    with pytest.raises(InputError, match="entropy=True needs a table in packed codes"):
        kflats.save(factors, tmp_path / "out", entropy=True)
    table = torch.randint(2, (500, 16), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    model = nn.Sequential(nn.Embedding.from_pretrained(table))
    kflats.compress_(model, CompressionConfig(target_bytes=2100, method="codes"))
    kflats.save(model, tmp_path / "out", entropy=True)
    kflats.save(model, tmp_path / "packed")
    sizes = [folder_info(tmp_path / each).tables[0].num_bytes for each in ("out", "packed")]
    assert sizes[0] <= sizes[1]
