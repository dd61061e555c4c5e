from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn

import kflats
from kflats import CompressionConfig
from tests.conftest import tiny_bert
from tests.promises import assert_same_model

CONFIG = CompressionConfig(compression=0.4, n_clusters=2, exact_ids=(0, 3), affine=True)


def saved(folder: Path, kind: str = "BertForMaskedLM") -> kflats.CompressionReport:
    model = tiny_bert(kind)
    report = kflats.compress_(model, CONFIG)
    kflats.save(model, folder, report=report)
    return report


def test_card_has_the_figures_of_the_report(tmp_path: Path) -> None:
    report = saved(tmp_path / "small")
    (table,) = report.tables
    text = (tmp_path / "small" / "README.md").read_text()
    for figure in (
        f"{table.bytes_before:,} bytes",
        f"{table.bytes_after:,} bytes",
        f"{table.compression:.1%}",
        f"{table.relative_error:.4f}",
        f"{report.model_bytes_after:,} bytes",
        f"{report.model_bytes_before:,}.",
        "2 affine and 2 rows exact",
    ):
        assert figure in text, figure
    assert not re.search(r"\[More Information|TODO|\{\w+\}", text)


def test_card_is_valid_for_the_hub(tmp_path: Path) -> None:
    saved(tmp_path / "small")
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.data.library_name == "transformers"
    assert "kflats" in card.data.tags


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_example_of_the_card_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "small", kind)
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "small" / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope: dict[str, object] = {}
    exec(block, scope)
    assert type(scope["model"]).__name__ == kind


def test_card_of_a_plain_module_says_how_to_load_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(300, 16), nn.Linear(16, 2))
    kflats.compress_(model, CONFIG)
    kflats.save(model, tmp_path / "plain")
    text = (tmp_path / "plain" / "README.md").read_text()
    assert 'kflats.load("plain", model=the_dense_model)' in text
    again = nn.Sequential(nn.Embedding(300, 16), nn.Linear(16, 2))
    kflats.load(tmp_path / "plain", model=again)
    ids = torch.arange(300)
    assert_same_model(again, model, lambda each: each(ids))


def _text(folder: Path, model: nn.Module, config: CompressionConfig) -> str:
    kflats.compress_(model, config)
    kflats.save(model, folder)
    return " ".join((folder / "README.md").read_text().split())


PACKED = CompressionConfig(bits=7)


def test_card_of_factors_says_that_they_train(tmp_path: Path) -> None:
    text = _text(tmp_path / "small", tiny_bert(), CONFIG)
    assert "coefficients in one of a few subspaces. Compressing changed no other weight" in text
    assert "It trains like any model of its library" in text
    assert "packed" not in text


def test_card_of_packed_codes_claims_nothing_that_they_cannot(tmp_path: Path) -> None:
    text = _text(tmp_path / "small", tiny_bert(pad_token_id=None), PACKED)
    assert "is stored as packed codes of few bits. Compressing" in text
    assert "a packed table is not trained, gets no new rows and has no ONNX form" in text
    assert "| packed codes (kflats) | none | none |" in text
    assert "It trains" not in text
    assert "subspaces." not in text
    assert "coefficients" not in text


def test_card_of_a_plain_module_names_no_command_that_needs_a_library(tmp_path: Path) -> None:
    for config in (CONFIG, PACKED):
        model = nn.Sequential(nn.Embedding(300, 16), nn.Linear(16, 2))
        text = _text(tmp_path / str(config.method), model, config)
        assert "`kflats.to_dense_(model)`" in text
        assert "kflats restore" not in text
        assert "-e '.' " in text


def test_install_line_asks_no_index_for_kflats(tmp_path: Path) -> None:
    text = _text(tmp_path / "small", tiny_bert(), CONFIG)
    assert "pip install -c constraints.txt -e '.[hf]'" in text
    assert "install 'kflats" not in text


def test_base_model_is_told_where_it_came_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def cached(name: str, file: str) -> str | None:
        asked.append(name)
        return file if name == "org/model" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    for number, name in enumerate(("org/model", "org/unknown", str(tmp_path), "")):
        model = tiny_bert()
        model.config._name_or_path = name
        _text(tmp_path / str(number), model, CONFIG)
        card = ModelCard.load(tmp_path / str(number) / "README.md")
        assert card.data.base_model == ("org/model" if name == "org/model" else None)
        assert not name or name == "org/model" or name not in card.content
    assert asked[:2] == ["org/model", "org/unknown"]
