"""The command line on static embedding models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kflats.layers import FactorizedEmbeddingBag, QuantizedEmbeddingBag
from tests.cli.conftest import Cli

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer

from tests.hf.static import bag_of, dense, encode, model2vec_folder


def test_command_line_compresses_restores_and_describes(kflats: Cli, tmp_path: Path) -> None:
    dense().save_pretrained(str(tmp_path / "dense"))
    text = tmp_path / "texts.txt"
    text.write_text("w7 w7 w9\n")
    words = ("--compression", 0.4, "--clusters", 2, "--weights", text, "--keep-special", "--json")
    result = kflats("compress", tmp_path / "dense", "-o", tmp_path / "out", *words)
    assert result.code == 0, result.err
    info = kflats("info", tmp_path / "out", "--json").json
    assert info["tables"][0]["num_bytes"] == result.json["tables"][0]["bytes_after"]
    assert info["tables"][0]["shape"]["counts"][-1] == 1  # [PAD] is exact
    small = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert isinstance(bag_of(small), FactorizedEmbeddingBag)
    kflats("restore", tmp_path / "out", "-o", tmp_path / "restored")
    restored = SentenceTransformer(str(tmp_path / "restored"), device="cpu")
    assert type(restored[0].embedding) is torch.nn.EmbeddingBag
    torch.testing.assert_close(encode(restored), encode(small))


def test_command_line_compresses_model2vec_folders(kflats: Cli, tmp_path: Path) -> None:
    source = model2vec_folder(tmp_path / "potion")
    words = ("-o", tmp_path / "out", "--method", "codes", "--bits", 6)
    result = kflats("compress", source, *words)
    assert result.code == 0, result.err
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert isinstance(bag_of(loaded), QuantizedEmbeddingBag)
    assert loaded.encode(["w7"]).shape == (1, 8)


def test_calibration_is_refused(kflats: Cli, tmp_path: Path) -> None:
    dense().save_pretrained(str(tmp_path / "dense"))
    (tmp_path / "texts.txt").write_text("w7 w9\n")
    words = ("--compression", 0.4, "--clusters", 2, "--calibrate", tmp_path / "texts.txt")
    result = kflats("compress", tmp_path / "dense", "-o", tmp_path / "out", *words)
    assert result.code != 0
    assert "nn.EmbeddingBag" in " ".join(result.errors)
