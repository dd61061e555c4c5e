from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from kflats import InputError, MissingExtraError
from kflats.evaluation.sts import HUB_DATASET, Pairs, embed, load_pairs, sts_spearman

ROOT = Path(__file__).parents[2]
STSB = Path(os.environ.get("KFLATS_DATA", ROOT.parent / "shared" / "data")) / "sts"

FRAME = pd.DataFrame(
    {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "score": [0.5, 4.0, 2.0]}
)


@dataclass
class Angles:
    """An encoder of sentences such as '60': vectors at that angle in degrees, of any length."""

    dtype: torch.dtype = torch.float32
    calls: list[list[str]] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)

    def encode(self, sentences: list[str], *, batch_size: int, **options: Any) -> Tensor:
        self.calls.append(sentences)
        self.batch_sizes.append(batch_size)
        if not sentences:
            return torch.empty(0)
        radians = torch.tensor([float(s) for s in sentences], dtype=torch.float64).deg2rad()
        lengths = torch.arange(len(sentences), 0, -1)
        return (lengths * torch.stack([radians.cos(), radians.sin()])).T.to(self.dtype)


def pairs(angles: list[float], scores: list[float]) -> Pairs:
    """Return pairs that enclose the given angles."""
    return Pairs(["0"] * len(angles), [str(angle) for angle in angles], scores, "by hand")


def saved(folder: Path, frame: pd.DataFrame, name: str = "pairs.parquet") -> Path:
    path = folder / name
    frame.to_parquet(path)
    return path


# The score


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 100.0),
        ([4.0, 3.0, 2.0, 1.0], -100.0),
        ([1.0, 3.0, 2.0, 4.0], 80.0),
        ([1.0, 1.0, 2.0, 3.0], 100 * math.sqrt(0.9)),
        ([0.0, 5.0, 5.0, 0.0], 0.0),
    ],
    ids=["same order", "opposite", "one swap", "ties", "no relation"],
)
def test_score_is_the_rank_correlation_worked_out_by_hand(
    scores: list[float], expected: float
) -> None:
    given = pairs([80, 60, 40, 20], scores)
    assert sts_spearman(Angles(), given) == pytest.approx(expected, abs=1e-9)


def test_equal_cosines_share_their_rank() -> None:
    given = pairs([60, 60, 40, 20], [1.0, 2.0, 3.0, 4.0])
    assert sts_spearman(Angles(), given) == pytest.approx(100 * math.sqrt(0.9))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pairs([30], [1.0]), "1 distinct scores"),
        (pairs([30, 60], [1.0, 1.0]), "1 distinct scores and 2 distinct cosines"),
        (pairs([30, 30], [1.0, 2.0]), "2 distinct scores and 1 distinct cosines"),
        (pairs([30, math.nan, 60], [1.0, 2.0, 3.0]), "by hand"),
        (pairs([30, 45, 60], [1.0, math.nan, 3.0]), "by hand"),
        (pairs([], []), "by hand"),
    ],
    ids=["one pair", "constant scores", "constant cosines", "nan cosine", "nan score", "no pair"],
)
def test_undefined_correlation_is_refused(given: Pairs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sts_spearman(Angles(), given)


# The embeddings


def test_vectors_are_of_unit_length_in_the_order_of_the_sentences() -> None:
    vectors = embed(Angles(), ["90", "0", "90", "180"])
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(vectors, expected, rtol=0, atol=torch.finfo(torch.float32).eps)


def test_every_distinct_sentence_is_encoded_once() -> None:
    encoder = Angles()
    sts_spearman(encoder, pairs([80, 60, 80, 20], [1.0, 2.0, 3.0, 4.0]), batch_size=3)
    assert encoder.calls == [["0", "80", "60", "20"]]
    assert encoder.batch_sizes == [3]


def test_half_precision_embeddings_are_normalised_in_float32() -> None:
    vectors = embed(Angles(dtype=torch.float16), ["10", "20", "77"])
    tolerance = 4 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3), rtol=0, atol=tolerance)


# The data


def test_pairs_are_read_from_a_file(tmp_path: Path) -> None:
    path = saved(tmp_path, FRAME.assign(genre="news"))
    expected = Pairs(["a", "b", "c"], ["d", "e", "f"], [0.5, 4.0, 2.0], str(path))
    assert load_pairs(path) == expected
    assert load_pairs(str(path)) == expected


