"""Tables in packed codes on disk: the same model, the bytes that were told, named damage."""

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
from kflats import CheckpointError, CompressionConfig, InputError
from kflats.layers import QuantizedEmbedding, QuantizedLinear
from kflats.storage.check import check_folder
from tests.conftest import spectral_table
from tests.promises import assert_same_model
from tests.storage.test_plain import Tied

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"options": {"rotated": False}},
    "rotated": {"n_clusters": 1, "exact_ids": (0, 3)},
    "two bases": {"n_clusters": 2, "options": {"basis_bits": 16}},
    "one group": {"n_clusters": 1, "options": {"max_rungs": 1}},
}
forms = pytest.mark.parametrize("form", FORMS)


def dense(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    table = nn.Embedding.from_pretrained(spectral_table().to(dtype), padding_idx=2)
    return nn.Sequential(table, nn.Linear(24, 3, dtype=dtype))


def compressed(form: str = "rotated", dtype: torch.dtype = torch.float32) -> Any:
    model = dense(dtype)
    report = kflats.compress_(model, CompressionConfig(bits=7, **FORMS[form]))
    return model, report


def table_bytes(folder: Path, name: str = "0") -> int:
    tensors = load_file(folder / "model.safetensors")
    return sum(
        tensor.nbytes
        for key, tensor in tensors.items()
        if key.startswith(f"{name}.") and not key.endswith(".bias")
    )


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_module_round_trip_is_the_same_model(
    tmp_path: Path, form: str, dtype: torch.dtype
) -> None:
    model, report = compressed(form, dtype)
    kflats.save(model, tmp_path / "out", report=report)
    loaded = kflats.load(tmp_path / "out", model=dense(dtype))
    assert type(loaded[0]) is QuantizedEmbedding
    assert_same_model(loaded, model, lambda each: each(torch.arange(400)))
    assert loaded[0].shape == model[0].shape
    assert loaded[0].origin == model[0].origin
    assert loaded[0].padding_idx == 2
    assert not any(parameter.requires_grad for parameter in loaded[0].parameters())
    assert all(parameter.requires_grad for parameter in loaded[1].parameters())


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_file_has_the_bytes_of_the_report(
    tmp_path: Path, form: str, dtype: torch.dtype
) -> None:
    model, report = compressed(form, dtype)
    kflats.save(model, tmp_path / "out", report=report)
    (table,) = report.tables
    assert table_bytes(tmp_path / "out") == table.bytes_after == model[0].num_bytes
    assert table.bytes_after <= 7 * 400 * 24 / 8
    assert table.method == "codes"
    total = sum(t.nbytes for t in load_file(tmp_path / "out" / "model.safetensors").values())
    assert total == report.model_bytes_after


def test_module_on_meta_is_filled(tmp_path: Path) -> None:
    model, _ = compressed()
    kflats.save(model, tmp_path / "out")
    skeleton = dense().to("meta")
    loaded = kflats.load(tmp_path / "out", model=skeleton)
    assert_same_model(loaded, model, lambda each: each(torch.arange(400)))


@pytest.mark.parametrize("head_first", [False, True], ids=["embedding first", "head first"])
def test_tied_head_shares_the_table_on_disk_and_after(tmp_path: Path, head_first: bool) -> None:
    model = Tied(head_first)
    report = kflats.compress_(model, CompressionConfig(bits=7))
    kflats.save(model, tmp_path / "out")
    loaded = kflats.load(tmp_path / "out", model=Tied(head_first))
    assert_same_model(loaded, model, lambda each: each(torch.arange(400)))
    assert type(loaded.head) is QuantizedLinear
    assert loaded.head.coefficients is loaded.words.coefficients
    assert report.tables[0].readers == ("words", "head")
    assert table_bytes(tmp_path / "out", "words") == report.tables[0].bytes_after
    assert table_bytes(tmp_path / "out", "head") == 0


@forms
def test_second_generation_has_the_same_bytes(tmp_path: Path, form: str) -> None:
    model, _ = compressed(form)
    kflats.save(model, tmp_path / "one")
    kflats.save(kflats.load(tmp_path / "one", model=dense()), tmp_path / "two")
    for name in ("model.safetensors", "kflats.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_dense_form_has_the_same_output() -> None:
    model, _ = compressed()
    expected = model(torch.arange(400))
    assert type(kflats.to_dense_(model)[0]) is nn.Embedding
    torch.testing.assert_close(model(torch.arange(400)), expected)


def test_codes_do_not_train() -> None:
    model, _ = compressed()
    with pytest.raises(InputError, match=r"'0' holds packed codes, which do not train: call"):
        kflats.set_trainable(model, ["bases"])
    model(torch.arange(9)).sum().backward()
    assert model[1].weight.grad is not None


def edit_tensor(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        changed = change(tensors.pop(f"0.{name}"))
        if changed is not None:
            tensors[f"0.{name}"] = changed
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "kflats.json").read_text())
        change(manifest)
        (folder / "kflats.json").write_text(json.dumps(manifest))

    return edit


def edit_table(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return edit_manifest(lambda manifest: change(manifest["layers"]["tables"]["0"]))


def edit_shape(**changes: Any) -> Callable[[Path], None]:
    return edit_table(lambda table: table["shape"].update(changes))


def relabel(labels: Tensor) -> Tensor:
    labels[labels == 1] = 2
    return labels


def as_factors(table: dict[str, Any]) -> None:
    table["storage"] = {"coefficients": "float", "bases": "float"}


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer version": (
        edit_manifest(lambda manifest: manifest.update(format_version=5)),
        "format_version=5; this kflats reads 4",
    ),
    "older version": (
        edit_manifest(lambda manifest: manifest.update(format_version=3)),
        "format_version=3; this kflats reads 4",
    ),
    "no codes": (edit_tensor("weight", lambda _: None), r"no tensor '0\.weight'"),
    "no bases": (edit_tensor("kflats_bases", lambda _: None), r"no tensor '0\.kflats_bases'"),
    "no scales": (edit_tensor("kflats_scales", lambda _: None), r"no tensor '0\.kflats_scales'"),
    "no books": (edit_tensor("kflats_books", lambda _: None), r"no tensor '0\.kflats_books'"),
    "no labels": (edit_tensor("kflats_labels", lambda _: None), r"no tensor '0\.kflats_labels'"),
    "no exact rows": (edit_tensor("kflats_exact", lambda _: None), r"no tensor '0\.kflats_exact'"),
    "codes as floats": (
        edit_tensor("weight", Tensor.float),
        r"tensor '0\.weight' has dtype F32; U8 \(bytes\) is needed",
    ),
    "codes as signed bytes": (
        edit_tensor("weight", lambda codes: codes.view(torch.int8)),
        r"tensor '0\.weight' has dtype I8; U8 \(bytes\) is needed",
    ),
    "bases as floats": (
        edit_tensor("kflats_bases", Tensor.float),
        r"tensor '0\.kflats_bases' has dtype F32; I8 is needed",
    ),
    "wide bases": (
        edit_tensor("kflats_bases", Tensor.short),
        r"tensor '0\.kflats_bases' has dtype I16; I8 is needed",
    ),
    "scales as whole numbers": (
        edit_tensor("kflats_scales", Tensor.int),
        r"tensor '0\.kflats_scales' has dtype I32; floating point \(F32, .*\) is needed",
    ),
    "labels as floats": (
        edit_tensor("kflats_labels", Tensor.float),
        r"tensor '0\.kflats_labels' has dtype F32; U8 \(bytes\) is needed",
    ),
    "short codes": (
        edit_tensor("weight", lambda codes: codes[:-1].clone()),
        r"tensor '0\.weight' has shape \(\d+,\), kflats\.json announces \(\d+,\)",
    ),
    "codes as a matrix": (
        edit_tensor("weight", lambda codes: codes[None].clone()),
        r"tensor '0\.weight' has shape \(1, \d+\)",
    ),
    "short labels": (
        edit_tensor("kflats_labels", lambda labels: labels[:7].clone()),
        r"tensor '0\.kflats_labels' has shape \(7,\)",
    ),
    "other labels": (
        edit_tensor("kflats_labels", relabel),
        r"model\.safetensors: 0\.kflats_labels is damaged: the labels .*do not belong together",
    ),
    "label too large": (
        edit_tensor("kflats_labels", lambda labels: labels.clamp_min(200)),
        r"model\.safetensors: 0\.kflats_labels is damaged: the labels .*do not belong together",
    ),
    "other storage": (
        edit_table(lambda table: table["storage"].update(bases="int16")),
        r"kflats\.json: storage is .*int16.*this kflats reads .*int8",
    ),
    "other basis bits": (edit_shape(basis_bits=16), r"kflats\.json: storage is .*int16"),
    "unknown basis bits": (edit_shape(basis_bits=4), r"kflats\.json: basis_bits=4"),
    "codes called factors": (edit_table(as_factors), r"kflats\.json: a factor shape has the"),
    "other rows": (edit_shape(num_embeddings=401), r"kflats\.json: counts sum to 400"),
    "other columns": (edit_shape(embedding_dim=25), r"tensor '0\.\w+' has shape"),
    "fewer columns": (edit_shape(embedding_dim=7), r"kflats\.json: runs=.*embedding_dim=7"),
    "other form": (edit_shape(rotated=[False]), r"tensor '0\.\w+' has shape"),
    "no means": (edit_shape(affine=False), r"tensor '0\.\w+' has shape"),
    "colour": (
        edit_shape(colour="blue"),
        r"kflats\.json: a shape of packed codes has the .*colour",
    ),
    "text": (edit_shape(counts="many"), r"kflats\.json: a shape of packed codes holds whole"),
    "origin": (
        edit_table(lambda table: table.update(origin=None)),
        r"kflats\.json: origin must be an object",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_folders_name_what_is_wrong(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    model, _ = compressed()
    kflats.save(model, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        kflats.load(tmp_path / "out", model=dense())


def test_sound_folders_pass_the_check(tmp_path: Path) -> None:
    model, _ = compressed()
    kflats.save(model, tmp_path / "out")
    manifest, headers = check_folder(tmp_path / "out")
    assert manifest.tables["0"].shape == model[0].shape
    assert manifest.tables["0"].storage["coefficients"] == "codes"
    assert headers["0.weight"].dtype == "U8"


def test_another_model_is_refused(tmp_path: Path) -> None:
    model, _ = compressed()
    kflats.save(model, tmp_path / "out")
    other = nn.Sequential(nn.Embedding(400, 25), nn.Linear(24, 3))
    with pytest.raises(CheckpointError, match=r"factorised table '0' of shape \(400, 24\)"):
        kflats.load(tmp_path / "out", model=other)
