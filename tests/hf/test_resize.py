"""Changing the number of tokens of compressed models, and what tied modules make of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kflats.storage.manifest import factor_layers
from tests.hf.architectures import ARCHITECTURES, compressed, inputs_of, readers_of, reconstructed
from tests.promises import assert_same_model

BREAKS_WHEN_DENSE = "deberta-v2-new-head"
FULL = [name for name, row in ARCHITECTURES.items() if row.dtype == torch.float32]
names = pytest.mark.parametrize("name", [name for name in FULL if name != BREAKS_WHEN_DENSE])


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs_of(model))[0]  # type: ignore[no-any-return]


def resized(name: str, size: int) -> tuple[Any, int]:
    """Return a copy with another number of tokens, and how many outputs it keeps."""
    model = copy.deepcopy(compressed(name)[0])
    model.resize_token_embeddings(size)
    before = compressed(name)[0].get_output_embeddings()
    if before is None or name == "marian-two-vocabularies":  # the encoder's table is resized
        return model, outputs(model).shape[-1]
    return model, min(size, 120)


@names
@pytest.mark.parametrize("size", [125, 100])
def test_resized_model_keeps_its_outputs_and_round_trips(
    name: str, size: int, tmp_path: Path
) -> None:
    model, kept = resized(name, size)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == size
    assert readers_of(model) == readers_of(compressed(name)[0])
    torch.testing.assert_close(
        outputs(model)[..., :kept], outputs(compressed(name)[0])[..., :kept], rtol=1e-4, atol=1e-4
    )
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_same_model(loaded, model, outputs)
    assert [each.shape for each in factor_layers(loaded).values()] == [
        each.shape for each in factor_layers(model).values()
    ]


@names
def test_resized_outputs_have_the_width_of_the_dense_model(name: str) -> None:
    for size in (125, 100):
        dense = copy.deepcopy(reconstructed(name))
        dense.resize_token_embeddings(size)
        assert outputs(resized(name, size)[0]).shape == outputs(dense).shape


def test_new_head_of_deberta_breaks_like_the_dense_one() -> None:
    # transformers 5.23 resizes a layer of the head that is no table of tokens.
    for model in (compressed(BREAKS_WHEN_DENSE)[0], reconstructed(BREAKS_WHEN_DENSE)):
        smaller = copy.deepcopy(model)
        smaller.resize_token_embeddings(100)
        with pytest.raises(RuntimeError, match=r"normalized_shape=\[16\]"):
            outputs(smaller)
