"""Folders that must not load, and the files beside a checkpoint that do no harm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kflats
from kflats import CheckpointError
from tests.hf.models import compressed_bert, edit_config, edit_tensors, logits
from tests.promises import assert_same_model

TABLE = "bert.embeddings.word_embeddings"
LOADERS: dict[str, Callable[[Path], Any]] = {
    "transformers": transformers.AutoModelForMaskedLM.from_pretrained,
    "kflats": kflats.load,
}
loaders = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "bert"
    compressed_bert().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "bert")


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.pop(f"{TABLE}.{name}"))


def halve(name: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensor = tensors[f"{TABLE}.{name}"]
        tensors[f"{TABLE}.{name}"] = tensor[: len(tensor) // 2].clone()

    return lambda folder: edit_tensors(folder, change)


def describe(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, lambda block: block.update(changes))


def describe_table(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(
        folder, lambda block: block["layers"]["tables"][TABLE].update(changes)
    )


def forget_version(folder: Path) -> None:
    edit_config(folder, lambda block: block.pop("format_version"))


def whole_numbers(folder: Path) -> None:
    name = f"{TABLE}.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].int()}))


def relabel(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[f"{TABLE}.kflats_labels"][:5].fill_(1))


def label_too_large(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[f"{TABLE}.kflats_labels"][7:8].fill_(200))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no safetensors at all")


def pickle_beside(folder: Path) -> None:
    torch.save({}, folder / "extra.pt")


def pickle_below(folder: Path) -> None:
    (folder / "old" / "run").mkdir(parents=True)
    torch.save({}, folder / "old" / "run" / "head.PKL")


def only_pickled(folder: Path) -> None:
    model = LOADERS["transformers"](folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer": (
        describe(format_version=5),
        r"config\.json has format_version=5; this kflats reads 4",
    ),
    "no version": (forget_version, r"config\.json.*format_version"),
    "field": (describe(colour="blue"), r"config\.json.*colour"),
    "table field": (describe_table(colour="blue"), r"config\.json.*colour"),
    "storage": (
        describe_table(storage={"coefficients": "int8", "bases": "float"}),
        r"config\.json.*int8",
    ),
    "no weight": (drop("weight"), rf"no tensor '{TABLE}\.weight'"),
    "no bases": (drop("kflats_bases"), rf"no tensor '{TABLE}\.kflats_bases'"),
    "no labels": (drop("kflats_labels"), rf"no tensor '{TABLE}\.kflats_labels'"),
    "short weight": (
        halve("weight"),
        rf"tensor '{TABLE}\.weight' has shape \(\d+,\), config.json announces",
    ),
    "short bases": (halve("kflats_bases"), rf"tensor '{TABLE}\.kflats_bases' has shape \(\d+,\)"),
    "short labels": (
        halve("kflats_labels"),
        rf"tensor '{TABLE}\.kflats_labels' has shape \(100,\)",
    ),
    "integers": (whole_numbers, rf"{TABLE}\.weight"),
    "other labels": (relabel, TABLE),
    "label too large": (label_too_large, TABLE),
    "cut": (cut, r"model\.safetensors is damaged or cut short"),
    "garbled": (garble, r"model\.safetensors is damaged or cut short"),
    "pickle": (pickle_beside, r"extra\.pt is a pickle"),
    "nested pickle": (pickle_below, r"old.run.head\.PKL is a pickle"),
    "pickled weights": (only_pickled, r"pytorch_model\.bin is a pickle"),
}


@loaders
@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_by_name(
    load: Callable[[Path], Any], damage: Callable[[Path], None], message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@loaders
def test_missing_shard_is_refused(load: Callable[[Path], Any], folder: Path) -> None:
    model = load(folder)
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="10KB")
    assert_same_model(load(folder), model, logits)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{shards[1].name} is damaged or cut short"):
        load(folder)


@loaders
def test_files_of_trainer_are_let_be(load: Callable[[Path], Any], folder: Path) -> None:
    before = load(folder)
    (folder / "checkpoint-5").mkdir()
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"never opened")
        (folder / "checkpoint-5" / name).write_bytes(b"never opened")
    assert_same_model(load(folder), before, logits)
