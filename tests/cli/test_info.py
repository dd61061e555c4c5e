from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.conftest import Cli, save_tiny


@pytest.fixture
def small(kflats: Cli, tied: Path, place: Path) -> Path:
    """A compressed BertForMaskedLM."""
    out = place / "small"
    words = ("--compression", 0.4, "--clusters", 2, "--keep-special")
    assert kflats("compress", tied, "-o", out, *words).code == 0
    return out


def test_info_tells_what_the_folder_holds(kflats: Cli, small: Path) -> None:
    result = kflats("info", small, "--json")
    assert result.code == 0
    (table,) = result.json["tables"]
    assert table["readers"] == ["bert.embeddings.word_embeddings", "cls.predictions.decoder"]
    assert (table["n_clusters"], table["shape"]["num_embeddings"]) == (2, 200)
    assert (table["method"], table["dtype"]) == ("flats", "F32")
    assert result.json["architecture"] == "BertForMaskedLM"
    assert f"{table['num_bytes']:,} bytes" in result.out


def test_bytes_of_info_are_those_of_the_file(kflats: Cli, small: Path) -> None:
    tensors = load_file(small / "model.safetensors")
    sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
    found = kflats("info", small, "--json").json
    table = sum(size for name, size in sizes.items() if "word_embeddings" in name)
    assert found["tables"][0]["num_bytes"] == table
    assert found["tensor_bytes"] == sum(sizes.values())
    assert found["dense_tensor_bytes"] == sum(sizes.values()) - table + 200 * 16 * 4


def test_info_says_of_each_form_what_is_true(kflats: Cli, small: Path, place: Path) -> None:
    factors = kflats("info", small).out
    assert "bytes of F32 factors and labels instead of 12,800 of F32 (" in factors
    assert "flats, affine" in factors
    words = ("--method", "codes", "--target-size", "3KB")
    save_tiny(place / "dense", "BertModel")
    assert kflats("compress", place / "dense", "-o", place / "packed", *words).code == 0
    packed = kflats("info", place / "packed").out
    assert "bytes of packed codes and what unpacks them instead of 12,800 of F32 (" in packed
    assert "factors" not in packed
    (line,) = [line for line in packed.splitlines() if "200 x 16" in line]
    assert line.split()[-3:] == ["codes,", "affine", "1"]  # the row of the padding


@pytest.mark.parametrize("what", ["dense", "missing", "file"])
def test_info_refuses_what_is_not_compressed(kflats: Cli, place: Path, what: str) -> None:
    if what == "dense":
        save_tiny(place / what, "BertModel")
    if what == "file":
        (place / what).write_text("no folder")
    result = kflats("info", place / what)
    assert (result.code, len(result.errors)) == (1, 1)
    assert what in result.err


def test_info_prints_the_names_of_strangers_as_they_are(kflats: Cli, small: Path) -> None:
    path = small / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].pop("checksums", None)
    (table,) = config["quantization_config"]["layers"]["tables"].values()
    table["origin"]["method"] = "[/x]"
    path.write_text(json.dumps(config))
    result = kflats("info", small)
    assert result.code == 0
    assert "[/x]" in result.out


def test_info_names_a_pickle(kflats: Cli, small: Path) -> None:
    (small / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    result = kflats("info", small)
    assert result.code == 1
    assert "pytorch_model.bin is a pickle" in " ".join(result.err.split())
