from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.cli.conftest import Cli, dense_table, left_in

_PLAIN = """
import sys
import torch, transformers
model = transformers.BertForMaskedLM.from_pretrained(sys.argv[1]).eval()
assert "kflats" not in sys.modules
print(float(model(torch.arange(9)[None]).logits.detach().double().sum()))
"""


def compressed(kflats: Cli, model: Path, out: Path) -> Path:
    assert kflats("compress", model, "-o", out, "--compression", 0.4, "--clusters", 2).code == 0
    return out


def test_restored_folder_is_ordinary(kflats: Cli, bert: Path, place: Path) -> None:
    small = compressed(kflats, bert, place / "small")
    assert kflats("restore", small, "-o", place / "dense").code == 0
    tensors = load_file(place / "dense" / "model.safetensors")
    assert tensors.keys() == load_file(bert / "model.safetensors").keys()
    assert torch.equal(tensors["embeddings.word_embeddings.weight"], dense_table(small))
    config = json.loads((place / "dense" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (place / "dense" / "tokenizer.json").exists()


def test_plain_transformers_loads_a_restored_tied_model(
    kflats: Cli, tied: Path, place: Path
) -> None:
    import transformers

    small = compressed(kflats, tied, place / "small")
    assert kflats("restore", small, "-o", place / "dense").code == 0
    done = subprocess.run(
        [sys.executable, "-c", _PLAIN, str(place / "dense")],
        capture_output=True,
        text=True,
        check=True,
    )
    model = transformers.BertForMaskedLM.from_pretrained(small).eval()
    ours = float(model(torch.arange(9)[None]).logits.detach().double().sum())
    assert abs(float(done.stdout) - ours) < 1e-3


def test_restore_refuses_a_dense_model_and_an_existing_folder(
    kflats: Cli, bert: Path, place: Path
) -> None:
    result = kflats("restore", bert, "-o", place / "dense")
    assert (result.code, len(result.errors)) == (1, 1)
    assert "no factorised layer" in result.err
    assert left_in(place) == []
    small = compressed(kflats, bert, place / "small")
    assert kflats("restore", small, "-o", small).code == 1
