"""Copies, casts, state dicts and changes by hand, and what save_pretrained makes of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kflats
from kflats import CompressionConfig, FactorizedLinear
from kflats.storage.manifest import factor_layers
from tests.conftest import tiny_bert
from tests.hf.architectures import readers_of
from tests.hf.models import SETTINGS, compressed_bert, compressed_gpt2, logits, tiny_gpt2
from tests.promises import assert_same_model


def reloaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_generations_are_byte_identical(tmp_path: Path) -> None:
    for name, model in (("bert", compressed_bert()), ("gpt2", compressed_gpt2())):
        first = reloaded(model, tmp_path / name / "0")
        reloaded(first, tmp_path / name / "1").save_pretrained(tmp_path / name / "2")
        files = sorted(path.name for path in (tmp_path / name / "0").iterdir())
        assert "model.safetensors" in files
        for file in files:
            contents = {(tmp_path / name / str(turn) / file).read_bytes() for turn in range(3)}
            assert len(contents) == 1, file


def test_copy_is_a_model_of_its_own(tmp_path: Path) -> None:
    model = compressed_gpt2()
    before = logits(model)
    twin = copy.deepcopy(model)
    assert twin.lm_head.coefficients is twin.transformer.wte.coefficients
    assert twin.lm_head.coefficients is not model.lm_head.coefficients
    with torch.no_grad():
        twin.transformer.wte.bases.mul_(2)
    assert torch.equal(logits(model), before)
    assert_same_model(reloaded(twin, tmp_path), twin, logits)
    assert not torch.equal(logits(twin), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_cast_model_round_trips(dtype: torch.dtype, tmp_path: Path) -> None:
    model = reloaded(compressed_gpt2(), tmp_path / "one")
    cast = model.half() if dtype == torch.float16 else model.to(dtype)
    wte = cast.transformer.wte
    assert wte.coefficients.dtype == wte.bases.dtype == dtype
    assert (wte.labels.dtype, wte.places.dtype) == (torch.uint8, torch.int32)
    cast.save_pretrained(tmp_path / "two")
    loaded = type(cast).from_pretrained(tmp_path / "two", dtype="auto")
    assert loaded.lm_head.coefficients.dtype == dtype
    assert_same_model(loaded, cast, logits)


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("clone", [False, True], ids=["shared", "cloned"])
def test_state_dict_moves_all_of_a_model(assign: bool, clone: bool, tmp_path: Path) -> None:
    model = compressed_gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    other = compressed_gpt2()
    relabel(other)
    state = model.state_dict()
    if clone:
        state = {key: value.clone() for key, value in state.items()}
    other.load_state_dict(state, assign=assign)
    assert_same_model(other, model, logits)
    assert_same_model(reloaded(other, tmp_path), model, logits)


def relabel(model: Any) -> None:
    """Give all rows other groups, of the same sizes."""
    labels = model.transformer.wte.labels
    labels.copy_(labels.flip(0))
    for layer in factor_layers(model).values():
        layer.index_()


def test_state_dict_with_a_missing_factor_is_refused() -> None:
    state = compressed_gpt2().state_dict()
    del state["transformer.wte.bases"]
    with pytest.raises(RuntimeError, match=r"Missing key.*transformer\.wte\.bases"):
        compressed_gpt2().load_state_dict(state)


def test_tensors_of_a_file_fit_load_state_dict(tmp_path: Path) -> None:
    model = compressed_gpt2()
    model.save_pretrained(tmp_path)
    other = compressed_gpt2()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    left = other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert left.unexpected_keys == []
    assert all(key.startswith("lm_head.") for key in left.missing_keys)
    assert_same_model(other, model, logits)


def test_given_state_dict_is_what_is_saved(tmp_path: Path) -> None:
    for turn, model in enumerate((compressed_gpt2(), reloaded(compressed_gpt2(), tmp_path / "a"))):
        state = {key: value.clone() for key, value in model.state_dict().items()}
        for name in ("transformer.wte.coefficients", "lm_head.coefficients"):
            state[name] = 2 * state[name]
        model.save_pretrained(tmp_path / str(turn), state_dict=state)
        loaded = type(model).from_pretrained(tmp_path / str(turn))
        wte = model.transformer.wte
        assert torch.equal(loaded.transformer.wte.coefficients, 2 * wte.coefficients)
        assert torch.equal(loaded.transformer.wte.bases, wte.bases)
        assert loaded.lm_head.coefficients is loaded.transformer.wte.coefficients


def test_table_replaced_by_hand_is_saved_as_a_dense_checkpoint(tmp_path: Path) -> None:
    model = reloaded(compressed_bert("BertModel"), tmp_path / "compressed")
    model.set_input_embeddings(model.get_input_embeddings().to_embedding())
    found = reloaded(model, tmp_path / "dense")
    assert "quantization_config" not in config_of(tmp_path / "dense")
    assert type(found.get_input_embeddings()) is nn.Embedding
    assert_same_model(found, model, logits)


def test_both_tied_modules_replaced_by_hand(tmp_path: Path) -> None:
    model = reloaded(compressed_gpt2(), tmp_path / "compressed")
    table = model.get_input_embeddings().to_embedding()
    model.set_input_embeddings(table)
    model.set_output_embeddings(model.lm_head.to_linear(table.weight))
    found = reloaded(model, tmp_path / "dense")
    assert "quantization_config" not in config_of(tmp_path / "dense")
    assert found.lm_head.weight is found.transformer.wte.weight
    assert_same_model(found, model, logits)


def test_head_keeps_its_factors_when_the_table_is_replaced(tmp_path: Path) -> None:
    model = reloaded(compressed_gpt2(), tmp_path / "one")
    fresh = tiny_gpt2().transformer.wte
    model.set_input_embeddings(fresh)
    found = reloaded(model, tmp_path / "two")
    assert readers_of(found) == [["lm_head"]]
    assert type(found.get_input_embeddings()) is nn.Embedding
    assert torch.equal(found.transformer.wte.weight, fresh.weight)
    assert_same_model(found, model, logits)


def test_dequantized_model_is_dense_and_tied(tmp_path: Path) -> None:
    model = reloaded(compressed_gpt2(), tmp_path / "compressed")
    table = model.transformer.wte.dense_rows()
    dense = model.dequantize()
    assert dense is model
    assert type(model.transformer.wte) is nn.Embedding
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.transformer.wte.weight, table)
    assert not hasattr(model.config, "quantization_config")
    found = reloaded(model, tmp_path / "dense")
    assert found.lm_head.weight is found.transformer.wte.weight
    assert_same_model(found, model, logits)
    assert load_file(tmp_path / "dense" / "model.safetensors").keys() == (
        tiny_keys(tmp_path / "never compressed")
    )


def tiny_keys(folder: Path) -> set[str]:
    tiny_gpt2().save_pretrained(folder)
    return set(load_file(folder / "model.safetensors"))


def test_dense_model_can_be_compressed_again(tmp_path: Path) -> None:
    model = reloaded(compressed_gpt2(), tmp_path / "one").dequantize()
    settings = {**SETTINGS, "method": "projective", "n_clusters": 4}
    kflats.compress_(model, CompressionConfig(**settings))
    found = reloaded(model, tmp_path / "two")
    assert type(found.lm_head) is FactorizedLinear
    assert found.lm_head.shape.n_clusters == 4
    assert_same_model(found, model, logits)


def test_saving_a_part_leaves_the_whole_as_it_was(tmp_path: Path) -> None:
    model = compressed_bert()
    model.save_pretrained(tmp_path / "before")
    model.base_model.save_pretrained(tmp_path / "part")
    model.save_pretrained(tmp_path / "after")
    assert config_of(tmp_path / "after") == config_of(tmp_path / "before")
    assert_same_model(type(model).from_pretrained(tmp_path / "after"), model, logits)


def test_dense_models_are_left_alone(tmp_path: Path) -> None:
    model = tiny_bert("BertForMaskedLM")
    model.resize_token_embeddings(210)
    found = reloaded(model, tmp_path)
    assert found.get_input_embeddings().weight.shape == (210, 16)
    assert_same_model(found, model, logits)
    with pytest.raises(ValueError, match="first quantize your model"):
        model.dequantize()
