from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kflats
from kflats import (
    CheckpointError,
    CompressionConfig,
    FactorizedEmbedding,
    FactorizedLinear,
    FactorShape,
    InputError,
)
from kflats.layers import replace_module
from kflats.storage.info import folder_info
from tests.conftest import spectral_table, tiny_bert
from tests.layers.dense import filled
from tests.promises import assert_same_model, assert_same_tensors

ECHELON = FactorShape(
    num_embeddings=200,
    embedding_dim=16,
    counts=(70, 60, 60, 10),
    ranks=(0, 5, 3, 16),
    basis_ids=(0, 1, 2, -1),
    affine=True,
    echelon=True,
)
CONFIG = CompressionConfig(compression=0.4, n_clusters=2, exact_ids=(0, 3))


def plain_model() -> nn.Sequential:
    embedding = nn.Embedding.from_pretrained(spectral_table(), freeze=False, padding_idx=2)
    return nn.Sequential(embedding, nn.Linear(24, 3))


def tensor_bytes(path: Path) -> int:
    return sum(t.numel() * t.element_size() for t in load_file(path).values())


def saved_bert(folder: Path) -> tuple[Any, kflats.CompressionReport]:
    model = tiny_bert()
    report = kflats.compress_(model, CONFIG)
    kflats.save(model, folder, report=report)
    return model, report


def test_transformers_round_trip_is_the_same_model(tmp_path: Path) -> None:
    model, _ = saved_bert(tmp_path / "out")
    loaded = kflats.load(tmp_path / "out")
    ids = torch.randint(0, 200, (2, 9))
    assert_same_model(loaded, model, lambda each: each(ids).last_hidden_state)
    assert type(loaded.get_input_embeddings()) is FactorizedEmbedding
    assert not loaded.training


def test_file_has_the_bytes_of_the_report(tmp_path: Path) -> None:
    _, report = saved_bert(tmp_path / "out")
    dense = tiny_bert()
    dense.save_pretrained(tmp_path / "dense")
    saved = tensor_bytes(tmp_path / "out" / "model.safetensors")
    full = tensor_bytes(tmp_path / "dense" / "model.safetensors")
    (table,) = report.tables
    assert (saved, full) == (report.model_bytes_after, report.model_bytes_before)
    assert full - saved == table.bytes_before - table.bytes_after
    kept = json.loads((tmp_path / "out" / "kflats_report.json").read_text())
    assert kept == report.to_dict()


def test_second_save_writes_the_same_tensors(tmp_path: Path) -> None:
    saved_bert(tmp_path / "one")
    kflats.save(kflats.load(tmp_path / "one"), tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert_same_tensors(two, one)


def test_checkpoint_of_the_base_loads_into_a_task_model_and_back(tmp_path: Path) -> None:
    import transformers

    saved_bert(tmp_path / "base")
    task = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    task.save_pretrained(tmp_path / "task")
    base = transformers.BertModel.from_pretrained(tmp_path / "task", add_pooling_layer=True)
    ids = torch.randint(0, 200, (2, 9))
    first = kflats.load(tmp_path / "base")
    assert_same_model(base.eval(), first, lambda each: each(ids).last_hidden_state)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("BartModel", {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
                       "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                       "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "scale_embedding": True}),
        ("T5Model", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}),
        ("Gemma3TextModel", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                             "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32}),
    ],
    ids=["shared and scaled", "shared", "scaled"],
)  # fmt: skip
def test_shared_and_scaled_tables_round_trip(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(vocab_size=200, **settings)).eval()
    ids = torch.randint(3, 200, (2, 9))
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    report = kflats.compress_(model, CONFIG)
    kflats.save(model, tmp_path / "out")
    loaded = kflats.load(tmp_path / "out")
    assert_same_model(loaded, model, lambda each: each(ids, **inputs)[0])
    assert tensor_bytes(tmp_path / "out" / "model.safetensors") == report.model_bytes_after
    assert loaded.get_input_embeddings().scale == model.get_input_embeddings().scale


def echelon_bert(shape: FactorShape) -> Any:
    """Return a BERT whose words and output head share a table of this shape."""
    model = tiny_bert("BertForMaskedLM")
    words = filled(FactorizedEmbedding(shape, padding_idx=0))
    head = FactorizedLinear(shape)
    head.take_over(model.cls.predictions.decoder)
    head.share_with(words)
    replace_module(model, "bert.embeddings.word_embeddings", words)
    replace_module(model, "cls.predictions.decoder", head)
    return model.eval()


