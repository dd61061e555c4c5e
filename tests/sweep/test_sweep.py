from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sweep import page, results
from tests.sweep.classes import class_names, families, model_class
from tests.sweep.compare import SAME as BIT_CLOSE
from tests.sweep.compare import difference
from tests.sweep.configs import tiny_config
from tests.sweep.outcome import CANNOT, REFUSED, SAME, SKIPPED
from tests.sweep.run import sweep
from tests.sweep.trial import run_class

REPRESENTATIVE = ["bart", "bert", "clip", "deberta_v2", "gemma3", "llava", "marian", "mobilebert",
                  "qwen3", "speecht5", "t5", "whisper", "xlnet"]  # fmt: skip


def wrong(rows: list[dict[str, Any]]) -> list[str]:
    """Return what kflats gets wrong though the dense model gets it right."""
    fine = (SAME, REFUSED, CANNOT, SKIPPED)
    return [f"{r['class']} {results.words(r)}" for r in rows if r["outcome"] not in fine]


def test_some_families() -> None:
    rows = list(sweep(["cpmant", "gpt2"]))
    assert not wrong(rows)
    assert {row["class"] for row in rows if row["outcome"] == SAME} >= {"CpmAntModel", "GPT2Model"}


@pytest.mark.slow
@pytest.mark.parametrize("family", REPRESENTATIVE)
def test_representative_families(family: str) -> None:
    rows = list(sweep([family]))
    assert not wrong(rows)
    assert any(row["outcome"] == SAME for row in rows)


def problems(folder: Path) -> set[tuple[str, str]]:
    record = run_class("gpt2.modeling_gpt2:GPT2LMHeadModel", folder)
    found = [each for form in record["forms"].values() for each in form["problems"]]
    return {(each["kind"], each["step"]) for each in found}


@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_reads_wrong_rows_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kflats.layers import FactorizedEmbedding

    forward = FactorizedEmbedding.forward
    wrong = lambda self, ids: 1.01 * forward(self, ids)  # noqa: E731
    monkeypatch.setattr(FactorizedEmbedding, "forward", wrong)
    assert ("silent difference", "forward") in problems(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_an_error_in_a_step_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kflats.layers import FactorizedEmbedding

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(FactorizedEmbedding, "to_embedding", broken)
    assert problems(tmp_path) == {("error", "to_dense")}


def test_differences() -> None:
    one = {"logits": torch.tensor([1.0, -torch.inf])}
    assert difference(one, one, BIT_CLOSE) is None
    assert difference({"logits": torch.tensor([1.1, -torch.inf])}, one, BIT_CLOSE)
    assert difference({"logits": torch.tensor([1.0, 0.0])}, one, BIT_CLOSE)
    assert difference({"logits": torch.tensor([1.0])}, one, BIT_CLOSE)
    assert difference({}, one, BIT_CLOSE)


@pytest.mark.parametrize(
    "name", ["bert.modeling_bert:BertModel", "llava.modeling_llava:LlavaModel"]
)
def test_tiny_configs_are_tiny(name: str) -> None:
    config = tiny_config(model_class(name).config_class)
    text = config.get_text_config()
    assert (text.vocab_size, text.hidden_size, text.num_hidden_layers) == (300, 32, 2)
    assert text.pad_token_id is None or text.pad_token_id < 300


def test_classes_are_found() -> None:
    assert {"bert", "whisper"} < set(families())
    assert "bert.modeling_bert:BertForMaskedLM" in class_names("bert")


def test_the_page_is_that_of_the_results() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render(results.read())
