"""Files from strangers: every damage is refused while loading, with or without checksums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kflats
from kflats import CheckpointError, CompressionConfig, models
from kflats.quantization.packing import packed_bytes
from kflats.storage.info import folder_info
from tests.conftest import spectral_table, tiny_bert
from tests.storage.edits import (
    CODES,
    NAME,
    Edit,
    deep,
    deep_origin,
    edit_block,
    edit_config,
    edit_module,
    edit_shape,
    edit_tensor,
    huge,
    negative,
    not_finite,
    one_more_row,
    other_reader,
    saved,
    with_value,
    writes,
)
from tests.storage.test_folder import CONFIG

FLATS: dict[str, tuple[Edit, str]] = {
    "negative int8": (negative(torch.int8), "kflats_labels' has dtype I8; U8"),
    "negative int16": (negative(torch.int16), "kflats_labels' has dtype I16; U8"),
    "negative int64": (negative(torch.int64), "kflats_labels' has dtype I64; U8"),
    "uint16": (edit_tensor("kflats_labels", lambda t: t.to(torch.uint16)), "dtype U16; U8"),
    "uint64": (edit_tensor("kflats_labels", lambda t: t.to(torch.uint64)), "dtype U64; U8"),
    "label too large": (
        edit_tensor("kflats_labels", with_value(200)),
        r"kflats_labels is damaged: the labels .* from 0 to 200, .* groups 0 to 2",
    ),
    "one more row": (edit_shape(one_more_row), "has shape"),
    "huge": (edit_shape(huge), "the largest size is 3298534883328"),
    "scale": (edit_module(scale=2.0), "with scale=2.0; Embedding has 1.0"),
    "infinite scale": (not_finite, "scale=inf must be a number, and finite"),
    "scale of whole numbers": (edit_module(scale=10**400), "must be a number, and finite"),
    "true for a number": (edit_module(padding_idx=True), "padding_idx=True must be"),
    "kind is a list": (edit_module(kind=[]), r"kind=\[\] .* must be texts"),
    "other reader": (edit_block(other_reader), "token_type_embeddings' reads the table"),
    "deep": (deep, "nested more than 100 levels deep"),
    "deep origin": (deep_origin, "nested more than 100 levels deep"),
    "origin": (
        edit_block(lambda b: b["layers"]["tables"][NAME]["origin"].update(method=3)),
        "origin has method=3",
    ),
    "error of text": (
        edit_block(lambda b: b["layers"]["tables"][NAME]["origin"].update(relative_error="x")),
        "origin has relative_error='x'",
    ),
    "coefficients": (edit_tensor("weight", with_value(torch.nan)), "weight' has numbers from nan"),
    "bases": (edit_tensor("kflats_bases", with_value(torch.inf)), "bases' has .* to inf; all must"),
    "means": (edit_tensor("kflats_means", with_value(-torch.inf)), "means' has numbers from -inf"),
    "two dtypes": (edit_tensor("kflats_bases", Tensor.half), "F16, .*weight' has F32: all numbers"),
    "float8": (
        edit_tensor("kflats_bases", lambda t: t.to(torch.float8_e4m3fn)),
        "dtype F8_E4M3; floating point",
    ),
    "tokenizer": (edit_config(lambda c: c.update(architectures=["BertTokenizer"])), "no model cla"),
    "function": (edit_config(lambda c: c.update(architectures=["pipeline"])), "no model class"),
    "class of a config": (edit_config(lambda c: c.update(architectures=["BertConfig"])), "no mode"),
    "text": (edit_config(lambda c: c.update(architectures="BertModel")), "must be a list of class"),
    "number": (edit_config(lambda c: c.update(architectures=[3])), "must be a list of class names"),
    "other type": (
        edit_config(lambda c: c.update(architectures=["RobertaModel"])),
        "says model_type='bert', but its architecture 'RobertaModel'",
    ),
    "modules.json": (writes("modules.json", "{}"), "list of objects"),
    "modules": (writes("modules.json", "[3]"), "list of objects"),
    "outside": (
        writes("modules.json", '[{"path": "../x", "type": "a"}]'),
        "leads out of the folder",
    ),
    "other config": (writes("config.json", "[]"), "JSON object"),
}
OF_CODES: dict[str, tuple[Edit, str]] = {
    "scales": (edit_tensor("kflats_scales", with_value(torch.nan)), "scales' has numbers from nan"),
    "books": (edit_tensor("kflats_books", with_value(torch.inf, -1)), "books' has .* to inf"),
    "exact": (edit_tensor("kflats_exact", with_value(-torch.inf)), "exact' has numbers from -inf"),
    "objects for lists": (edit_shape(lambda s: s.update(rotated={})), "packed codes holds whole"),
    "huge": (edit_shape(huge), "the largest size is"),
}
CASES = [
    *((CONFIG, f"flats {name}", *case) for name, case in FLATS.items()),
    *((CODES, f"codes {name}", *case) for name, case in OF_CODES.items()),
]


@pytest.mark.parametrize("old", [False, True], ids=["now", "old"])
@pytest.mark.parametrize(
    ("config", "edit", "message"),
    [(config, edit, message) for config, _, edit, message in CASES],
    ids=[name for _, name, _, _ in CASES],
)
def test_damage_is_refused(
    tmp_path: Path, config: CompressionConfig, edit: Edit, message: str, old: bool
) -> None:
    saved(tmp_path / "out", config)
    if old:
        edit_block(lambda block: block.pop("checksums"))(tmp_path / "out")
    edit(tmp_path / "out")
    known = message if old else f"{message}|checksum"
    with pytest.raises(CheckpointError, match=known):
        kflats.load(tmp_path / "out")


@pytest.mark.parametrize("edit", [FLATS["negative int8"][0], FLATS["bases"][0], deep_origin])
def test_the_ordinary_way_and_the_sizes_are_checked_too(tmp_path: Path, edit: Edit) -> None:
    import transformers

    saved(tmp_path / "out")
    edit(tmp_path / "out")
    for load in (transformers.AutoModel.from_pretrained, folder_info, models.open_model):
        with pytest.raises(CheckpointError):
            load(str(tmp_path / "out"))


def swap_ranks(shape: dict[str, Any]) -> None:
    shape["basis_ids"][:2] = reversed(shape["basis_ids"][:2])


def other_run(shape: dict[str, Any]) -> None:
    """Take a coefficient from the run of a group so that all tensors keep their sizes."""
    for run in [run for runs in shape["runs"] for run in runs]:
        bits, count = run
        if packed_bytes(count - 1, bits) == packed_bytes(count, bits):
            run[1] -= 1
            return
    raise AssertionError(f"no run to change in {shape['runs']}")


SEALED: dict[str, tuple[CompressionConfig, Edit, str]] = {
    "order of bases": (
        CompressionConfig(compression=0.4, n_clusters=2, method="projective"),
        edit_shape(swap_ranks),
        rf"the table '{NAME}', its description or one of its tensors, does not have the checksum",
    ),
    "width of a run": (CODES, edit_shape(other_run), f"the table '{NAME}'"),
    "a number": (CONFIG, edit_tensor("weight", with_value(0.25, 7)), f"the table '{NAME}'"),
    "a code": (CODES, edit_tensor("weight", lambda t: t ^ (torch.arange(len(t)) == 40)), "the tab"),
    "origin": (
        CONFIG,
        edit_block(lambda b: b["layers"]["tables"][NAME]["origin"].update(relative_error=0.0)),
        f"the table '{NAME}'",
    ),
    "class": (
        CONFIG,
        edit_config(lambda c: c.update(architectures=["BertForMaskedLM"])),
        "architectures with model_type do not have the checksum",
    ),
    "no digits": (
        CONFIG,
        edit_block(lambda b: b["checksums"].update(tensors="x")),
        "checksums have 8 hexadecimal digits",
    ),
    "no list of tables": (
        CONFIG,
        edit_block(lambda b: b["checksums"].update(tables={})),
        "the object 'tables' of 'checksums'",
    ),
}


@pytest.mark.parametrize(("config", "edit", "message"), SEALED.values(), ids=SEALED)
def test_checksums_find_what_could_be_another_model(
    tmp_path: Path, config: CompressionConfig, edit: Edit, message: str
) -> None:
    saved(tmp_path / "out", config)
    edit(tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        kflats.load(tmp_path / "out")


def rename_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.x"] = tensors.pop("encoder.layer.0.output.dense.bias")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def swap_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    one, two = (f"encoder.layer.0.attention.self.{name}.weight" for name in ("query", "key"))
    tensors[one], tensors[two] = tensors[two], tensors[one]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("edit", [rename_tensor, swap_tensors])
def test_tensors_of_other_layers_are_those_that_were_saved(tmp_path: Path, edit: Edit) -> None:
    saved(tmp_path / "out")
    edit(tmp_path / "out")
    with pytest.raises(CheckpointError, match="the tensors that belong to no table"):
        tiny_bert().from_pretrained(tmp_path / "out")


def test_a_missing_tensor_of_an_old_folder_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "out")
    edit_block(lambda block: block.pop("checksums"))(tmp_path / "out")
    rename_tensor(tmp_path / "out")
    with pytest.raises(
        CheckpointError, match=r"no tensor 'encoder\.layer\.0\.output\.dense\.bias'"
    ):
        kflats.load(tmp_path / "out")


@pytest.mark.parametrize("config", [CONFIG, CODES], ids=["flats", "codes"])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "6KB"}], ids=["one file", "shards"])
def test_folders_with_checksums_load_and_are_written_alike(
    tmp_path: Path, config: CompressionConfig, options: dict[str, Any]
) -> None:
    model = saved(tmp_path / "one", config, **options)
    loaded = kflats.load(tmp_path / "one")
    kflats.save(model, tmp_path / "two", **options)
    kflats.save(loaded, tmp_path / "three", **options)
    block = json.loads((tmp_path / "one" / "config.json").read_text())["quantization_config"]
    assert set(block["checksums"]) == {"tables", "tensors", "config"}
    texts = [(tmp_path / name / "config.json").read_bytes() for name in ("one", "two", "three")]
    assert texts[0] == texts[1] == texts[2]
    half = type(model).from_pretrained(tmp_path / "one", dtype=torch.float16)
    assert half.get_input_embeddings().like.dtype == torch.float16


def test_checksums_follow_a_model_that_has_changed(tmp_path: Path) -> None:
    saved(tmp_path / "one")
    model = kflats.load(tmp_path / "one")
    with torch.no_grad():
        model.get_input_embeddings().coefficients.mul_(2)
    model.save_pretrained(tmp_path / "one")
    again = kflats.load(tmp_path / "one")
    assert torch.equal(again(torch.arange(9)[None])[0], model(torch.arange(9)[None])[0])


def test_a_folder_of_two_variants_has_no_checksums(tmp_path: Path) -> None:
    model = saved(tmp_path / "out")
    model.half().save_pretrained(tmp_path / "out", variant="fp16")
    assert "checksums" not in (tmp_path / "out" / "config.json").read_text()
    loaded = kflats.load(tmp_path / "out", variant="fp16", dtype=torch.float16)
    assert loaded.get_input_embeddings().like.dtype == torch.float16
    kflats.load(tmp_path / "out")


def test_an_adapter_beside_the_model_does_no_harm(tmp_path: Path) -> None:
    saved(tmp_path / "out")
    save_file({"x": torch.zeros(3)}, tmp_path / "out" / "adapter_model.safetensors")
    kflats.load(tmp_path / "out")


@pytest.mark.parametrize("name", ["../x.safetensors", "other.safetensors", 3, None])
def test_an_index_names_files_of_the_folder(tmp_path: Path, name: Any) -> None:
    saved(tmp_path / "out", max_shard_size="6KB")
    path = tmp_path / "out" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["embeddings.LayerNorm.bias"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="weight_map must give the file of every tensor"):
        kflats.load(tmp_path / "out")


def test_two_files_with_one_tensor_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "out", max_shard_size="6KB")
    one, two = sorted((tmp_path / "out").glob("model-*.safetensors"))[:2]
    tensors = load_file(one) | load_file(two)
    save_file(tensors, two, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="both have a tensor"):
        kflats.load(tmp_path / "out")


class Twins(nn.Module):
    """Two tables of one size."""

    def __init__(self, mode: str = "sum") -> None:
        super().__init__()
        self.words, self.others = nn.Embedding(400, 24), nn.Embedding(400, 24)
        self.others.weight = self.words.weight
        self.bag = nn.EmbeddingBag(400, 24, mode=mode)
        with torch.no_grad():
            self.bag.weight.copy_(spectral_table())


def test_a_bag_is_read_as_the_model_reads_it(tmp_path: Path) -> None:
    model = Twins()
    kflats.compress_(model, CompressionConfig(compression=0.4, n_clusters=2, modules=("bag",)))
    kflats.save(model, tmp_path / "out")
    assert kflats.load(tmp_path / "out", model=Twins("mean")).bag.mode == "sum"  # as it was saved
    path = tmp_path / "out" / "kflats.json"
    data = json.loads(path.read_text())
    del data["checksums"]
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="bag 'bag' with mode='sum', the model has 'mean'"):
        kflats.load(tmp_path / "out", model=Twins("mean"))


@pytest.mark.parametrize("aliases", [[], {"others.weight": 3}, {"bag.weight": "words.weight"}])
def test_aliases_name_tensors_that_have_no_name_yet(tmp_path: Path, aliases: Any) -> None:
    model = Twins()
    kflats.compress_(model, CompressionConfig(compression=0.4, n_clusters=2, modules=("bag",)))
    kflats.save(model, tmp_path / "out")
    path = tmp_path / "out" / "kflats.json"
    data = json.loads(path.read_text()) | {"aliases": aliases}
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"kflats\.json: aliases (says|must be an object)"):
        kflats.load(tmp_path / "out", model=Twins())


def test_a_dense_folder_names_a_model_too(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path / "out")
    edit_config(lambda c: c.update(architectures=["BertTokenizer"]))(tmp_path / "out")
    with pytest.raises(CheckpointError, match="no model class of transformers"):
        models.open_model(str(tmp_path / "out"))


def test_unusable_options_stay_the_error_of_the_library(tmp_path: Path) -> None:
    saved(tmp_path / "out")
    with pytest.raises(TypeError, match="colour"):
        kflats.load(tmp_path / "out", colour="blue")
