from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kflats import (
    CompressionConfig,
    FactorizedEmbedding,
    FactorizedLinear,
    InputError,
    compress_,
    to_dense_,
)
from tests.conftest import spectral_table
from tests.test_tables import Scaled

N, D = 400, 24
CONFIG = CompressionConfig(compression=0.5, n_clusters=2, exact_ids=(1, 5))
IDS = torch.tensor([[0, 1, 5], [399, 7, 7]])


class Tied(nn.Module):
    """A small language model; the head reads the table of the words unless told otherwise."""

    def __init__(self, words: nn.Embedding | None = None, bias: bool = True) -> None:
        super().__init__()
        self.words = words or nn.Embedding(N, D, padding_idx=1)
        self.words.weight.data.copy_(spectral_table())
        self.head = nn.Linear(D, N, bias=bias)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.words(ids))
        return logits


def scaled_embedding(kind: str, scale: float) -> Any:
    if kind == "bart":
        from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

        return BartScaledWordEmbedding(N, D, 1, embed_scale=scale)
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    return Gemma3TextScaledWordEmbedding(N, D, 1, embed_scale=scale)


def compressed(model: nn.Module, *modules: str) -> nn.Module:
    settings = {**vars(CONFIG), "modules": modules or None}
    compress_(model, CompressionConfig(**settings))
    return model


def plain() -> nn.Sequential:
    embedding = nn.Embedding.from_pretrained(spectral_table(), freeze=False, padding_idx=1)
    return nn.Sequential(embedding, nn.Linear(D, 3))


def test_plain_model_is_itself_again() -> None:
    model, dense = plain(), plain()
    compressed(model)
    expected = model(IDS)
    assert to_dense_(model) is model
    assert repr(model) == repr(dense)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in dense.state_dict().items()
    }
    torch.testing.assert_close(model(IDS), expected)
    embedding = model[0]
    assert isinstance(embedding, nn.Embedding)
    assert torch.equal(embedding.weight[[1, 5]], spectral_table()[[1, 5]])
    assert not torch.equal(embedding.weight, spectral_table())


def test_dense_model_trains_and_leaves_padding_alone() -> None:
    model = to_dense_(compressed(plain()))
    model(IDS).square().sum().backward()
    grad = model.get_parameter("0.weight").grad
    assert grad is not None
    assert grad[5].any()
    assert not grad[1].any()


def test_dense_model_compresses_again() -> None:
    model = to_dense_(compressed(plain()))
    before = model(IDS)
    # The table lies in the subspaces already, so they are found again.
    report = compress_(model, CONFIG)
    assert report.tables[0].relative_error < 1e-5
    torch.testing.assert_close(model(IDS), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trains", [False, True])
def test_state_of_the_layers_is_kept(dtype: torch.dtype, trains: bool) -> None:
    model = plain().to(dtype).requires_grad_(trains).train(trains)
    to_dense_(compressed(model))
    embedding = model[0]
    assert isinstance(embedding, nn.Embedding)
    assert embedding.weight.dtype == dtype
    assert embedding.weight.requires_grad == trains
    assert embedding.training == trains
    assert embedding.padding_idx == 1


@pytest.mark.parametrize("bias", [False, True])
def test_tied_modules_share_one_weight(bias: bool) -> None:
    model = Tied(bias=bias)
    compressed(model, "words")
    assert isinstance(model.words, FactorizedEmbedding)
    assert isinstance(model.head, FactorizedLinear)
    expected, old_bias = model(IDS), model.head.bias
    to_dense_(model)
    assert type(model.words) is nn.Embedding
    assert type(model.head) is nn.Linear
    assert model.head.weight is model.words.weight
    assert model.head.bias is old_bias
    assert len(list(model.parameters())) == 1 + bias
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)


def test_module_with_two_names_stays_one_module() -> None:
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(spectral_table())})
    model["b"] = model["a"]
    compressed(model, "a")
    to_dense_(model)
    assert type(model["a"]) is nn.Embedding
    assert model["b"] is model["a"]


def test_untied_head_gets_a_weight_of_its_own() -> None:
    model = Tied()
    model.head.weight = nn.Parameter(spectral_table(seed=1))
    compressed(model, "words", "head")
    expected = model(IDS)
    to_dense_(model)
    assert model.head.weight is not model.words.weight
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bart", "gemma"])
def test_scaled_embedding_keeps_class_and_scale(kind: str, dtype: torch.dtype) -> None:
    embedding = scaled_embedding(kind, 5.65685424949238).to(dtype)
    scale = float(embedding.embed_scale)
    model = Tied(embedding).to(dtype)
    compressed(model, "words")
    expected = model.words(IDS)
    to_dense_(model)
    restored: Any = model.words
    assert type(restored) is type(embedding)
    assert float(restored.embed_scale) == pytest.approx(scale, rel=1e-7)
    assert model.head.weight is model.words.weight
    assert (restored.padding_idx, restored.weight.dtype) == (1, dtype)
    assert restored.state_dict().keys() == embedding.state_dict().keys()
    torch.testing.assert_close(model.words(IDS), expected)


def test_scale_without_a_class_goes_into_a_table_of_its_own() -> None:
    model = Tied()
    compressed(model, "words")
    assert isinstance(model.words, FactorizedEmbedding)
    model.words.scale = 3.0
    words, logits = model.words(IDS), model(IDS)
    to_dense_(model)
    assert type(model.words) is nn.Embedding
    assert model.head.weight is not model.words.weight
    torch.testing.assert_close(model.words(IDS), words)
    torch.testing.assert_close(model(IDS), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", [nn.Embedding, Scaled], ids=["plain", "scaled"])
def test_sub_class_without_a_scale_argument(base: type[nn.Embedding]) -> None:
    class Own(base):  # type: ignore[misc, valid-type]
        """A class of some project."""

    own = Own(N, D)
    own.weight.data.copy_(spectral_table())
    model = compressed(nn.Sequential(own))
    expected = model(IDS)
    to_dense_(model)
    torch.testing.assert_close(model(IDS), expected)


def test_what_has_no_factorised_layer_inside_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has no factorised layer inside"):
        to_dense_(plain())
    layer = compressed(plain()).get_submodule("0")
    with pytest.raises(InputError, match=r"has to_embedding\(\), to_bag\(\) or to_linear\(\)"):
        to_dense_(layer)