@pytest.mark.parametrize("name", ["stsb_validation.parquet", "validation.parquet"])
def test_split_is_found_in_a_folder(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, FRAME, name)
    saved(tmp_path, FRAME.iloc[:1], "test.parquet")
    found = load_pairs(tmp_path, "validation")
    assert (found.source, found.scores) == (str(path), [0.5, 4.0, 2.0])


def test_file_named_after_the_task_comes_first(tmp_path: Path) -> None:
    first = saved(tmp_path, FRAME, "stsb_test.parquet")
    saved(tmp_path, FRAME.iloc[:1], "test.parquet")
    assert load_pairs(tmp_path).source == str(first)


def test_label_is_another_name_of_score(tmp_path: Path) -> None:
    path = saved(tmp_path, FRAME.rename(columns={"score": "label"}))
    assert load_pairs(path).scores == [0.5, 4.0, 2.0]


def test_score_comes_before_label(tmp_path: Path) -> None:
    path = saved(tmp_path, FRAME.assign(label=[1, 0, 1]))
    assert load_pairs(path).scores == [0.5, 4.0, 2.0]


def test_whole_numbers_become_floats(tmp_path: Path) -> None:
    path = saved(tmp_path, FRAME.assign(score=[1, 2, 3]))
    assert all(type(score) is float for score in load_pairs(path).scores)


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (["score"], r"has the columns \['sentence1', 'sentence2'\]; score missing"),
        (["sentence1", "score"], r"has the columns \['sentence2'\]; sentence1, score missing"),
    ],
    ids=["score", "two"],
)
def test_missing_columns_are_named(tmp_path: Path, dropped: list[str], message: str) -> None:
    path = saved(tmp_path, FRAME.drop(columns=dropped))
    with pytest.raises(InputError, match=message):
        load_pairs(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [("score", "high"), ("score", None), ("sentence1", None), ("sentence2", 3)],
    ids=["text as score", "no score", "no sentence", "number as sentence"],
)
def test_unusable_value_names_its_column(tmp_path: Path, column: str, value: object) -> None:
    path = saved(tmp_path, FRAME.assign(**{column: [value] * 3}))
    with pytest.raises(InputError, match=column):
        load_pairs(path)


def test_folder_without_the_split_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, FRAME, "train.parquet")
    message = r"holds neither stsb_test\.parquet nor test\.parquet"
    with pytest.raises(InputError, match=message):
        load_pairs(tmp_path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.parquet does not exist"):
        load_pairs(tmp_path / "absent.parquet")


@pytest.mark.parametrize("keep", [0, 4, -20], ids=["empty", "only magic", "cut short"])
def test_damaged_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path, FRAME)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"pairs\.parquet is not a readable parquet file"):
        load_pairs(path)


def test_without_data_the_hub_is_asked_for_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, *, split: str) -> Any:
        asked.append((name, split))
        return SimpleNamespace(to_dict=lambda: FRAME.to_dict(orient="list"))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = load_pairs(split="validation")
    assert asked == [(HUB_DATASET, "validation")]
    assert (found.first, found.source) == (["a", "b", "c"], f"{HUB_DATASET}:validation")


def test_unreachable_hub_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, *, split: str) -> Any:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(InputError, match="--data"):
        load_pairs()


@pytest.mark.parametrize(
    ("package", "data", "message"),
    [
        (
            "datasets",
            None,
            r"'datasets' .*\.\[glue\]'.*columns sentence1, sentence2, score \(--data",
        ),
        ("pandas", "pairs.parquet", r"'pandas' .*\.\[demo\]'"),
        ("pyarrow", "pairs.parquet", r"'pyarrow' .*\.\[demo\]'"),
    ],
)
def test_a_missing_package_is_named_with_what_brings_it(
    package: str, data: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FRAME.to_parquet(tmp_path / "pairs.parquet")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=message):
        load_pairs(None if data is None else tmp_path / data)


# The real thing


@pytest.mark.slow
@pytest.mark.skipif(not (STSB / "stsb_test.parquet").is_file(), reason=f"no STS-B in {STSB}")
def test_dense_minilm_reaches_its_published_score() -> None:
    from kflats.models import open_sentence_model

    score = sts_spearman(open_sentence_model("minilm"), load_pairs(STSB))
    assert score == pytest.approx(82.03, abs=0.05)
