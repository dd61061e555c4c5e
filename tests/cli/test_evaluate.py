from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import kflats as library
from kflats.evaluation.sts import load_pairs, sts_spearman
from kflats.models import open_sentence_model
from tests.cli.conftest import Cli

PAIRS = pd.DataFrame(
    [
        ("A man is playing a guitar.", "A man plays the guitar.", 5.0),
        ("A dog runs across the field.", "A puppy is running outside.", 3.5),
        ("She is slicing an onion.", "Someone prepares food.", 2.0),
        ("The train was late again.", "Two cats sleep on a sofa.", 0.0),
    ],
    columns=["sentence1", "sentence2", "score"],
)


def test_evaluate_scores_the_packaged_model(kflats: Cli, tmp_path: Path) -> None:
    data = tmp_path / "pairs.parquet"
    PAIRS.to_parquet(data)
    result = kflats("evaluate", "minilm", "--data", data, "--json")
    assert result.code == 0
    assert result.json == {
        "model": "minilm",
        "task": "sts",
        "metric": "cosine_spearman_x100",
        "score": pytest.approx(100.0),
        "pairs": 4,
        "data": str(data),
    }


def test_evaluate_reads_the_split(kflats: Cli, bert: Path, tmp_path: Path) -> None:
    PAIRS.to_parquet(tmp_path / "validation.parquet")
    result = kflats("evaluate", bert, "--data", tmp_path, "--split", "validation", "--json")
    assert result.json["data"] == str(tmp_path / "validation.parquet")


def test_evaluate_scores_the_factors_of_a_compressed_model(
    kflats: Cli, bert: Path, place: Path, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.parquet"
    rows = [(f"w{i} w{i + 20}", f"w{i + 40} w{3 * i}", float(i)) for i in range(20, 40)]
    pd.DataFrame(rows, columns=PAIRS.columns).to_parquet(data)
    kflats("compress", bert, "-o", place / "out", "--rank", 4, "--clusters", 2)
    encoder = open_sentence_model(str(bert))
    dense = library.load(place / "out").get_input_embeddings().to_embedding()
    encoder[0].auto_model.set_input_embeddings(dense)
    result = kflats("evaluate", place / "out", "--data", data, "--json")
    assert result.json["score"] == pytest.approx(sts_spearman(encoder, load_pairs(data)))


def test_evaluate_refuses_an_unknown_task(kflats: Cli, tmp_path: Path) -> None:
    result = kflats("evaluate", "minilm", "--task", "chess", "--data", tmp_path)
    assert result.code == 2
    assert "task='chess' is not known" in result.err


def test_evaluate_names_missing_data(kflats: Cli, tmp_path: Path) -> None:
    result = kflats("evaluate", "minilm", "--data", tmp_path / "absent.parquet")
    (line,) = result.errors
    assert result.code == 1
    assert "absent.parquet does not exist" in line


def test_evaluate_names_a_missing_model(kflats: Cli, tmp_path: Path) -> None:
    data = tmp_path / "pairs.parquet"
    PAIRS.to_parquet(data)
    result = kflats("evaluate", tmp_path / "absent", "--data", data)
    (line,) = result.errors
    assert result.code == 1
    assert "absent is no model folder" in line
