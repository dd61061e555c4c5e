"""Files that call modules by other names, and classes that have a part of the model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kflats
from kflats import CheckpointError, CompressionConfig
from kflats.layers import StoredTable
from kflats.storage.info import folder_info
from kflats.storage.manifest import Manifest
from tests.hf.models import edit_config
from tests.sweep.dense import build

FORMS: dict[str, dict[str, Any]] = {
    "flats": {"compression": 0.4, "n_clusters": 2},
    "codes": {"bits": 10.0},
}
TEXT: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
IMAGE: dict[str, Any] = {**TEXT, "image_size": 28, "patch_size": 14}
IDS = torch.arange(5, 14)[None]


def neox(tied: bool = False) -> Any:
    config = transformers.GPTNeoXConfig(**TEXT, tie_word_embeddings=tied)
    return transformers.GPTNeoXForCausalLM(config)


def llava() -> Any:
    text = transformers.LlamaConfig(**TEXT, num_key_value_heads=2)
    image = transformers.CLIPVisionConfig(**{k: v for k, v in IMAGE.items() if k != "vocab_size"})
    config = transformers.LlavaConfig(text_config=text, vision_config=image, image_token_index=190)
    return transformers.LlavaForConditionalGeneration(config)


def clip() -> Any:
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**TEXT, **ends, "max_position_embeddings": 16, "projection_dim": 8}
    image = {key: value for key, value in IMAGE.items() if key != "vocab_size"}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**image, "projection_dim": 8}, projection_dim=8
    )
    return transformers.CLIPModel(config)


def saved(model: Any, form: str, folder: Path) -> Any:
    torch.manual_seed(0)
    model = model.eval()
    kflats.compress_(model, CompressionConfig(**FORMS[form]))
    model.save_pretrained(folder)
    return model


def rows(model: Any) -> torch.Tensor:
    table = model.get_input_embeddings()
    assert isinstance(table, StoredTable)
    found: torch.Tensor = table(IDS)
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_head_with_another_name_in_the_file_loads(form: str, tied: bool, tmp_path: Path) -> None:
    model = saved(neox(tied), form, tmp_path / "out")
    for load in (kflats.load, transformers.GPTNeoXForCausalLM.from_pretrained):
        again = load(tmp_path / "out")
        torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    assert {table.name for table in folder_info(tmp_path / "out").tables} == (
        {"gpt_neox.embed_in"} if tied else {"gpt_neox.embed_in", "lm_head"}
    )


@pytest.mark.parametrize("form", FORMS)
def test_base_class_of_a_vision_language_model_has_the_table(form: str, tmp_path: Path) -> None:
    model = saved(llava(), form, tmp_path / "whole")
    base, info = transformers.AutoModel.from_pretrained(
        tmp_path / "whole", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert torch.equal(rows(base), rows(model))
    base.save_pretrained(tmp_path / "base")
    again = transformers.AutoModel.from_pretrained(tmp_path / "base")
    assert torch.equal(rows(again), rows(model))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_text_tower_of_two_has_the_table(form: str, name: str, tmp_path: Path) -> None:
    model = saved(clip(), form, tmp_path / "both")
    tower = getattr(transformers, name).from_pretrained(tmp_path / "both").eval()
    assert torch.equal(rows(tower), model.text_model.get_input_embeddings()(IDS))
    expected = model.text_model(IDS).last_hidden_state
    torch.testing.assert_close(tower(IDS).last_hidden_state, expected)
    tower.save_pretrained(tmp_path / "tower")
    again = getattr(transformers, name).from_pretrained(tmp_path / "tower")
    torch.testing.assert_close(again(IDS).last_hidden_state, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPForImageClassification"])
def test_class_without_the_text_tower_loads_and_saves(form: str, name: str, tmp_path: Path) -> None:
    model = saved(clip(), form, tmp_path / "both")
    tower = getattr(transformers, name).from_pretrained(tmp_path / "both")
    assert not any(isinstance(each, StoredTable) for each in tower.modules())
    own = getattr(tower, "vision_model", tower)
    weight = own.embeddings.patch_embedding.weight
    assert torch.equal(weight, model.vision_model.embeddings.patch_embedding.weight)
    tower.save_pretrained(tmp_path / "tower")
    assert "kflats" not in (tmp_path / "tower" / "config.json").read_text()


def test_table_described_by_the_name_of_no_module_is_refused(tmp_path: Path) -> None:
    saved(neox(), "flats", tmp_path)

    def rename(block: dict[str, Any]) -> None:
        for key in ("tables", "modules"):
            block["layers"][key]["elsewhere"] = block["layers"][key].pop("gpt_neox.embed_in")
        block["layers"]["modules"]["elsewhere"]["table"] = "elsewhere"

    edit_config(tmp_path, rename)
    with pytest.raises(CheckpointError, match="checksums"):
        transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    edit_config(tmp_path, lambda block: block.pop("checksums"))
    with pytest.raises(CheckpointError, match="has no tensor"):
        transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_names_that_cannot_be_found_otherwise_are_written(form: str, tmp_path: Path) -> None:
    """Table and head of Cohere ASR have one shape, and other names in the file both."""
    model = saved(build(transformers.CohereAsrForConditionalGeneration), form, tmp_path / "out")
    block = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert block["names"].keys() <= block_tensors(block)
    for load in (kflats.load, transformers.CohereAsrForConditionalGeneration.from_pretrained):
        again = load(tmp_path / "out")
        assert torch.equal(rows(again), rows(model))
        hidden = torch.randn(2, model.get_output_embeddings().in_features)
        head, own = again.get_output_embeddings(), model.get_output_embeddings()
        torch.testing.assert_close(head(hidden), own(hidden))
    assert "names" not in json.loads(json.dumps(model.config.to_dict()["quantization_config"]))
    for wrong in ({"nowhere.weight": "a"}, ["weight"], {**block["names"], **twice(block)}):
        edit_config(tmp_path / "out", partial(dict.update, names=wrong))
        with pytest.raises(CheckpointError, match="names must give one name"):
            kflats.load(tmp_path / "out")


def block_tensors(block: dict[str, Any]) -> set[str]:
    return set(Manifest.from_dict(block["layers"]).tensors())


def twice(block: dict[str, Any]) -> dict[str, str]:
    """Return another tensor with a name that is used already."""
    free = sorted(block_tensors(block) - block["names"].keys())
    return {free[0] if free else "": next(iter(block["names"].values()))}


def test_ties_of_modules_without_a_table_are_kept(tmp_path: Path) -> None:
    """Grounding DINO ties heads of its decoder, by the names of modules."""
    model = saved(build(transformers.GroundingDinoForObjectDetection), "codes", tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.bbox_embed[1].layers[0].weight is again.bbox_embed[0].layers[0].weight


def test_module_that_is_tied_to_one_that_is_only_tied_itself(tmp_path: Path) -> None:
    """The encoder of BigBird-Pegasus is tied to the shared table, and that to the decoder."""
    model = saved(build(transformers.BigBirdPegasusForCausalLM), "flats", tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    ids = torch.arange(5, 9)[None]
    expected = model.get_input_embeddings()(ids)
    assert torch.equal(base.encoder.embed_tokens(ids), expected)
    assert torch.equal(base.decoder.embed_tokens(ids), expected)
