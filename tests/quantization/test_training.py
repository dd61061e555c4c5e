"""Unpacking tables in packed codes for training, and packing them again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kflats import CompressionConfig, InputError, compress_, pack_, save, unpack_
from kflats.layers import QuantizedEmbedding, QuantizedLinear
from kflats.layers.trainable import TrainableEmbedding, TrainableLinear
from tests.conftest import spectral_table, tiny_bert

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"bits": 5, "options": {"rotated": False}},
    "rotated": {"bits": 5, "n_clusters": 1},
    "clusters": {"bits": 6, "n_clusters": 2},
    "few bits": {"bits": 3, "n_clusters": 1},
    "16 bit basis": {"bits": 7, "n_clusters": 1, "options": {"basis_bits": 16}},
}
forms = pytest.mark.parametrize("form", FORMS)
EXACT = (0, 5)


def coded(form: str = "rotated", dtype: torch.dtype = torch.float32) -> Any:
    """Return a model with a table of 400 rows, whose first ones weigh much more than the last."""
    embedding = nn.Embedding(400, 24, padding_idx=3)
    embedding.weight.data = spectral_table().to(dtype)
    model = nn.Sequential(embedding, nn.Linear(24, 2, dtype=dtype))
    weights = torch.linspace(1, 0.01, 400).square()
    compress_(model, CompressionConfig(**FORMS[form], exact_ids=EXACT, sample_weight=weights))
    return model


def rows(model: nn.Module) -> Tensor:
    layer: Any = model.get_submodule("0")
    with torch.no_grad():
        found: Tensor = layer(torch.arange(400))
    return found


def perturb_(model: nn.Module, size: float = 0.05) -> None:
    """Change all that trains, as an optimizer would."""
    with torch.no_grad():
        for each in model.get_submodule("0").parameters():
            if each.requires_grad:
                each.add_(size * torch.randn_like(each))


def packed_tensors(layer: Any) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in layer.state_dict().items()}


@forms
def test_an_unpacked_layer_gives_the_same_rows(form: str) -> None:
    model = coded(form)
    expected = rows(model)
    assert unpack_(model) is model
    assert type(model[0]) is TrainableEmbedding
    torch.testing.assert_close(rows(model), expected, rtol=1e-4, atol=1e-5)


@forms
def test_packing_without_training_gives_back_the_codes(form: str) -> None:
    model = coded(form)
    before = packed_tensors(model[0])
    pack_(unpack_(model))
    after = packed_tensors(model[0])
    assert type(model[0]) is QuantizedEmbedding
    assert before.keys() == after.keys()
    for name in ("coefficients", "bases", "labels", "exact"):
        assert torch.equal(before[name], after[name]), name
    for name in ("scales", "books"):
        torch.testing.assert_close(before[name], after[name], rtol=1e-5, atol=1e-7)


def dense_like(table: Tensor) -> nn.Sequential:
    return nn.Sequential(nn.Embedding.from_pretrained(table), nn.Linear(24, 2))


@forms
def test_numbers_that_begin_at_dense_rows_have_the_same_codes(form: str) -> None:
    model = coded(form)
    before = model[0].coefficients.clone()
    unpack_(model, dense_like(spectral_table()))
    latent = model[0].latent.detach().clone()
    assert torch.equal(pack_(model)[0].coefficients, before)
    assert float((unpack_(model)[0].latent != latent).float().mean()) > 0.9


@pytest.mark.parametrize("form", ["plain", "rotated"])
def test_numbers_begin_where_the_dense_rows_lie(form: str) -> None:
    table, model = spectral_table(), coded(form)
    layer: Any = unpack_(model, dense_like(table))[0]
    group = max(range(len(layer.shape.counts)), key=lambda g: len(layer.shape.runs[g]) and g)
    count, width = layer.shape.counts[group], sum(each for _, each in layer.shape.runs[group])
    places = slice(*layer.shape.row_starts[group : group + 2])
    ids = torch.argsort(layer.places)[places]
    latent = layer.latent[-count * width :].view(count, width)
    inner = latent * layer.log_gains[-count:].exp()[:, None]
    directions = (layer.bases * layer.units[: len(layer.bases), None]).split(layer.shape.directions)
    found = layer._outer(0, inner, count, directions).detach()
    left = (found - table[ids]).norm() / table[ids].norm()
    assert left < 0.5 * (rows(model)[ids] - table[ids]).norm() / table[ids].norm()


def test_dense_models_of_other_names_or_sizes_leave_numbers_in_the_middle() -> None:
    middle = unpack_(coded())[0].latent
    others = (nn.Sequential(nn.Linear(3, 3)), dense_like(spectral_table()[:, :8]), nn.Identity())
    for other in others:
        assert torch.equal(unpack_(coded(), other)[0].latent, middle)


@forms
def test_packed_rows_follow_what_was_trained(form: str) -> None:
    model = coded(form)
    before, shape, size = rows(model), model[0].shape, model[0].num_bytes
    perturb_(unpack_(model))
    trained = rows(model)
    pack_(model)
    packed = rows(model)
    assert (model[0].shape, model[0].num_bytes) == (shape, size)
    moved, lost = (trained - before).norm(), (packed - trained).norm()
    assert moved > 0.02 * before.norm()
    assert lost < 0.25 * moved  # gains in steps, bases in 8 bits


def test_gains_beyond_the_old_range_are_kept() -> None:
    model = unpack_(coded())
    with torch.no_grad():
        model[0].log_gains += 3
    trained = rows(model)
    packed = rows(pack_(model))
    assert (packed - trained).norm() < 0.03 * trained.norm()


def test_levels_that_changed_places_still_pack() -> None:
    model = unpack_(coded())
    with torch.no_grad():
        model[0].levels.copy_(model[0].levels.flip(0))
        model[0].latent.mul_(1.1)
    trained = rows(model)
    torch.testing.assert_close(rows(pack_(model)), trained, rtol=0.05, atol=0.05)


def test_gradients_reach_used_rows_and_what_all_share() -> None:
    model = unpack_(coded())
    layer = model[0]
    ids = torch.tensor([[7, 8, 7]])
    layer(ids).square().sum().backward()
    assert int((layer.log_gains.grad != 0).sum()) == 2
    assert all(bool(each.grad.any()) for each in (layer.latent, layer.bases, layer.levels))
    assert layer.exact.grad is None


@forms
def test_codes_that_were_set_to_train_unpack_without_their_graph(form: str) -> None:
    model = coded(form)
    layer: Any = model[0]
    for each in (layer.scales, layer.books, layer.exact):
        each.requires_grad_(True)
    unpacked: Any = unpack_(model, dense_like(spectral_table()))[0]
    assert not any(each.requires_grad for each in unpacked.buffers())
    assert all(each.is_leaf for each in unpacked.parameters())
    for _ in range(2):
        model(torch.arange(400)).square().sum().backward()
    assert not any(each.requires_grad for each in pack_(model)[0].parameters())


def test_the_gradient_of_latents_is_that_of_the_unrounded_row() -> None:
    model = unpack_(coded("plain"))
    layer, ids = model[0], torch.tensor([7])
    towards = torch.randn(24)
    (layer(ids)[0] @ towards).backward()
    place = int(layer.places[7])
    groups = torch.tensor(layer.shape.counts).cumsum(0)
    group = int((groups <= place).sum())
    assert layer.shape.runs[group], "row 7 weighs enough to have coefficients"
    found = layer.latent.grad[layer.latent.grad != 0]
    first = int((layer.log_gains.grad != 0).nonzero())
    expected = layer.log_gains[first].exp() * layer._column_scales(0) * towards
    torch.testing.assert_close(found, expected.detach())


def test_padding_and_exact_rows_give_no_gradient() -> None:
    model = unpack_(coded())
    model[0](torch.tensor([3])).sum().backward()
    assert not any(bool(p.grad.any()) for p in model[0].parameters() if p.grad is not None)
    assert not model[0](torch.tensor(EXACT)).requires_grad


def test_ids_out_of_range_raise() -> None:
    model = unpack_(coded())
    for wrong in (-1, 400):
        with pytest.raises(IndexError, match="out of range"):
            model[0](torch.tensor([wrong]))


def test_half_precision_tables_train_in_float32() -> None:
    model = coded(dtype=torch.float16)
    before = rows(model)
    unpack_(model)
    assert model[0].latent.dtype == torch.float32
    assert rows(model).dtype == torch.float16
    torch.testing.assert_close(rows(model), before, rtol=2e-3, atol=2e-3)
    perturb_(model)
    trained = rows(model).float()
    packed = rows(pack_(model)).float()
    assert (packed - trained).norm() < 0.03 * trained.norm()


def test_tied_modules_share_the_unpacked_table() -> None:
    model = tiny_bert("BertForMaskedLM")
    compress_(model, CompressionConfig(bits=9, exact_ids=(0,)))
    ids = torch.arange(4, 16)[None]
    expected = model(ids).logits.detach()
    unpack_(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert type(head) is TrainableLinear
    assert head.latent is embedding.latent
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-3, atol=1e-4)
    model(ids).logits.square().mean().backward()
    assert int((embedding.log_gains.grad != 0).sum()) > 12  # the head reads every row
    pack_(model)
    assert type(model.get_output_embeddings()) is QuantizedLinear
    assert model.get_output_embeddings().coefficients is model.get_input_embeddings().coefficients
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-3, atol=1e-4)


def test_an_unpacked_table_is_not_saved(tmp_path: Any) -> None:
    model = unpack_(coded())
    with pytest.raises(InputError, match=r"call kflats\.pack_"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_models_without_such_layers_are_refused() -> None:
    with pytest.raises(InputError, match="run compress_ with bits first"):
        unpack_(nn.Sequential(nn.Embedding(9, 2)))
    with pytest.raises(InputError, match="call unpack_ first"):
        pack_(coded())


def test_what_is_not_finite_is_not_packed() -> None:
    model = unpack_(coded())
    with torch.no_grad():
        model[0].bases[0, 0] = float("nan")
    with pytest.raises(InputError, match="bases holds NaN"):
        pack_(model)
    assert type(model[0]) is TrainableEmbedding
