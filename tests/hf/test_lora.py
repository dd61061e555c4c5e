"""LoRA of PEFT beside and on factorised layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import kflats
from kflats import CompressionConfig, UnsupportedModelError
from tests.hf.architectures import compressed, dense_model, reconstructed
from tests.hf.models import IDS, compressed_bert, compressed_gpt2, logits
from tests.promises import assert_same_model

pytest.importorskip("peft")

from peft import LoraConfig, PeftModel, get_peft_model

from kflats.hf.lora import lora_config

# What PEFT says of classes that it does not know and of tied heads, and a call in transformers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]
FACTORS = ("coefficients", "bases", "labels", "places", "kflats", "base_layer")


def adapted(model: Any, config: LoraConfig, steps: int = 2) -> Any:
    """Put adapters on a model and train them until they count."""
    found = get_peft_model(model, config)
    optimizer = torch.optim.SGD([p for p in found.parameters() if p.requires_grad], lr=1.0)
    for _ in range(steps):
        found(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return found.eval()


def trainable(model: Any) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def keys(folder: Path) -> list[str]:
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return sorted(file.keys())


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def config_for(name: str, **settings: Any) -> LoraConfig:
    return LoraConfig(r=2, fan_in_fan_out=name == "gpt2", **settings)


def compressed_llama() -> Any:
    return copy.deepcopy(compressed("llama")[0])


BESIDE = {"gpt2": (compressed_gpt2, "c_attn"), "bert": (compressed_bert, "transform.dense")}
ON = {
    "llama table": (compressed_llama, ["embed_tokens"]),
    "llama head": (compressed_llama, ["lm_head"]),
    "llama both": (compressed_llama, ["embed_tokens", "lm_head"]),
    "gpt2 table": (compressed_gpt2, ["wte"]),
    "bert table": (compressed_bert, ["word_embeddings"]),
    "bert head": (compressed_bert, ["cls.predictions.decoder"]),
}
beside = pytest.mark.parametrize("name", BESIDE)
on = pytest.mark.parametrize("name", ON)


@beside
def test_adapters_beside_factors(name: str, tmp_path: Path) -> None:
    make, target = BESIDE[name]
    model = adapted(make(), config_for(name, target_modules=[target]))
    assert trainable(model)
    assert all("lora_" in each for each in trainable(model))
    expected = answer(model)
    assert (expected - answer(make())).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    assert all("lora_" in key for key in keys(tmp_path))
    loaded = PeftModel.from_pretrained(make(), tmp_path).eval()
    assert_same_model(loaded, model, answer)


@beside
def test_adapters_beside_factors_merge(name: str, tmp_path: Path) -> None:
    make, target = BESIDE[name]
    model = adapted(make(), config_for(name, target_modules=[target]))
    expected = answer(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(answer(merged), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    assert_same_model(type(merged).from_pretrained(tmp_path), merged, answer)


@on
@pytest.mark.parametrize("save_embedding_layers", ["auto", False])
def test_adapters_on_factors(name: str, save_embedding_layers: Any, tmp_path: Path) -> None:
    make, targets = ON[name]
    model = adapted(make(), lora_config(LoraConfig(r=2, target_modules=targets)))
    assert all("lora_" in each for each in trainable(model))
    assert len(trainable(model)) == 2 * len(targets)
    expected = answer(model)
    assert (expected - answer(make())).abs().max() > 1e-3
    model.save_pretrained(tmp_path, save_embedding_layers=save_embedding_layers)
    assert [key for key in keys(tmp_path) if any(word in key for word in FACTORS)] == []
    assert len(keys(tmp_path)) == 2 * len(targets)
    config = lora_config(LoraConfig.from_pretrained(tmp_path))
    loaded = PeftModel.from_pretrained(make(), tmp_path, config=config).eval()
    assert_same_model(loaded, model, answer)


def llama_answer(model: Any, config: LoraConfig) -> torch.Tensor:
    """Put the same random adapters on a copy of a model and return its logits."""
    found = get_peft_model(copy.deepcopy(model), config).eval()
    torch.manual_seed(0)
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    with torch.no_grad():
        return found(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("name", ["llama-untied", "gemma3"])
def test_adapters_add_what_they_add_to_the_dense_model(name: str, target: str) -> None:
    settings: dict[str, Any] = {"r": 2, "target_modules": [target]}
    found = llama_answer(compressed(name)[0], lora_config(LoraConfig(**settings)))
    expected = llama_answer(reconstructed(name), LoraConfig(**settings))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@on
def test_adapters_on_factors_do_not_merge(name: str) -> None:
    make, targets = ON[name]
    model = adapted(make(), lora_config(LoraConfig(r=2, target_modules=targets)))
    expected = answer(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UnsupportedModelError, match="cannot be merged into a factorised"):
            merge()
        assert torch.equal(answer(model), expected)


def test_adapters_on_factors_unload() -> None:
    model = compressed_gpt2()
    before = logits(model)
    found = adapted(model, lora_config(LoraConfig(r=2, target_modules=["wte"]))).unload()
    assert type(found.transformer.wte).__name__ == "FactorizedEmbedding"
    assert torch.equal(logits(found), before)


def test_table_needs_lora_config() -> None:
    with pytest.raises(ValueError, match=r"FactorizedEmbedding.* is not supported"):
        get_peft_model(compressed_gpt2(), LoraConfig(target_modules=["wte"]))


def linear_llama() -> Any:
    """Return a model whose bases are matrices, as PEFT needs them."""
    model = copy.deepcopy(dense_model("llama"))
    kflats.compress_(model, CompressionConfig(rank=3, n_clusters=2, method="projective"))
    return model


def test_adapter_on_the_bases_themselves(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["embed_tokens.bases"])
    model = adapted(linear_llama(), config)
    assert any("embed_tokens" in name for name in trainable(model))
    assert all("lora_" in name for name in trainable(model))
    expected = answer(model)
    assert (expected - answer(linear_llama())).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    assert all("lora_" in key for key in keys(tmp_path))
    loaded = PeftModel.from_pretrained(linear_llama(), tmp_path).eval()
    assert_same_model(loaded, model, answer)
