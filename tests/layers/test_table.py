from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from kflats import FactorizedEmbedding, FactorizedLinear, FactorShape, InputError
from kflats.layers import FactorTable
from kflats.layers.table import FILE_NAMES
from tests.layers.dense import dense_table, filled, mixed_shape

SHAPES = {
    "svd": FactorShape.uniform(30, 6, n_clusters=1, rank=2),
    "linear": FactorShape.uniform(30, 6, n_clusters=3, rank=2),
    "affine with exact rows": FactorShape.uniform(
        30, 6, n_clusters=3, rank=2, affine=True, n_exact=4
    ),
    "mixed": mixed_shape(affine=True),
}
HIDDEN = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(30)

both_layers = pytest.mark.parametrize("layer_class", [FactorizedEmbedding, FactorizedLinear])
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


class Tied(nn.Module):
    """An embedding and a head on one table, in either order."""

    def __init__(self, shape: FactorShape, head_first: bool = False) -> None:
        super().__init__()
        embedding, head = FactorizedEmbedding(shape), FactorizedLinear(shape)
        parts = {"head": head, "words": embedding} if head_first else {"words": embedding}
        for name, part in parts.items():
            self.add_module(name, part)
        self.words = embedding
        self.head = head
        head.share_with(embedding)


@both_layers
@every_shape
def test_stores_what_the_shape_says(layer_class: type[FactorTable], shape: FactorShape) -> None:
    layer = layer_class(shape, dtype=torch.float16)
    assert sum(p.numel() for p in layer.parameters()) == shape.num_parameters
    stored = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert stored == layer.num_bytes == shape.num_bytes(torch.float16)


@both_layers
@every_shape
def test_dense_rows_are_the_table(layer_class: type[FactorTable], shape: FactorShape) -> None:
    layer = filled(layer_class(shape))
    table = layer.dense_rows()
    assert not table.requires_grad
    torch.testing.assert_close(table, dense_table(layer).detach())


@both_layers
@every_shape
def test_state_dict_round_trip_without_pickle(
    layer_class: type[FactorTable], shape: FactorShape
) -> None:
    layer, fresh = filled(layer_class(shape)), layer_class(shape)
    fresh.load_state_dict(load(save(layer.state_dict())))
    assert torch.equal(fresh.rows(IDS), layer.rows(IDS))
    assert torch.equal(fresh.product(HIDDEN), layer.product(HIDDEN))


def test_state_dict_of_a_file_is_understood() -> None:
    layer, fresh = (filled(FactorizedEmbedding(SHAPES["linear"]), seed) for seed in (0, 1))
    state = {FILE_NAMES.get(key, key): tensor for key, tensor in layer.state_dict().items()}
    assert "weight" in state
    fresh.load_state_dict(state)
    assert torch.equal(fresh(IDS), layer(IDS))
    assert "weight" in state


@both_layers
@every_shape
def test_deepcopy_is_equal_and_independent(
    layer_class: type[FactorTable], shape: FactorShape
) -> None:
    layer = filled(layer_class(shape))
    before, twin = layer.rows(IDS), copy.deepcopy(layer)
    assert torch.equal(twin.rows(IDS), before)
    twin.coefficients.data.zero_()
    assert torch.equal(layer.rows(IDS), before)


def test_group_coefficients_are_views() -> None:
    layer = filled(FactorizedEmbedding(mixed_shape()))
    assert layer.labels is not None
    sizes = [tuple(layer.group_coefficients(group).shape) for group in range(4)]
    assert sizes == [(9, 4), (8, 2), (7, 3), (6, 6)]
    layer.group_coefficients(3).data[0] = 7.0
    first = int((layer.labels == 3).nonzero()[0])
    assert layer(torch.tensor(first)).tolist() == [7.0] * 6


def test_sharing_layers_have_one_set_of_factors() -> None:
    model = Tied(SHAPES["linear"])
    filled(model.words)
    model.head.index_()
    names = {name for name, _ in model.named_parameters()}
    assert names == {"words.coefficients", "words.bases"}
    torch.testing.assert_close(model.head(HIDDEN), HIDDEN @ model.words.dense_rows().T)
    assert "labels" not in model.head.state_dict()


def test_former_reader_owns_the_table_after_own() -> None:
    model = Tied(SHAPES["linear"])
    model.head.own_()
    assert not model.head.is_shared
    assert "labels" in model.head.state_dict()


def test_deepcopy_keeps_factors_shared() -> None:
    model = copy.deepcopy(Tied(SHAPES["affine with exact rows"]))
    assert model.head.coefficients is model.words.coefficients
    assert model.head.means is model.words.means
    assert model.head.labels is model.words.labels


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("head_first", [False, True], ids=["embedding first", "head first"])
def test_loading_a_state_dict_fills_all_readers(head_first: bool, assign: bool) -> None:
    model, fresh = Tied(SHAPES["linear"]), Tied(SHAPES["linear"], head_first)
    filled(model.words)
    fresh.load_state_dict(model.state_dict(), assign=assign)
    table = model.words.dense_rows()
    assert torch.equal(fresh.words(IDS), table)
    torch.testing.assert_close(fresh.head(HIDDEN), HIDDEN @ table.T)


def test_other_shapes_are_not_shared() -> None:
    layer = FactorizedEmbedding(SHAPES["linear"])
    with pytest.raises(InputError, match="cannot share the factors of"):
        layer.share_with(FactorizedEmbedding(SHAPES["mixed"]))


@pytest.mark.parametrize("label", [0, 200])
def test_labels_that_do_not_fit_the_shape_are_refused(label: int) -> None:
    layer = FactorizedEmbedding(SHAPES["linear"])
    wrong = layer.state_dict()
    wrong["labels"] = torch.full((30,), label, dtype=torch.uint8)
    with pytest.raises(InputError, match="labels and description do not belong together"):
        layer.load_state_dict(wrong)


@every_shape
def test_meta_layers_have_sizes_and_no_storage(shape: FactorShape) -> None:
    layer = FactorizedEmbedding(shape, device="meta")
    assert layer(torch.zeros(2, 3, dtype=torch.int64, device="meta")).shape == (2, 3, 6)
    real = filled(FactorizedEmbedding(shape))
    layer.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(layer(IDS), real(IDS))


def test_meta_heads_have_sizes() -> None:
    layer = FactorizedLinear(SHAPES["linear"], bias=True, device="meta")
    assert layer(HIDDEN.to("meta")).shape == (5, 30)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ("svd", "30, 6, n_clusters=1, rank=2, bias=False"),
        ("affine with exact rows", "30, 6, n_clusters=3, rank=2, affine, n_exact=4, bias=False"),
        ("mixed", "30, 6, n_clusters=2, rank=3..4, affine, n_exact=6, bias=False"),
    ],
)
def test_print_shows_the_sizes(shape: str, text: str) -> None:
    assert repr(FactorizedLinear(SHAPES[shape])) == f"FactorizedLinear({text})"