@pytest.mark.parametrize(
    "shape",
    [
        ECHELON,
        FactorShape.uniform(200, 16, n_clusters=1, rank=0),
        FactorShape.uniform(200, 16, n_clusters=1, rank=16, affine=True, echelon=True),
    ],
    ids=["echelon and rank 0", "rank 0", "full rank"],
)
def test_every_form_of_a_tied_table_round_trips(tmp_path: Path, shape: FactorShape) -> None:
    model = echelon_bert(shape)
    kflats.save(model, tmp_path / "out")
    loaded = kflats.load(tmp_path / "out")
    ids = torch.randint(0, 200, (2, 9))
    assert_same_model(loaded, model, lambda each: each(ids).logits)
    words = loaded.get_input_embeddings()
    assert words.shape == shape
    assert loaded.get_output_embeddings().columns is words.columns
    (info,) = folder_info(tmp_path / "out").tables
    assert info.num_bytes == shape.num_bytes(torch.float32)
    state = {key for key in load_file(tmp_path / "out" / "model.safetensors") if "kflats" in key}
    assert ("bert.embeddings.word_embeddings.kflats_pivots" in state) == shape.echelon


def test_resized_table_in_echelon_form_round_trips(tmp_path: Path) -> None:
    model = echelon_bert(ECHELON)
    model.resize_token_embeddings(210)
    kflats.save(model, tmp_path / "out")
    loaded = kflats.load(tmp_path / "out")
    ids = torch.randint(0, 210, (2, 9))
    assert_same_model(loaded, model, lambda each: each(ids).logits)


def test_files_that_trainer_resumes_from_are_let_be(tmp_path: Path) -> None:
    saved_bert(tmp_path / "out")
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (tmp_path / "out" / name).write_bytes(b"")
    assert type(kflats.load(tmp_path / "out")).__name__ == "BertModel"


def test_dense_table_exists_on_meta_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_bert(tmp_path / "out")
    seen: list[tuple[tuple[int, ...], str]] = []
    reset = nn.Embedding.reset_parameters

    def watch(embedding: nn.Embedding) -> None:
        seen.append((tuple(embedding.weight.shape), embedding.weight.device.type))
        reset(embedding)

    monkeypatch.setattr(nn.Embedding, "reset_parameters", watch)
    kflats.load(tmp_path / "out")
    assert ((200, 16), "meta") in seen
    assert ((200, 16), "cpu") not in seen


def test_plain_transformers_refuses_the_folder(tmp_path: Path) -> None:
    saved_bert(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    import transformers

    with pytest.raises(RuntimeError, match=r"word_embeddings\.weight|mismatch"):
        transformers.BertModel.from_pretrained(tmp_path / "out")


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("here")
    with pytest.raises(CheckpointError, match="exists already"):
        saved_bert(tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "precious"]


def test_interrupted_save_leaves_nothing(tmp_path: Path) -> None:
    model = plain_model()
    kflats.compress_(model, CONFIG)

    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    for target in (tmp_path / "out", tmp_path / "new" / "out"):
        with pytest.raises(KeyboardInterrupt):
            kflats.save(model, target, extras=interrupt)
        assert list(tmp_path.iterdir()) == []


def test_unwritable_parent_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = plain_model()
    kflats.compress_(model, CONFIG)
    with pytest.raises(CheckpointError, match=r"cannot write to .*file"):
        kflats.save(model, tmp_path / "file" / "out")


def test_dense_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no factorised layer"):
        kflats.save(tiny_bert(), tmp_path / "out")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        kflats.load(tmp_path / "nowhere")


def test_sentence_transformer_round_trip(tmp_path: Path, minilm_path: str) -> None:
    from kflats.models import open_sentence_model

    encoder = open_sentence_model("minilm")
    report = kflats.compress_(encoder, CompressionConfig(compression=0.4, n_clusters=2))
    kflats.save(encoder, tmp_path / "out", report=report)
    texts = ["The ferry leaves at seven.", "A boat departs early."]
    loaded = kflats.load(tmp_path / "out", device="cpu")
    assert_same_model(loaded, encoder, lambda each: each.encode(texts, convert_to_tensor=True))
    dense = tensor_bytes(Path(minilm_path) / "model.safetensors")
    saved = tensor_bytes(tmp_path / "out" / "model.safetensors")
    assert saved == report.model_bytes_after
    # The original file also holds the position ids, a buffer that transformers no longer saves.
    assert dense - saved == report.model_bytes_before - report.model_bytes_after + 512 * 8
