"""Damaged folders of compressed static embedding models are refused, whoever loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import kflats
from kflats import CheckpointError

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer

from tests.hf.static import compressed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A compressed model on disk."""
    compressed().save_pretrained(str(tmp_path / "out"))
    return tmp_path / "out"


def edit_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "kflats.json").read_text())
        change(data)
        (folder / "kflats.json").write_text(json.dumps(data))

    return edit


def edit_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def move_rows(tensors: dict[str, Tensor]) -> None:
    tensors["embedding.kflats_labels"].fill_(1)


def rename(layers: dict[str, Any]) -> None:
    for part in layers.values():
        part["words"] = part.pop("embedding")
    layers["modules"]["words"]["table"] = "words"


def rename_both(folder: Path) -> None:
    edit_json(lambda data: rename(data["layers"]))(folder)
    edit_json(lambda data: data.pop("checksums"))(folder)

    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("embedding.", "words.")] = tensors.pop(name)

    edit_tensors(change)(folder)


def add_tensor(folder: Path) -> None:
    edit_tensors(lambda tensors: tensors.update(more=torch.zeros(2)))(folder)


def add_tensor_to_old(folder: Path) -> None:
    add_tensor(folder)
    edit_json(lambda data: data.pop("checksums"))(folder)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "damaged or cut short"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "no model.safetensors beside|no t",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json beside"),
    "other tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "is no tokenizer: "),
    "no description": (lambda f: (f / "kflats.json").unlink(), r"kflats\.json"),
    "no JSON": (lambda f: (f / "kflats.json").write_text("{"), "not valid JSON"),
    "version": (edit_json(lambda d: d.update(format_version=9)), "format_version=9"),
    "mode": (
        edit_json(lambda d: d["layers"]["modules"]["embedding"].update(mode="cube")),
        "mode='cube'",
    ),
    "no aliases": (edit_json(lambda d: d.pop("aliases")), "aliases"),
    "other name": (rename_both, r"describes the tables \['words'\]"),
    "missing tensor": (
        edit_tensors(lambda t: t.pop("embedding.kflats_bases")),
        r"no tensor 'embedding\.kflats_bases'",
    ),
    "more tensors": (add_tensor, "the tensors that belong to no table .* too many"),
    "more tensors, old": (add_tensor_to_old, "tensor 'more' has shape"),
    "labels": (edit_tensors(move_rows), "labels and description do not belong together"),
    "pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "is a pickle"),
}


@pytest.mark.parametrize("load", [kflats.load, SentenceTransformer], ids=["kflats", "ordinary"])
@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_folders_are_refused(
    folder: Path, damage: Callable[[Path], Any], message: str, load: Callable[[str], Any]
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load(str(folder))


def test_folder_that_is_named_and_missing_is_told(folder: Path) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules[0]["path"] = "nowhere"
    path.write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=r"nowhere has no tokenizer\.json"):
        SentenceTransformer(str(folder))
