from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Cli, left_in

pytest.importorskip("accelerate")


@pytest.fixture
def text(place: Path) -> Path:
    drawn = torch.randint(5, 200, (60, 7), generator=torch.Generator().manual_seed(2))
    path = place / "text.txt"
    path.write_text("\n".join(" ".join(f"w{i}" for i in row) for row in drawn.tolist()))
    return path


def compressed(kflats: Cli, model: Path, out: Path) -> Path:
    assert kflats("compress", model, "-o", out, "--compression", 0.4, "--clusters", 2).code == 0
    return out


def test_heal_writes_a_new_folder_of_the_same_size(
    kflats: Cli, bert: Path, place: Path, text: Path
) -> None:
    small = compressed(kflats, bert, place / "small")
    words = ("--teacher", bert, "--text", text, "-o", place / "healed", "--learning-rate", 0.2)
    result = kflats("heal", small, *words, "--max-steps", 6, "--batch-size", 8, "--json")
    assert result.code == 0, result.err
    assert "distance from the teacher" in result.out
    assert result.json["steps"] == 6
    assert result.json["loss_after"] < result.json["loss_before"]
    old, new = (load_file(folder / "model.safetensors") for folder in (small, place / "healed"))
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}
    different = {name for name in old if not torch.equal(old[name], new[name])}
    assert different
    assert all("word_embeddings" in name for name in different)
    assert (place / "healed" / "tokenizer.json").exists()
    assert kflats("info", place / "healed").code == 0


def test_what_gets_no_better_is_not_saved(kflats: Cli, bert: Path, place: Path, text: Path) -> None:
    small = compressed(kflats, bert, place / "small")
    before = left_in(place)
    words = ("--teacher", bert, "--text", text, "-o", place / "healed", "--learning-rate", 50)
    result = kflats("heal", small, *words, "--max-steps", 3, "--batch-size", 8)
    assert (result.code, len(result.errors)) == (1, 1)
    assert "no better" in result.err
    assert "--learning-rate" in result.err
    assert left_in(place) == before


def test_text_without_known_tokens_fails_in_one_line(kflats: Cli, bert: Path, place: Path) -> None:
    small = compressed(kflats, bert, place / "small")
    (place / "alien.txt").write_text("nothing known\n")
    words = ("--teacher", bert, "--text", place / "alien.txt", "-o", place / "healed")
    result = kflats("heal", small, *words)
    assert (result.code, len(result.errors)) == (1, 1)
    assert "hold no token" in result.err
    assert left_in(place) == ["alien.txt", "small"]


def test_an_existing_folder_and_a_dense_model_are_refused(
    kflats: Cli, bert: Path, place: Path, text: Path
) -> None:
    words = ("--teacher", bert, "--text", text)
    exists = kflats("heal", bert, *words, "-o", place)
    assert (exists.code, len(exists.errors)) == (1, 1)
    dense = kflats("heal", bert, *words, "-o", place / "new")
    assert dense.code == 1
    assert "run compress_ first" in dense.err
    assert not (place / "new").exists()
