"""Transformers and sentence-transformers with tables in packed codes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import kflats
from kflats import CheckpointError, CompressionConfig, UnsupportedModelError
from kflats.hf import KFlatsConfig
from kflats.layers import QuantizedEmbedding, QuantizedLinear
from kflats.storage.manifest import factor_layers
from tests.conftest import tiny_bert
from tests.hf.models import IDS, edit_config, edit_tensors, logits, tiny_gpt2
from tests.promises import assert_same_model

SETTINGS: dict[str, Any] = {"target_bytes": 4_800, "method": "codes", "exact_ids": (0, 3)}
TABLE = "transformer.wte"
MODELS = {"bert": tiny_bert, "masked bert": lambda: tiny_bert("BertForMaskedLM"), "gpt2": tiny_gpt2}


def coded(model: Any) -> tuple[Any, kflats.CompressionReport]:
    return model, kflats.compress_(model, CompressionConfig(**SETTINGS))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("codes") / "gpt2"
    model, _ = coded(tiny_gpt2())
    model.save_pretrained(folder)
    return model, folder


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def assert_tied(model: Any) -> None:
    ours, head = model.transformer.wte, model.lm_head
    assert (type(ours), type(head)) == (QuantizedEmbedding, QuantizedLinear)
    assert all(getattr(head, name) is getattr(ours, name) for name in ours.FACTORS)
    assert head.labels is ours.labels
    assert ours.coefficients.dtype == torch.uint8
    assert ours.bases.dtype == torch.int8


@pytest.mark.parametrize("name", MODELS)
def test_models_round_trip_with_the_bytes_of_the_report(name: str, tmp_path: Path) -> None:
    model, report = coded(MODELS[name]())
    (table,) = report.tables
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    stored = [t.nbytes for key, t in tensors.items() if key.startswith(f"{table.name}.")]
    assert sum(stored) == table.bytes_after <= 4_800
    assert sum(t.nbytes for t in tensors.values()) == report.model_bytes_after
    for loaded in (type(model).from_pretrained(tmp_path), kflats.load(tmp_path)):
        assert_same_model(loaded, model, logits)
        assert factor_layers(loaded).keys() == factor_layers(model).keys()
        assert not loaded.training


def test_kflats_save_is_the_same(tmp_path: Path) -> None:
    model, report = coded(tiny_bert())
    kflats.save(model, tmp_path / "out", report=report)
    assert_same_model(kflats.load(tmp_path / "out"), model, logits)
    assert kflats.load(tmp_path / "out").get_input_embeddings().origin["method"] == "codes"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"low_cpu_mem_usage": True},
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16},
        {"dtype": "auto"},
    ],
    ids=str,
)
def test_options_give_the_same_model(gpt2: tuple[Any, Path], options: dict[str, Any]) -> None:
    if "device_map" in options:
        pytest.importorskip("accelerate")
    model, folder = gpt2
    found = load(folder, **options)
    dtype = options.get("dtype", "auto")
    expected = copy.deepcopy(model) if dtype == "auto" else copy.deepcopy(model).to(dtype)
    assert found.dtype == expected.dtype
    assert_tied(found)
    assert_same_model(found, expected, logits)


def test_casts_and_copies_stay_tied(gpt2: tuple[Any, Path]) -> None:
    model, _ = gpt2
    for changed in (
        copy.deepcopy(model),
        copy.deepcopy(model).half(),
        copy.deepcopy(model).to("cpu", torch.bfloat16),
    ):
        assert_tied(changed)
        assert bool(logits(changed).isfinite().all())


def test_shards_and_second_generations_are_the_same_model(
    gpt2: tuple[Any, Path], tmp_path: Path
) -> None:
    model, folder = gpt2
    load(folder).save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len([*(tmp_path / "shards").glob("model-*.safetensors")]) > 2
    assert_same_model(load(tmp_path / "shards"), model, logits)


def test_compressing_while_loading_is_compressing_after_it(
    gpt2: tuple[Any, Path], tmp_path: Path
) -> None:
    tiny_gpt2().save_pretrained(tmp_path)
    found = load(tmp_path, quantization_config=KFlatsConfig(**SETTINGS))
    assert_tied(found)
    assert_same_model(found, gpt2[0], logits)


def test_generation_is_that_of_the_dense_form(gpt2: tuple[Any, Path]) -> None:
    model, _ = gpt2
    dense = kflats.to_dense_(copy.deepcopy(model))
    assert dense.lm_head.weight is dense.transformer.wte.weight
    assert type(dense.transformer.wte) is torch.nn.Embedding
    torch.testing.assert_close(logits(dense), logits(model))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    found = model.generate(IDS, attention_mask=mask, **options)
    assert torch.equal(found, dense.generate(IDS, attention_mask=mask, **options))


def test_dense_form_is_an_ordinary_checkpoint(gpt2: tuple[Any, Path], tmp_path: Path) -> None:
    dense = kflats.to_dense_(load(gpt2[1]))
    dense.save_pretrained(tmp_path)
    assert "kflats" not in (tmp_path / "config.json").read_text()
    assert_same_model(load(tmp_path), dense, logits)


def test_the_rest_of_the_model_trains(gpt2: tuple[Any, Path]) -> None:
    model = copy.deepcopy(gpt2[0]).train()
    dense = kflats.to_dense_(copy.deepcopy(gpt2[0])).train()
    for each in (model, dense):
        torch.manual_seed(0)
        torch.nn.functional.cross_entropy(each(IDS)[0].flatten(0, 1), IDS.flatten()).backward()
    gradients = dict(dense.named_parameters())
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert trained
    assert not any(TABLE in name for name in trained)
    for name in trained:
        ours, expected = model.get_parameter(name).grad, gradients[name].grad
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [210, 150])
def test_resizing_is_refused(gpt2: tuple[Any, Path], size: int) -> None:
    model = copy.deepcopy(gpt2[0])
    with pytest.raises(
        UnsupportedModelError, match=rf"cannot be resized to {size}: call kflats\.to_dense_"
    ):
        model.resize_token_embeddings(size)
    assert_same_model(model, gpt2[0], logits)
    resized = kflats.to_dense_(model)
    resized.resize_token_embeddings(size)
    coded(resized)
    assert resized.get_input_embeddings().num_embeddings == size


DAMAGES: dict[str, tuple[Any, str]] = {
    "codes as floats": (lambda t: {"weight": t["weight"].float()}, r"\.weight' has dtype F32; U8"),
    "short codes": (lambda t: {"weight": t["weight"][:-3].clone()}, r"\.weight' has shape"),
    "wide bases": (
        lambda t: {"kflats_bases": t["kflats_bases"].short()},
        r"\.kflats_bases' has dtype I16; I8",
    ),
    "other labels": (
        lambda t: {"kflats_labels": torch.zeros_like(t["kflats_labels"])},
        "do not belong together",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_by_name(
    gpt2: tuple[Any, Path], tmp_path: Path, damage: Any, message: str
) -> None:
    gpt2[0].save_pretrained(tmp_path)

    def change(tensors: dict[str, Tensor]) -> None:
        prefix = f"{TABLE}."
        own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        tensors.update({prefix + key: tensor for key, tensor in damage(own).items()})

    edit_tensors(tmp_path, change)
    for loader in (load, kflats.load):
        with pytest.raises(CheckpointError, match=rf"transformer\.wte.*{message}"):
            loader(tmp_path)


def test_other_versions_are_refused(gpt2: tuple[Any, Path], tmp_path: Path) -> None:
    gpt2[0].save_pretrained(tmp_path)
    edit_config(tmp_path, lambda block: block.update(format_version=5))
    with pytest.raises(CheckpointError, match=r"config\.json.* has format_version=5"):
        load(tmp_path)


def test_sentence_transformer_round_trip(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the a ferry boat leaves at early seven bread eats"
    tiny_bert().save_pretrained(tmp_path / "tiny")
    (tmp_path / "vocab.txt").write_text(words.replace(" ", "\n"))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tiny")
    encoder = library.SentenceTransformer(str(tmp_path / "tiny"), device="cpu")
    _, report = coded(encoder)

    def encode(model: Any) -> Tensor:
        texts = ["the ferry leaves at seven", "a boat", "bread"]
        return model.encode(texts, convert_to_tensor=True)  # type: ignore[no-any-return]

    encoder.save_pretrained(str(tmp_path / "out"))
    loaded = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert type(loaded[0].auto_model.get_input_embeddings()) is QuantizedEmbedding
    assert_same_model(loaded, encoder, encode)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    stored = [t.nbytes for key, t in tensors.items() if ".word_embeddings." in f".{key}"]
    assert sum(stored) == report.tables[0].bytes_after
    dense = kflats.to_dense_(loaded)
    torch.testing.assert_close(encode(dense), encode(encoder), rtol=1e-4, atol=1e-5)
