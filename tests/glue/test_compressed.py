"""Runs whose tables are integers or codes: the sizes are those of the name, and they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kflats.glue import protocol
from kflats.glue.compressed import compress_table, trainable_table
from kflats.glue.runner import run_sweep
from kflats.glue.settings import Cell, Sweep
from kflats.glue.store import read_results
from kflats.glue.tables import markdown
from kflats.layers import QuantizedEmbedding
from kflats.layers.trainable import TrainableEmbedding

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_sweep_with_integers_and_codes(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[Any] = []
    right = protocol.Work._scores

    def scores(work: protocol.Work, rows: Any) -> Any:
        packed.append(work.model.get_input_embeddings())
        return right(work, rows)

    monkeypatch.setattr(protocol.Work, "_scores", scores)
    sweep = Sweep.from_toml(config, tasks=["rte"], methods=["int", "codes"], bits=[4, 8])
    outcome = run_sweep(sweep, tmp_path / "results")
    assert (outcome.done, outcome.failed) == (5, 0)
    tables = [layer for layer in packed if isinstance(layer, QuantizedEmbedding)]
    assert len(tables) == 16  # four runs, two stages, validation and training rows
    ids = torch.arange(300)
    for before, after in zip(tables[1::4], tables[2::4], strict=True):
        assert not torch.equal(before(ids), after(ids))
    found = {each["cell"]["method"]: each for each in read_results(tmp_path / "results")}
    for each in read_results(tmp_path / "results"):
        if each["cell"]["method"] == "int":
            bits = round(32 * (1 - each["cell"]["compression"]))
            runs, exact = each["table"]["shape"]["runs"]  # the row of the padding is zero
            assert (runs, exact) == ([[bits, 16]], [])
    assert found["codes"]["table"]["bytes_after"] <= 300 * 16
    text = markdown(read_results(tmp_path / "results"))
    assert "| with fine-tuning | int4 | 87.5% |" in text
    assert "| with fine-tuning | codes of 8 bits | 75% |" in text


def test_codes_train_with_the_model_and_are_packed_again(config: Path, tmp_path: Path) -> None:
    sweep = Sweep.from_toml(config, tasks=["rte"], methods=[])
    run_sweep(sweep, tmp_path)
    folder = tmp_path / "dense" / "rte-seed0-dense"
    model = protocol.load_dense(folder)
    cell = Cell(task="rte", seed=0, method="int", compression=0.875)
    size = compress_table(model, cell)["bytes_after"]
    ids = torch.arange(300)
    before = model.get_input_embeddings()(ids)
    with trainable_table(model, cell, lambda: protocol.load_dense(folder)):
        layer = model.get_input_embeddings()
        assert isinstance(layer, TrainableEmbedding)
        torch.testing.assert_close(layer(ids), before)
        assert len(layer.latent.unique()) > 2**4  # the dense rows, not the middles of the cells
        with torch.no_grad():
            layer.latent.add_(5.0)
    layer = model.get_input_embeddings()
    assert isinstance(layer, QuantizedEmbedding)
    assert layer.codes.num_bytes == size
    assert not torch.allclose(layer(ids), before)


def test_factors_train_as_they_are() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(20, 4))
    before = model[0]
    cell = Cell(task="rte", seed=0, method="svd", compression=0.4)
    with trainable_table(model, cell, lambda: pytest.fail("not needed")):
        assert model[0] is before
