"""from_pretrained of dense and compressed folders, with the options that people give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import kflats
from kflats import CompressionConfig, FactorizedEmbedding, FactorizedLinear, InputError
from kflats.hf import KFlatsConfig
from kflats.layers.logits import logits as logits_operator
from kflats.layers.logits import logits_backward
from kflats.layers.lookup import lookup, lookup_backward
from kflats.storage.manifest import factor_layers
from tests.conftest import tiny_bert
from tests.hf.models import SETTINGS, compressed_gpt2, logits, tiny_gpt2
from tests.promises import assert_same_model


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "gpt2"
    tiny_gpt2().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed") / "gpt2"
    compressed_gpt2().save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def assert_same_and_tied(found: Any, expected: Any) -> None:
    assert_same_model(found, expected, logits)
    assert found.lm_head.coefficients is found.transformer.wte.coefficients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compressing_while_loading_is_compressing_after_it(
    dense: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    found = load(dense, dtype=dtype, quantization_config=KFlatsConfig(**SETTINGS))
    expected = load(dense, dtype=dtype)
    kflats.compress_(expected, CompressionConfig(**SETTINGS))
    assert found.lm_head.coefficients.dtype == dtype
    assert_same_and_tied(found, expected)
    found.save_pretrained(tmp_path / "found")
    expected.save_pretrained(tmp_path / "expected")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "found" / name).read_bytes() == (
            tmp_path / "expected" / name
        ).read_bytes()
    assert_same_and_tied(load(tmp_path / "found"), expected)


def test_compressing_while_loading_takes_a_dict_and_any_device_map(dense: Path) -> None:
    pytest.importorskip("accelerate")
    block = {"quant_method": "kflats", **SETTINGS, "exact_ids": [0, 3]}
    found = load(dense, device_map="auto", quantization_config=block)
    assert_same_and_tied(found, compressed_gpt2())


def test_compressing_while_loading_needs_a_size(dense: Path) -> None:
    with pytest.raises(InputError, match=r"KFlatsConfig\(\) has no size: give one"):
        load(dense, quantization_config=KFlatsConfig())


def test_unknown_and_contradicting_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"has no settings \['colour'\]"):
        KFlatsConfig(colour="blue")
    with pytest.raises(InputError, match=r"compression=1\.5"):
        KFlatsConfig(compression=1.5)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning:transformers")
def test_checkpoint_keeps_its_own_factors(compressed: Path) -> None:
    found = load(compressed, quantization_config=KFlatsConfig(compression=0.7, n_clusters=4))
    assert_same_and_tied(found, compressed_gpt2())


def test_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    model = compressed_gpt2()
    model.save_pretrained(tmp_path / "out", max_shard_size="8KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert_same_and_tied(load(tmp_path / "out"), model)
    assert_same_and_tied(kflats.load(tmp_path / "out"), model)


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}, "dtype": "auto"},
        {"low_cpu_mem_usage": True},
        {"dtype": torch.float32},
        {"use_safetensors": True},
    ],
    ids=str,
)
def test_options_give_the_same_model(compressed: Path, options: dict[str, Any]) -> None:
    if "device_map" in options:
        pytest.importorskip("accelerate")
    assert_same_and_tied(load(compressed, **options), compressed_gpt2())


def test_dtype_option_casts_the_factors(compressed: Path) -> None:
    found = load(compressed, dtype=torch.bfloat16)
    assert_same_and_tied(found, compressed_gpt2().to(torch.bfloat16))
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    assert found.transformer.wte.labels.dtype == torch.uint8
    assert found.transformer.wte.places.dtype == torch.int32


def test_loaded_model_is_not_taken_for_a_quantised_one(compressed: Path, dense: Path) -> None:
    for model in (
        load(compressed),
        load(dense, quantization_config=KFlatsConfig(compression=0.5, n_clusters=2)),
    ):
        assert not model.is_quantized
        assert not hasattr(model, "hf_quantizer")
        assert not hasattr(model, "quantization_method")
        assert all(parameter.requires_grad for parameter in model.parameters())


INSIDE = {
    "kflats::lookup": lookup,
    "kflats::lookup_backward": lookup_backward,
    "kflats::logits": logits_operator,
    "kflats::logits_backward": logits_backward,
}


class Largest(TorchDispatchMode):
    """Remembers the largest float tensor that any operator made, meta tensors left out."""

    numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        operator: Any = INSIDE.get(func._schema.name)
        if operator is None:
            result = func(*args, **(kwargs or {}))
        else:  # look into it too
            with self:
                result = operator._init_fn(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.is_meta:
                self.numel = max(self.numel, tensor.numel())
        return result


def largest_in_life(folder: Path) -> int:
    """Load a model, train one step and return the size of the largest tensor on the way."""
    largest = Largest()  # type: ignore[no-untyped-call]
    with largest:
        model = load(folder)
        ids = torch.arange(8)[None]
        model(ids, labels=ids).loss.backward()
    return largest.numel


def test_no_dense_table_is_ever_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # modes see one thread only
    n, d = 3000, 16
    tiny_gpt2(vocab_size=n).save_pretrained(tmp_path / "dense")
    compressed_gpt2(vocab_size=n).save_pretrained(tmp_path / "compressed")
    assert largest_in_life(tmp_path / "dense") == n * d
    stored = load_file(tmp_path / "compressed" / "model.safetensors")["transformer.wte.weight"]
    assert largest_in_life(tmp_path / "compressed") == stored.numel() < 0.65 * n * d


def test_config_of_a_compressed_model_makes_dense_models_that_save(
    compressed: Path, tmp_path: Path
) -> None:
    config = transformers.AutoConfig.from_pretrained(compressed)
    fresh = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert factor_layers(fresh) == {}
    fresh.save_pretrained(tmp_path)
    assert_same_model(load(tmp_path), fresh, logits)


def test_config_can_be_given_and_used_again(compressed: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(compressed)
    for _ in range(2):
        assert_same_and_tied(load(compressed, config=config), compressed_gpt2())


def test_names_that_differ_in_files_are_found(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 200, "num_key_value_heads": 1, "head_dim": 8,
            "intermediate_size": 32, "pad_token_id": 0}  # fmt: skip
    vision = {**small, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=199
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    kflats.compress_(model, CompressionConfig(**SETTINGS))
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_model(loaded, model, logits)


def test_layers_know_what_they_replaced(tmp_path: Path) -> None:
    model = tiny_bert("BertForMaskedLM", pad_token_id=3)
    kflats.compress_(model, CompressionConfig(**SETTINGS))
    model.save_pretrained(tmp_path)
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    table, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert (type(table), type(head)) == (FactorizedEmbedding, FactorizedLinear)
    assert table.padding_idx == 3
    assert table.origin == model.get_input_embeddings().origin != {}
    assert head.bias is loaded.cls.predictions.bias
    assert loaded.get_input_embeddings().labels is head.labels
