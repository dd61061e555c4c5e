"""Training a tied model in two processes gives the model of one process, and it saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch.multiprocessing.spawn import spawn

from tests.hf import distributed
from tests.hf.models import logits

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_the_model_of_one(kind: str, tmp_path: Path) -> None:
    alone = distributed.fresh()
    untrained = logits(alone)
    distributed.train(alone, distributed.batches().flatten(1, 2))
    spawn(distributed.run, (kind, str(tmp_path)), distributed.WORLD)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    assert loaded.lm_head.coefficients is loaded.transformer.wte.coefficients
    torch.testing.assert_close(logits(loaded), logits(alone.eval()), rtol=1e-4, atol=1e-4)
    assert (logits(loaded) - untrained).abs().max() > 0.1
