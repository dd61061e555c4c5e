from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import kflats
from kflats import CheckpointError, CompressionConfig, InputError, UnsupportedModelError
from kflats.layers import (
    FactorizedEmbedding,
    FactorizedEmbeddingBag,
    QuantizedEmbeddingBag,
    TableBag,
)
from kflats.storage.manifest import Manifest
from kflats.tables import find_tables
from tests.conftest import spectral_table
from tests.layers.dense import (
    FORMS,
    assert_same_gradients,
    dense_table,
    filled,
    mixed_shape,
    wide_copy,
)
from tests.layers.test_export import assert_no_operator_of_ours
from tests.promises import assert_same_model

METHODS: dict[str, dict[str, Any]] = {
    "factors": {"compression": 0.4, "n_clusters": 2},
    "codes": {"method": "codes", "bits": 5.0},
}
IDS = torch.tensor([3, 7, 3, 0, 29, 11, 0, 3, 5, 5])
OFFSETS = torch.tensor([0, 4, 4, 5, 10])  # the second and the last bag are empty


class Static(nn.Module):
    """A bag with a layer behind it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag.from_pretrained(spectral_table(), freeze=False, **options)
        self.out = nn.Linear(24, 3)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        result: Tensor = self.out(self.words(ids, offsets))
        return result


def compressed(method: str = "factors", **options: Any) -> Static:
    model = Static(**options)
    kflats.compress_(model, CompressionConfig(**METHODS[method]))
    return model


def dense_bag(layer: TableBag, table: Tensor) -> nn.EmbeddingBag:
    return nn.EmbeddingBag.from_pretrained(
        table,
        freeze=False,
        mode=layer.mode,
        padding_idx=layer.padding_idx,
        include_last_offset=layer.include_last_offset,
    )


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
@pytest.mark.parametrize("padding_idx", [None, 0, 17, -1])
@pytest.mark.parametrize("shape", FORMS.values(), ids=list(FORMS))
def test_bags_are_those_of_the_dense_table(shape: Any, padding_idx: int | None, mode: str) -> None:
    layer = filled(FactorizedEmbeddingBag(shape, mode=mode, padding_idx=padding_idx)).double()
    dense = dense_bag(layer, dense_table(layer).detach())
    torch.testing.assert_close(layer(IDS, OFFSETS), dense(IDS, OFFSETS))
    torch.testing.assert_close(layer(IDS.view(2, 5)), dense(IDS.view(2, 5)))


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_bags_of_codes_are_those_of_their_rows(mode: str, padding_idx: int | None) -> None:
    layer = compressed("codes", mode=mode, padding_idx=padding_idx).words
    assert isinstance(layer, QuantizedEmbeddingBag)
    dense = dense_bag(layer, layer.dense_rows())
    assert torch.equal(layer(IDS, OFFSETS), dense(IDS, OFFSETS))


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_gradients_are_those_of_the_dense_table(mode: str, padding_idx: int | None) -> None:
    layer = filled(
        FactorizedEmbeddingBag(mixed_shape(affine=True), mode=mode, padding_idx=padding_idx)
    ).double()
    twin = wide_copy(layer)
    ids = torch.arange(60) % 30
    offsets, power = torch.tensor([0, 7, 7, 30]), torch.linspace(-1, 2, 24).view(4, 6).double()
    (layer(ids, offsets) * power).sum().backward()
    dense = nn.functional.embedding_bag(
        ids, dense_table(twin), offsets, mode=mode, padding_idx=padding_idx
    )
    (dense * power).sum().backward()
    assert_same_gradients(layer, twin)


def test_weights_of_samples_and_their_gradient() -> None:
    layer = filled(FactorizedEmbeddingBag(mixed_shape(), mode="sum"))
    dense = dense_bag(layer, layer.dense_rows())
    ours, theirs = (torch.linspace(-1, 1, 10).requires_grad_() for _ in range(2))
    found = layer(IDS, OFFSETS, per_sample_weights=ours)
    expected = dense(IDS, OFFSETS, per_sample_weights=theirs)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_last_offset_may_be_included() -> None:
    layer = filled(FactorizedEmbeddingBag(mixed_shape(), include_last_offset=True))
    found = layer(IDS, OFFSETS)
    assert found.shape == (4, 6)
    torch.testing.assert_close(found, dense_bag(layer, layer.dense_rows())(IDS, OFFSETS))


@pytest.mark.parametrize("method", METHODS)
def test_empty_bags_are_zero(method: str) -> None:
    layer = compressed(method).words
    nothing = torch.tensor([]).long()
    assert torch.equal(layer(nothing, torch.tensor([0, 0])), torch.zeros(2, 24))
    assert layer(nothing, nothing).shape == (0, 24)
    assert not layer(IDS, OFFSETS)[1].any()


def test_small_integers_serve_as_ids() -> None:
    layer = filled(FactorizedEmbeddingBag(mixed_shape()))
    assert torch.equal(layer(IDS.int(), OFFSETS.int()), layer(IDS, OFFSETS))


@pytest.mark.parametrize("bad", [-1, 30])
def test_ids_out_of_range_raise(bad: int) -> None:
    layer = filled(FactorizedEmbeddingBag(mixed_shape()))
    with pytest.raises(IndexError, match="out of range"):
        layer(torch.tensor([[3, bad]]))


def test_compiled_whole_bag_gives_the_same() -> None:
    layer = filled(FactorizedEmbeddingBag(mixed_shape()))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS, OFFSETS), layer(IDS, OFFSETS))


def test_bag_exports_to_plain_operators() -> None:
    layer = filled(FactorizedEmbeddingBag(mixed_shape(affine=True))).eval()
    program = torch.export.export(
        layer, (IDS, OFFSETS), dynamic_shapes=({0: Dim("ids")}, {0: Dim("bags")})
    )
    assert_no_operator_of_ours(program)
    assert "unique" not in program.graph_module.code  # its result depends on the data
    ids, offsets = torch.arange(30), torch.tensor([0, 9, 9])
    torch.testing.assert_close(program.module()(ids, offsets), layer(ids, offsets))


def test_model_with_a_bag_is_found_and_compressed() -> None:
    model = Static(mode="sum", padding_idx=5)
    (table,) = find_tables(model)
    assert (table.name, table.modules) == ("words", (model.words,))
    with pytest.raises(InputError, match=r"'words' is read by an nn\.EmbeddingBag only"):
        table.embedding  # noqa: B018
    exact = model.words.weight.detach()[[2, 9]].clone()
    config = CompressionConfig(compression=0.4, n_clusters=2, exact_ids=(9, 2))
    report = kflats.compress_(model.eval(), config)
    layer: Any = model.words
    assert type(layer) is FactorizedEmbeddingBag
    assert (layer.mode, layer.padding_idx, layer.training) == ("sum", 5, False)
    assert torch.equal(layer(torch.tensor([[2], [9]])), exact)
    assert report.tables[0].readers == ("words",)


def test_embedding_and_bag_share_one_table() -> None:
    model = nn.ModuleDict({"one": nn.Embedding(400, 24), "bag": nn.EmbeddingBag(400, 24)})
    model["bag"].weight = model["one"].weight
    kflats.compress_(model, CompressionConfig(compression=0.4, n_clusters=2))
    one: Any = model["one"]
    bag: Any = model["bag"]
    assert type(one) is FactorizedEmbedding
    assert bag.coefficients is one.coefficients
    assert {each.table for each in Manifest.of(model).modules.values()} == {"one"}
    kflats.to_dense_(model)
    assert model["bag"].weight is model["one"].weight


@pytest.mark.parametrize(
    ("options", "name"),
    [({"max_norm": 1.0}, "max_norm"), ({"sparse": True}, "sparse")],
)
def test_options_that_factors_cannot_keep_are_refused(options: dict[str, Any], name: str) -> None:
    model = Static(**options)
    with pytest.raises(InputError, match=f"has {name}="):
        kflats.compress_(model, CompressionConfig(rank=4, n_clusters=2))
    assert type(model.words) is nn.EmbeddingBag


def test_bag_that_does_something_else_is_refused() -> None:
    class Halved(nn.EmbeddingBag):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().forward(*args, **kwargs) / 2

    model = nn.Sequential(Halved(400, 24))
    with pytest.raises(UnsupportedModelError, match=r"Halved does more than nn\.EmbeddingBag"):
        kflats.compress_(model, CompressionConfig(rank=4, n_clusters=2))


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="mode='median' must be one of"):
        FactorizedEmbeddingBag(mixed_shape(), mode="median")


@pytest.mark.parametrize("method", METHODS)
def test_dense_form_gives_the_same_bags(method: str) -> None:
    model = compressed(method, mode="sum", padding_idx=3, include_last_offset=True)
    expected = model(IDS, OFFSETS)
    assert len(expected) == 4  # one less than offsets
    kflats.to_dense_(model)
    assert type(model.words) is nn.EmbeddingBag
    assert (model.words.mode, model.words.padding_idx) == ("sum", 3)
    torch.testing.assert_close(model(IDS, OFFSETS), expected)


@pytest.mark.parametrize("method", METHODS)
def test_plain_module_round_trips(method: str, tmp_path: Path) -> None:
    options = {"mode": "sum", "padding_idx": 3, "include_last_offset": True}
    model = compressed(method, **options)
    kflats.save(model, tmp_path / "out")
    loaded = kflats.load(tmp_path / "out", model=Static().to("meta"))
    assert_same_model(loaded, model, lambda each: each(IDS, OFFSETS))
    assert type(loaded.words) is type(model.words)


def test_bag_does_not_load_where_an_embedding_stands(tmp_path: Path) -> None:
    kflats.save(nn.Sequential(compressed().words), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"has no nn\.EmbeddingBag there"):
        kflats.load(tmp_path / "out", model=nn.Sequential(nn.Embedding(400, 24)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "median"}, "mode='median' and"),
        ({"mode": None}, "mode=None must be texts"),
        ({"include_last_offset": 1}, "include_last_offset=1 of a bag"),
        ({"colour": 1}, "has the fields .*mode.*colour"),
        ({"kind": "embedding"}, "has the fields"),
    ],
)
def test_damaged_descriptions_of_bags_are_refused(change: dict[str, Any], message: str) -> None:
    data = Manifest.of(compressed()).to_dict()
    assert Manifest.from_dict(data).modules["words"].mode == "mean"
    data["modules"]["words"] |= change
    with pytest.raises(InputError, match=message):
        Manifest.from_dict(data)


def test_calibration_refuses_bags() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'words' is read by an nn\.EmbeddingBag"):
        kflats.feature_moments(Static(), None, ["a text"])
