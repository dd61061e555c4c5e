from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kflats
from kflats import CheckpointError, FactorizedEmbedding
from kflats.layers import replace_module
from tests.conftest import tiny_bert
from tests.layers.dense import filled
from tests.storage.test_folder import ECHELON, saved_bert

NAME = "embeddings.word_embeddings"


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def edit_tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def drop_tensor(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{NAME}.kflats_bases"]


def cut_labels(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.kflats_labels"] = tensors[f"{NAME}.kflats_labels"][:7].clone()


def move_rows(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.kflats_labels"].fill_(1)


def add_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def edit_table(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return edit_config(lambda c: change(c["layers"]["tables"][NAME]))


def edit_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config["quantization_config"])
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_module(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return edit_config(lambda c: change(c["layers"]["modules"][NAME]))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, r"model\.safetensors is damaged or cut short"),
    "missing": (
        edit_tensors(drop_tensor),
        r"no tensor 'embeddings\.word_embeddings\.kflats_bases'",
    ),
    "wrong shape": (edit_tensors(cut_labels), r"word_embeddings\.kflats_labels' has shape \(7,\)"),
    "other labels": (edit_tensors(move_rows), "labels and description do not belong together"),
    "newer version": (
        edit_config(lambda c: c.update(format_version=5)),
        "format_version=5; this kflats reads 4",
    ),
    "older version": (
        edit_config(lambda c: c.update(format_version=3)),
        "format_version=3; this kflats",
    ),
    "no version": (
        edit_config(lambda c: c.pop("format_version")),
        "format_version=None; this kflats",
    ),
    "not ours": (edit_config(lambda c: c.pop("quant_method")), "describes no factorised layer"),
    "no JSON": (not_json, r"config\.json is not valid JSON"),
    "pickle": (add_pickle, r"pytorch_model\.bin is a pickle"),
    "unknown storage": (
        edit_table(lambda t: t["storage"].update(bases="int8")),
        "storage is .*int8",
    ),
    "affine without means": (
        edit_table(lambda t: t["shape"].update(affine=not t["shape"]["affine"])),
        "storage is .*this kflats reads",
    ),
    "wrong sums": (edit_table(lambda t: t["shape"]["counts"].append(1)), "have 4, 3 and 3 entries"),
    "no origin": (edit_table(lambda t: t.update(origin=None)), "origin must be an object"),
    "no shape": (edit_table(lambda t: t.pop("shape")), "a factorised table has the fields"),
    "echelon or not": (
        edit_table(lambda t: t["shape"].update(echelon=not t["shape"]["echelon"])),
        "storage is .*this kflats reads",
    ),
    "no echelon": (edit_table(lambda t: t["shape"].pop("echelon")), "a factor shape has the"),
    "kind": (
        edit_module(lambda m: m.update(kind="cube")),
        "kind='cube' must be 'embedding', 'linear' or 'bag'",
    ),
    "scale": (edit_module(lambda m: m.update(scale="2")), "scale='2' must be a number"),
    "padding": (
        edit_module(lambda m: m.update(padding_idx=1.5)),
        "padding_idx=1.5 must be a whole number",
    ),
    "more fields": (edit_module(lambda m: m.update(colour=1)), "has the fields .*colour"),
    "no reader": (
        edit_config(lambda c: c["layers"].update(modules={})),
        "is not read by the module of its name",
    ),
    "no table": (
        edit_config(lambda c: c["layers"].update(tables={})),
        "reads the table .* which is not described",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_folders_name_what_is_wrong(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    saved_bert(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        kflats.load(tmp_path / "out")


def echelon_folder(folder: Path, plain: bool) -> str:
    """Save a table in echelon form and return its name."""
    layer = filled(FactorizedEmbedding(ECHELON))
    if plain:
        kflats.save(nn.Sequential(layer), folder)
        return "0"
    model = tiny_bert()
    replace_module(model, NAME, layer)
    kflats.save(model, folder)
    return NAME


def clear(pivots: Tensor) -> Tensor:
    pivots[1, 0] = 0
    return pivots


PIVOTS: dict[str, tuple[Callable[[Tensor], Tensor | None], str]] = {
    "missing": (lambda _: None, r"no tensor '{name}\.kflats_pivots'"),
    "wrong shape": (lambda p: p[:2].clone(), r"tensor '{name}\.kflats_pivots' has shape \(2, 2\)"),
    "wrong dtype": (lambda p: p.to(torch.int16), r"'{name}\.kflats_pivots' has dtype I16; U8"),
    "wrong bits": (clear, r"{name}.* \(kflats_pivots\) mark \d columns of basis 1, .* rank 5"),
}


@pytest.mark.parametrize("plain", [False, True], ids=["transformers", "plain"])
@pytest.mark.parametrize(("damage", "message"), PIVOTS.values(), ids=list(PIVOTS))
def test_damaged_pivots_are_named(
    tmp_path: Path, damage: Callable[[Tensor], Tensor | None], message: str, plain: bool
) -> None:
    name = echelon_folder(tmp_path / "out", plain)

    def change(tensors: dict[str, Tensor]) -> None:
        damaged = damage(tensors.pop(f"{name}.kflats_pivots"))
        if damaged is not None:
            tensors[f"{name}.kflats_pivots"] = damaged

    edit_tensors(change)(tmp_path / "out")
    model = nn.Sequential(nn.Embedding(200, 16)) if plain else None
    with pytest.raises(CheckpointError, match=message.format(name=name.replace(".", r"\."))):
        kflats.load(tmp_path / "out", model=model)


def test_unknown_field_is_refused(tmp_path: Path) -> None:
    saved_bert(tmp_path / "out")
    edit_config(lambda c: c.update(colour="blue"))(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"config.json: .*got .*colour"):
        kflats.load(tmp_path / "out")


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    saved_bert(tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(path.read_text().replace('"BertModel"', '"BertoldModel"'))
    with pytest.raises(CheckpointError, match="architecture 'BertoldModel'"):
        kflats.load(tmp_path / "out")


@pytest.mark.parametrize(
    "damage",
    [
        edit_config(lambda c: c["layers"].update(tables=[])),
        edit_config(lambda c: c["layers"].update(modules=[])),
        edit_module(lambda m: m.update(padding_idx=200)),
    ],
    ids=["tables", "modules", "padding outside of the table"],
)
def test_values_of_a_wrong_kind_name_the_file(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    saved_bert(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        kflats.load(tmp_path / "out")
