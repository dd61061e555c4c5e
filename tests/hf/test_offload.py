"""Loading with a device map of more than one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kflats
from kflats import CompressionConfig
from tests.hf.models import IDS, logits, tiny_gpt2

PLACES = {
    "transformer.wte": "cpu",
    "transformer.wpe": "cpu",
    "transformer.ln_f": "cpu",
    "transformer.h": "disk",
    "lm_head": "cpu",
}


@pytest.mark.filterwarnings("ignore")  # accelerate says what is on the disk
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "form",
    [{"compression": 0.4, "n_clusters": 2}, {"bits": 10.0}, {"compression": 0.4, "method": "svd"}],
    ids=["flats", "codes", "svd"],
)
def test_layers_on_the_disk_leave_tables_right(
    form: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    model = tiny_gpt2(tie_word_embeddings=tied)
    kflats.compress_(model, CompressionConfig(**form))
    model.save_pretrained(tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", device_map=PLACES, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
    words, head = loaded.transformer.wte, loaded.lm_head
    assert (words.table_id == head.table_id) == tied
    assert IDS.device == words(IDS).device
