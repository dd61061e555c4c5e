"""What training code does to the layers of a model without asking which they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kflats import CompressionConfig, UnsupportedModelError, compress_
from kflats.layers import StoredTable
from kflats.quantization.training import unpack_

FORMS: dict[str, dict[str, Any]] = {
    "flats": {"compression": 0.4, "n_clusters": 2},
    "projective": {"compression": 0.4, "n_clusters": 2, "method": "projective"},
    "svd": {"compression": 0.4, "method": "svd"},
    "codes": {"bits": 4.0},
    "codes and exact rows": {"bits": 6.0, "exact_ids": (0, 7)},
}
IDS = torch.randint(0, 300, (3, 7), generator=torch.Generator().manual_seed(1))


class Tied(nn.Module):
    """An embedding and an output head of one table, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 32)
        self.head = nn.Linear(32, 300, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.words(ids).tanh())
        return logits


def made(form: str) -> Any:
    torch.manual_seed(0)
    model = Tied()
    compress_(model, CompressionConfig(modules=("words",), **FORMS[form]))
    return model


def add(rows: Tensor) -> None:
    rows += 1.0


def put(rows: Tensor) -> None:
    rows[0, 1] = 0.0


def drop(rows: Tensor) -> None:
    nn.functional.dropout(rows, 0.5, inplace=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [add, put, drop])
def test_rows_and_logits_may_be_changed_in_place(
    form: str, change: Callable[[Tensor], None]
) -> None:
    model = made(form)
    hidden = torch.randn(3, 7, 32, requires_grad=True)
    for output in (model.words(IDS), model.head(hidden)):
        expected = output.detach().clone()
        torch.manual_seed(1)
        change(expected)
        torch.manual_seed(1)
        change(output)
        assert torch.equal(output, expected)
        if output.requires_grad:
            output.sum().backward()
    assert hidden.grad is not None


@pytest.mark.parametrize("form", FORMS)
def test_average_of_equal_models_is_the_model(form: str) -> None:
    model = made(form)
    for decay in (0.5, 0.9, 0.999):
        average: Any = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        for _ in range(5):
            average.update_parameters(model)
        rows = average.module.words(torch.arange(300))
        torch.testing.assert_close(rows, model.words(torch.arange(300)))


@pytest.mark.parametrize("form", FORMS)
def test_training_may_be_switched_on_for_all_parameters(form: str) -> None:
    model = made(form)
    before = model(IDS).detach()
    model.requires_grad_(False).requires_grad_(True)
    flat = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(flat, model.parameters())
    assert all(parameter.is_floating_point() for parameter in model.parameters())
    hidden = torch.randn(4, 32, requires_grad=True)
    model.head(hidden).sum().backward()
    assert torch.equal(model(IDS), before)
    if form.startswith("codes"):
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("form", ["codes", "codes and exact rows"])
def test_codes_unpack_after_training_was_switched_on(form: str) -> None:
    model = made(form).requires_grad_(True)
    unpack_(model)
    for _ in range(2):  # a graph left in a buffer fails at the second step
        model(IDS).square().sum().backward()


def shared_tensors(model: Any) -> list[tuple[Tensor, Tensor]]:
    words, head = model.words, model.head
    names = (*words.FACTORS, *words.SAVED_BUFFERS, *words.DERIVED_BUFFERS)
    pairs = [(getattr(words, name), getattr(head, name)) for name in names]
    return [(one, other) for one, other in pairs if one is not None]


@pytest.mark.parametrize("form", FORMS)
def test_one_table_stays_one_through_casts_copies_and_moves(form: str) -> None:
    model = made(form)
    for changed in (copy.deepcopy(model), made(form).half()):
        assert all(one is other for one, other in shared_tensors(changed))
        assert changed.words.table_id == changed.head.table_id
    alone = made(form)
    alone.head.double()
    assert all(one is other for one, other in shared_tensors(alone))
    assert alone.words(IDS).dtype == torch.float64


@pytest.mark.parametrize("form", FORMS)
def test_weight_can_be_set_to_that_of_another_layer(form: str) -> None:
    model, other = made(form), made(form)
    ids = torch.arange(300)
    with torch.no_grad():
        factors = [getattr(other.words, name) for name in other.words.FACTORS]
        for factor in factors:
            if factor is not None:
                factor.mul_(2.0)
    model.head.weight = other.words.weight
    hidden = torch.randn(4, 32)
    assert torch.equal(model.head(hidden), other.head(hidden))
    assert model.head.table_id == other.words.table_id != model.words.table_id
    model.words.weight = other.words.weight
    assert torch.equal(model.words(ids), other.words(ids))


def test_weight_of_another_form_or_width_is_refused() -> None:
    model, before = made("flats"), made("flats").head(torch.ones(32))
    for wrong in (made("codes").words.weight, model.words.weight.T, torch.zeros(300, 32), None):
        with pytest.raises(UnsupportedModelError, match="stored in the same form"):
            model.head.weight = wrong
    assert torch.equal(model.head(torch.ones(32)), before)


def test_number_of_rows_can_be_set_to_what_it_is_only() -> None:
    layer: Any = made("flats").words
    layer.num_embeddings = 300
    with pytest.raises(UnsupportedModelError, match=r"num_embeddings=301 .* has 300 rows"):
        layer.num_embeddings = 301


def test_a_table_that_is_read_no_longer_keeps_its_other_readers() -> None:
    model, other = made("codes"), made("codes")
    hidden, before = torch.randn(2, 32), model.head(torch.ones(2, 32))
    model.words.weight = other.words.weight  # the head read the table through the embedding
    assert torch.equal(model.head(torch.ones(2, 32)), before)
    assert isinstance(model.head, StoredTable)
    assert not model.head.is_shared
    assert set(model.head.state_dict()) >= {"coefficients", "bases"}
    assert torch.equal(model.words(IDS), other.words(IDS))
    assert model.head(hidden).shape == (2, 300)
