"""PEFT beside LoRA on factors: prompts, saved and tied modules, LoRA on packed codes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import kflats
from kflats import CompressionConfig, UnsupportedModelError
from kflats.hf.lora import lora_config
from tests.hf.models import IDS, logits, tiny_gpt2

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated:FutureWarning",  # what PEFT reads of transformers
    "ignore:Unsupported layer type:UserWarning:peft",
    "ignore:fan_in_fan_out is set to False:UserWarning",
    "ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning",
    "ignore:Setting `save_embedding_layers` to `True`:UserWarning",
)

FORMS: dict[str, dict[str, Any]] = {
    "flats": {"compression": 0.4, "n_clusters": 2},
    "codes": {"bits": 10.0},
}


@pytest.fixture(params=FORMS)
def model(request: pytest.FixtureRequest) -> Any:
    found = tiny_gpt2()
    kflats.compress_(found, CompressionConfig(**FORMS[request.param]))
    return found


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
        ),
    ],
    ids=["prompts", "encoder"],
)
def test_prompts_are_tuned_over_the_compressed_table(model: Any, config: Any) -> None:
    listed = dict(model.named_parameters())
    tuned = peft.get_peft_model(model, config)
    assert tuned.word_embeddings is model.get_input_embeddings()
    assert dict(model.named_parameters()).keys() == listed.keys()
    loss = tuned(input_ids=IDS, labels=IDS).loss
    loss.backward()
    gradients = [each.grad for each in tuned.prompt_encoder.parameters() if each.requires_grad]
    assert any(bool(each.abs().sum() > 0) for each in gradients if each is not None)


def test_search_of_peft_in_dense_models_is_as_before() -> None:
    dense = tiny_gpt2()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert peft.get_peft_model(dense, config).word_embeddings is dense.transformer.wte


def test_saved_modules_stay_tied_where_peft_is_asked_to(model: Any) -> None:
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], modules_to_save=["wte", "lm_head"], ensure_weight_tying=True
    )
    before = logits(model)
    tuned = peft.get_peft_model(copy.deepcopy(model), config)
    words = tuned.base_model.model.transformer.wte.modules_to_save["default"]
    head = tuned.base_model.model.lm_head.modules_to_save["default"]
    assert head.table_id == words.table_id
    assert all(getattr(head, name) is getattr(words, name) for name in words.SAVED_BUFFERS)
    torch.testing.assert_close(logits(tuned), before)


def test_lora_on_packed_codes_trains_beside_them(tmp_path: Path) -> None:
    model = tiny_gpt2()
    kflats.compress_(model, CompressionConfig(bits=10.0))
    before = logits(model)
    config = lora_config(peft.LoraConfig(r=2, target_modules=["wte", "lm_head"]))
    tuned = peft.get_peft_model(copy.deepcopy(model), config)
    assert torch.equal(logits(tuned), before)  # an adapter begins at zero
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        tuned(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    trained = logits(tuned.eval())
    assert not torch.equal(trained, before)
    codes = tuned.base_model.model.transformer.wte.base_layer
    assert torch.equal(codes.coefficients, model.transformer.wte.coefficients)
    with pytest.raises(UnsupportedModelError, match="cannot be merged"):
        tuned.merge_and_unload()
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(
        copy.deepcopy(model),
        tmp_path,
        config=lora_config(peft.LoraConfig.from_pretrained(tmp_path)),
    )
    torch.testing.assert_close(logits(again.eval()), trained)
    assert isinstance(again, nn.Module)
