from __future__ import annotations

from typing import Any

import pytest
import torch

from kflats import InputError, feature_moments

TEXTS = ["a b c", "c d", "e a b d c"]


class Batch(dict[str, Any]):
    def to(self, device: Any) -> Batch:
        return self


class Letters:
    """A tokenizer whose tokens are single letters."""

    pad_token = "."

    def __call__(self, texts: list[str], *, max_length: int, **_: Any) -> Batch:
        rows = [[ord(word) - 96 for word in text.split()][:max_length] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return Batch(input_ids=ids, attention_mask=(ids > 0).long())


class Model(torch.nn.Module):
    """Embeds, maps by a fixed matrix, and reads the table again as a head if it is tied."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(10, 4)
        self.map = torch.nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.map.weight.copy_(torch.diag(torch.tensor([3.0, 1.0, 1.0, 0.0])))
        self.head = torch.nn.Linear(4, 10, bias=False) if tied else None
        if self.head is not None:
            self.head.weight = self.words.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = self.map(self.words(input_ids))
        return (hidden if self.head is None else self.head(hidden),)


def moments(model: Model, texts: list[str] | None = None, **options: Any) -> torch.Tensor:
    return feature_moments(model, Letters(), texts or TEXTS * 20, modules=("words",), **options)


def test_embedding_gives_the_directions_that_reach_the_output() -> None:
    found = moments(Model())
    expected = torch.diag(torch.tensor([9.0, 1.0, 1.0, 0.0])) / 11
    torch.testing.assert_close(found, expected.double(), atol=0.1, rtol=0)
    assert float(found[3].abs().max()) == 0
    assert float(found.trace()) == pytest.approx(1)


def test_tied_head_adds_the_moments_of_its_inputs() -> None:
    model = Model(tied=True)
    ids = Letters()(TEXTS, max_length=128)["input_ids"]
    hidden = model.map(model.words(ids)).reshape(-1, 4).double().detach()
    inputs = hidden.T @ hidden
    both = moments(model, TEXTS)
    outputs = 2 * both - inputs / inputs.trace()
    assert float(outputs.trace()) == pytest.approx(1)
    assert float(torch.linalg.eigvalsh(outputs).min()) > -1e-9


def test_model_is_left_as_it_was() -> None:
    model = Model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert not model.words._forward_hooks


def test_frozen_models_and_seeds() -> None:
    frozen = Model().requires_grad_(False)
    assert torch.equal(moments(frozen), moments(Model()))
    assert not torch.equal(moments(Model()), moments(Model(), random_state=1))


def test_only_so_many_texts_are_read() -> None:
    stream = iter(["a b"] * 100)
    feature_moments(Model(), Letters(), stream, modules=("words",), max_texts=16)
    assert len(list(stream)) == 84


def test_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="no text to calibrate with"):
        feature_moments(Model(), Letters(), [], modules=("words",))
