from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

import kflats
from kflats import CheckpointError, CompressionConfig
from kflats.models import is_compressed, open_model
from kflats.storage.check import model_folders, read_manifest
from kflats.storage.info import folder_info
from tests.conftest import tiny_bert


def _save(folder: Path, model: nn.Module | None = None) -> None:
    model = model or nn.Sequential(nn.Embedding(300, 16), nn.Linear(16, 2))
    kflats.compress_(model, CompressionConfig(compression=0.4, n_clusters=2))
    kflats.save(model, folder)


def _plain(folder: Path) -> None:
    kflats.load(folder, model=nn.Sequential(nn.Embedding(300, 16), nn.Linear(16, 2)))


@pytest.mark.parametrize("ask", [folder_info, read_manifest, kflats.load, open_model])
def test_parent_of_models_names_them(ask: object, tmp_path: Path) -> None:
    _save(tmp_path / "b")
    _save(tmp_path / "a")
    (tmp_path / "other").mkdir()
    assert callable(ask)
    with pytest.raises(CheckpointError) as caught:
        ask(str(tmp_path) if ask == open_model else tmp_path)
    meant = f"did you mean {tmp_path / 'a'} or {tmp_path / 'b'}?"
    assert str(caught.value).endswith(f": it is no model; {meant}")
    assert not is_compressed(tmp_path)
    _plain(tmp_path / "a")


def test_parent_of_many_models_names_five(tmp_path: Path) -> None:
    _save(tmp_path / "0")
    for number in range(1, 7):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "kflats.json").write_bytes(
            (tmp_path / "0" / "kflats.json").read_bytes()
        )
    with pytest.raises(CheckpointError, match=r"4, or one of 2 others\?$"):
        folder_info(tmp_path)


@pytest.mark.parametrize("broken", [False, True])
def test_parent_of_other_folders_names_none(broken: bool, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    if broken:
        (tmp_path / "other" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"load it with the library that wrote it\.$"):
        folder_info(tmp_path)
    with pytest.raises(CheckpointError, match=r": no model\.$"):
        open_model(str(tmp_path))


def test_dense_model_beside_a_compressed_one_is_dense(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    _save(tmp_path / "small", tiny_bert())
    assert not is_compressed(tmp_path)
    assert is_compressed(tmp_path / "small")
    assert type(open_model(str(tmp_path))).__name__ == "BertModel"


def test_folders_that_modules_json_names_belong_to_the_model(tmp_path: Path) -> None:
    inner = tmp_path / "model" / "0_Transformer"
    _save(inner, tiny_bert())
    _save(tmp_path / "outside")
    listed = tmp_path / "model" / "modules.json"
    listed.write_text(json.dumps([{"path": "0_Transformer"}, {"path": "../outside"}, {}, 3]))
    assert model_folders(tmp_path / "model") == [tmp_path / "model", inner]
    assert read_manifest(tmp_path / "model")[1] == inner / "config.json"
    assert is_compressed(tmp_path / "model")
    listed.write_text(json.dumps([{"path": "../outside"}]))
    assert not is_compressed(tmp_path / "model")
