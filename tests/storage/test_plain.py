from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kflats
from kflats import (
    CheckpointError,
    CompressionConfig,
    FactorizedEmbedding,
    FactorizedLinear,
    FactorShape,
    InputError,
)
from kflats.layers.resize import resize_
from tests.layers.dense import FORMS, filled, mixed_shape
from tests.promises import assert_same_model, assert_same_outputs, assert_same_tensors
from tests.storage.test_folder import CONFIG, plain_model, tensor_bytes
from tests.test_tables import TwoTables

SHAPES = {"groups on one basis": mixed_shape(affine=True), **FORMS}


def test_plain_module_round_trip_on_meta_never_holds_the_table(tmp_path: Path) -> None:
    model = plain_model()
    report = kflats.compress_(model, CONFIG)
    kflats.save(model, tmp_path / "out")
    with torch.device("meta"):
        skeleton = nn.Sequential(nn.Embedding(400, 24), nn.Linear(24, 3))
    loaded = kflats.load(tmp_path / "out", model=skeleton)
    ids = torch.arange(400)
    assert_same_model(loaded, model, lambda each: each(ids))
    assert loaded[0].padding_idx == 2
    assert tensor_bytes(tmp_path / "out" / "model.safetensors") == report.model_bytes_after


def test_plain_module_with_shared_table_round_trip(tmp_path: Path) -> None:
    model = TwoTables()
    model.places = nn.Embedding(50, 8)
    model.places.weight = model.words.weight
    kflats.compress_(model, CompressionConfig(rank=3, n_clusters=2, modules=("words",)))
    kflats.save(model, tmp_path / "out")
    fresh = TwoTables()
    fresh.places = nn.Embedding(50, 8)
    loaded = kflats.load(tmp_path / "out", model=fresh)
    assert loaded.places.coefficients is loaded.words.coefficients
    assert_same_tensors(loaded.words, model.words)
    assert_same_outputs(loaded.places(torch.arange(50)), model.words(torch.arange(50)))


class Tied(nn.Module):
    """A head with a bias that reads the table of the words, made before them or after."""

    def __init__(self, head_first: bool = False) -> None:
        super().__init__()
        names = ["head", "words"] if head_first else ["words", "head"]
        for name in names:
            self.add_module(name, nn.Linear(24, 400) if name == "head" else nn.Embedding(400, 24))
        self.get_submodule("head").weight = self.get_parameter("words.weight")

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.get_submodule("head")(self.get_submodule("words")(ids))
        return logits


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("head_first", [False, True], ids=["embedding first", "head first"])
def test_plain_module_with_tied_head_round_trip(
    tmp_path: Path, head_first: bool, device: str
) -> None:
    model = Tied(head_first)
    report = kflats.compress_(model, CONFIG)
    kflats.save(model, tmp_path / "out")
    with torch.device(device):
        fresh = Tied(head_first)
    loaded = kflats.load(tmp_path / "out", model=fresh)
    assert_same_model(loaded, model, lambda each: each(torch.arange(400)))
    assert type(loaded.head) is FactorizedLinear
    assert loaded.head.coefficients is loaded.words.coefficients
    assert report.tables[0].readers == ("words", "head")
    assert tensor_bytes(tmp_path / "out" / "model.safetensors") == report.model_bytes_after


def test_resized_module_round_trip(tmp_path: Path) -> None:
    model = plain_model()
    kflats.compress_(model, CompressionConfig(compression=0.4, n_clusters=2))
    layer = model[0]
    assert isinstance(layer, FactorizedEmbedding)
    resize_([layer], 403, torch.ones(3, 24))
    kflats.save(model, tmp_path / "out")
    fresh = nn.Sequential(nn.Embedding(403, 24), nn.Linear(24, 3))
    loaded = kflats.load(tmp_path / "out", model=fresh)
    assert_same_model(loaded, model, lambda each: each(torch.arange(403)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_every_form_round_trips_with_the_bytes_of_its_shape(
    tmp_path: Path, shape: FactorShape
) -> None:
    layer = filled(FactorizedEmbedding(shape, padding_idx=2))
    kflats.save(nn.Sequential(layer), tmp_path / "out")
    loaded = kflats.load(tmp_path / "out", model=nn.Sequential(nn.Embedding(30, 6)))
    assert loaded[0].shape == layer.shape
    assert_same_model(loaded[0], layer, FactorizedEmbedding.dense_rows)
    saved = tensor_bytes(tmp_path / "out" / "model.safetensors")
    assert saved == shape.num_bytes(torch.float32)


def test_other_plain_model_is_refused_and_unchanged(tmp_path: Path) -> None:
    model = plain_model()
    kflats.compress_(model, CONFIG)
    kflats.save(model, tmp_path / "out")
    with pytest.raises(InputError, match="pass model="):
        kflats.load(tmp_path / "out")
    other = nn.Sequential(nn.Embedding(400, 24), nn.Linear(24, 4))
    with pytest.raises(CheckpointError, match=r"tensor '1\.bias' has shape \(3,\).*\(4,\)"):
        kflats.load(tmp_path / "out", model=other)
    assert type(other[0]) is nn.Embedding
    with pytest.raises(CheckpointError, match=r"factorised table '0' of shape \(400, 24\)"):
        kflats.load(tmp_path / "out", model=nn.Sequential(nn.Embedding(9, 4), nn.Linear(24, 3)))
