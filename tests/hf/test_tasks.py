"""A checkpoint of a base model in a task model, and back."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import kflats
from kflats import CheckpointError, CompressionConfig, FactorizedEmbedding, FactorizedLinear
from tests.hf.architectures import ARCHITECTURES, compressed, dense_model, inputs_of, readers_of
from tests.promises import assert_same_model, assert_same_outputs, assert_same_tensors

FULL = [name for name, row in ARCHITECTURES.items() if row.dtype == torch.float32]
TIED = [name for name in FULL if ARCHITECTURES[name].readers in ((2,), (4,))]


def last_hidden(model: Any) -> Tensor:
    """Return the last hidden state that a model, of either kind, computes."""
    with torch.no_grad():
        found = model(**inputs_of(model), output_hidden_states=True)
    states = found.get("decoder_hidden_states", found.get("hidden_states"))
    last: Tensor = states[-1]
    return last


def base_of(name: str, folder: Path) -> Any:
    """Save the task model and load it as its base model."""
    compressed(name)[0].save_pretrained(folder)
    return transformers.AutoModel.from_pretrained(folder)


def base_tensors(model: Any, other: Any) -> dict[str, Tensor]:
    """Return the tensors of the base model, without a pooler or head that one of the two lacks."""
    found, shared = model.base_model.state_dict(), other.base_model.state_dict()
    assert all("pooler" in name or "lm_head" in name for name in found.keys() ^ shared.keys())
    return {name: tensor for name, tensor in found.items() if name in shared}


@pytest.mark.parametrize("name", FULL)
def test_task_checkpoint_loads_into_the_base_model(name: str, tmp_path: Path) -> None:
    model, _ = compressed(name)
    base = base_of(name, tmp_path)
    assert type(base) is not type(model)
    assert type(base.get_input_embeddings()) is FactorizedEmbedding
    assert_same_tensors(base_tensors(base, model), base_tensors(model, base))
    assert_same_outputs(last_hidden(base), last_hidden(model))


@pytest.mark.parametrize("name", TIED)
def test_base_checkpoint_gives_the_task_model_a_head_on_its_factors(
    name: str, tmp_path: Path
) -> None:
    model, _ = compressed(name)
    base_of(name, tmp_path / "task").save_pretrained(tmp_path / "base")
    loaded = type(model).from_pretrained(tmp_path / "base")
    head, table = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert type(head) is FactorizedLinear
    assert head.coefficients is table.coefficients
    assert head.labels is table.labels
    assert_same_tensors(loaded.base_model, model.base_model)
    assert_same_outputs(last_hidden(loaded), last_hidden(model))
    assert readers_of(loaded) == readers_of(model)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "t5", "bart"])
def test_logits_survive_the_way_over_the_base_model(name: str, tmp_path: Path) -> None:
    model, _ = compressed(name)
    base_of(name, tmp_path / "task").save_pretrained(tmp_path / "base")
    loaded = type(model).from_pretrained(tmp_path / "base")
    assert_same_model(loaded, model, lambda each: each(**inputs_of(each)).logits)


def test_untied_head_that_the_base_does_not_have_is_dense(tmp_path: Path) -> None:
    base_of("llama-untied", tmp_path / "task").save_pretrained(tmp_path / "base")
    loaded, info = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "base", output_loading_info=True
    )
    assert type(loaded.lm_head) is nn.Linear
    assert info["missing_keys"] == {"lm_head.weight"}


def test_one_task_model_loads_the_checkpoint_of_another(tmp_path: Path) -> None:
    compressed("bert")[0].save_pretrained(tmp_path / "words")
    labels = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "words")
    labels.save_pretrained(tmp_path / "labels")
    words = transformers.BertForMaskedLM.from_pretrained(tmp_path / "labels")
    expected, _ = compressed("bert")
    assert_same_tensors(words.base_model, expected.base_model)
    assert_same_outputs(last_hidden(words), last_hidden(expected))
    assert readers_of(words) == readers_of(expected)


@pytest.mark.parametrize("method", ["projective", "svd"])
def test_decoder_alone_gets_the_shared_factors_or_an_error(method: str, tmp_path: Path) -> None:
    # A dense decoder does not find the shared table in the file and draws a random one.
    model = dense_model("bart")
    clusters = {"projective": 2, "svd": 1}[method]
    kflats.compress_(model, CompressionConfig(rank=4, method=method, n_clusters=clusters))
    model.save_pretrained(tmp_path)
    with suppress(CheckpointError):
        loaded = transformers.BartForCausalLM.from_pretrained(tmp_path)
        found = loaded.get_input_embeddings().coefficients
        assert torch.equal(found, model.model.shared.coefficients)


def test_model_without_such_an_embedding_is_refused(tmp_path: Path) -> None:
    compressed("bert")[0].save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"table 'bert.embeddings.* GPT2Model has 'wte' of the same"
    ):
        transformers.GPT2Model.from_pretrained(tmp_path)
