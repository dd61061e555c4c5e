from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from kflats import CompressionConfig, UnsupportedModelError, compress_
from kflats.layers import StoredTable
from kflats.tables import find_tables
from kflats.trial import check_trial
from tests.conftest import tiny_bert

SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "embedding_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "true_hidden_size": 16,
    "intra_bottleneck_size": 16,
}


def mobilebert() -> Any:
    return transformers.MobileBertForMaskedLM(transformers.MobileBertConfig(**SIZES))


class Reading(nn.Module):
    """Reads the class of the module, not its rows: what a trial alone can find."""

    def __init__(self, words: nn.Module) -> None:
        super().__init__()
        self.words = words

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.words(ids)
        return rows.cumsum(-1) if isinstance(self.words, nn.Embedding) else rows


def odd_bert() -> Any:
    model = tiny_bert()
    model.embeddings.word_embeddings = Reading(model.embeddings.word_embeddings)
    model.get_input_embeddings = lambda: model.embeddings.word_embeddings.words
    return model


@pytest.mark.parametrize("config", [{"compression": 0.4, "n_clusters": 2}, {"bits": 10.0}])
def test_head_that_is_joined_with_a_matrix_is_refused_before_anything_is_replaced(
    config: dict[str, Any],
) -> None:
    model = mobilebert().train()
    before = {name: id(each) for name, each in model.named_modules()}
    with pytest.raises(UnsupportedModelError, match=r"MobileBertForMaskedLM does not run .*AutoM"):
        compress_(model, CompressionConfig(**config))
    assert {name: id(each) for name, each in model.named_modules()} == before
    assert model.training
    base = model.mobilebert
    compress_(base, CompressionConfig(**config))
    assert isinstance(base.get_input_embeddings(), StoredTable)


def test_another_output_is_refused() -> None:
    model = odd_bert()
    with pytest.raises(UnsupportedModelError, match="BertModel gives another output"):
        compress_(model, CompressionConfig(compression=0.4, n_clusters=2))
    assert isinstance(model.embeddings.word_embeddings.words, nn.Embedding)


def test_trial_leaves_the_model_and_the_random_state_as_they_are() -> None:
    model = tiny_bert("BertForMaskedLM").train()
    calls: list[Any] = []
    model.register_forward_hook(lambda *_: calls.append(_))
    values = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_trial(model, find_tables(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert not calls
    assert model.training
    after = model.state_dict()
    assert all(torch.equal(values[name], after[name]) for name in values)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_what_the_dense_model_cannot_run_is_not_judged() -> None:
    model = odd_bert()
    model.forward = lambda **_: 1 / 0
    check_trial(model, find_tables(model))


def test_table_of_a_speech_model_is_tried_on_sound() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    front = {"conv_dim": (16,), "conv_stride": (5,), "conv_kernel": (10,)}
    config = transformers.SEWDConfig(
        **sizes,
        **front,
        num_feat_extract_layers=1,
        intermediate_size=48,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    model = transformers.SEWDModel(config)
    with pytest.raises(UnsupportedModelError, match=r"SEWDModel does not run .*rel_embeddings"):
        compress_(model, CompressionConfig(compression=0.4, n_clusters=2))
