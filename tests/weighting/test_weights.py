from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kflats import InputError, token_weights

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "mat", "7")
SIZE = len(WORDS)
THE, CAT, SAT, MAT = 5, 6, 7, 8


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)})


def counts(source: Any, tokenizer: Any, size: int = SIZE) -> list[float]:
    """Return the plain counts, which smoothing 0 and power 1 leave as they are."""
    return token_weights(source, tokenizer, size, smoothing=0.0, power=1.0).tolist()


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def expected(*, lines: int = 0, **of_token: float) -> list[float]:
    """Return the counts; every line of text has a [CLS] and a [SEP]."""
    found = {"[CLS]": lines, "[SEP]": lines, **of_token}
    return [float(found.get(word, 0)) for word in WORDS]


def test_text_is_counted_token_by_token(tmp_path: Path, tokenizer: Any) -> None:
    text = write(tmp_path, "text.txt", "the cat sat\n\n   \nThe mat the\n")
    assert counts(text, tokenizer) == expected(lines=2, the=3, cat=1, sat=1, mat=1)


def test_special_tokens_count_once_per_text(tmp_path: Path, tokenizer: Any) -> None:
    text = write(tmp_path, "text.txt", "cat\n\nthe cat\n")
    assert counts(text, tokenizer) == expected(lines=2, cat=2, the=1)


def test_texts_and_parquet_columns_count_as_files_do(tmp_path: Path, tokenizer: Any) -> None:
    texts = ["the cat", "  ", "sat"]
    assert counts(texts, tokenizer) == expected(lines=2, the=1, cat=1, sat=1)
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    parquet.write_table(table({"story": [*texts, None]}), tmp_path / "a.parquet")
    found = token_weights(
        tmp_path / "a.parquet", tokenizer, SIZE, column="story", smoothing=0.0, power=1.0
    )
    assert found.tolist() == counts(texts, tokenizer)
    with pytest.raises(InputError, match=r"a\.parquet has no column 'text'; it has story"):
        token_weights(tmp_path / "a.parquet", tokenizer, SIZE)
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"b\.parquet is not a readable parquet file"):
        token_weights(tmp_path / "b.parquet", tokenizer, SIZE)


@pytest.mark.parametrize("lines", [1023, 1024, 1025, 2048])
def test_every_line_counts_once_whatever_the_batch(
    tmp_path: Path, tokenizer: Any, lines: int
) -> None:
    text = write(tmp_path, "text.txt", "the cat\n" * lines)
    assert counts(text, tokenizer) == expected(lines=lines, the=lines, cat=lines)


def test_tokens_beyond_the_table_are_ignored_in_text(tmp_path: Path, tokenizer: Any) -> None:
    text = write(tmp_path, "text.txt", "the mat\n")
    assert counts(text, tokenizer, size=MAT) == expected(lines=1, the=1)[:MAT]


def test_rows_beyond_the_vocabulary_count_zero(tmp_path: Path, tokenizer: Any) -> None:
    text = write(tmp_path, "text.txt", "the cat\n")
    known = expected(lines=1, the=1, cat=1)
    assert counts(text, tokenizer, size=SIZE + 3) == [*known, 0.0, 0.0, 0.0]


def test_json_object_maps_tokens(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, "counts.json", {"the": 40, "cat": 2.5, "[CLS]": 1})
    assert counts(path, tokenizer) == [
        {"the": 40, "cat": 2.5, "[CLS]": 1}.get(word, 0.0) for word in WORDS
    ]


def test_json_object_maps_ids(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, "counts.json", {"5": 40, "8": 2})
    assert counts(path, tokenizer) == expected(the=40, mat=2)


def test_key_that_is_a_token_is_no_id(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, "counts.json", {"7": 3})
    assert counts(path, tokenizer) == expected(**{"7": 3})


def test_token_and_its_id_add_up(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, "counts.json", {"the": 3, str(THE): 4})
    assert counts(path, tokenizer) == expected(the=7)


def test_json_list_is_in_the_order_of_the_rows(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, "counts.json", list(range(SIZE)))
    assert counts(path, tokenizer) == [float(index) for index in range(SIZE)]


def test_weights_are_powers_of_smoothed_counts(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, "counts.json", {"the": 14, "cat": 7})
    weights = token_weights(path, tokenizer, SIZE, smoothing=2.0, power=0.5)
    values = [2.0**0.5] * SIZE
    values[THE], values[CAT] = 4.0, 3.0
    torch.testing.assert_close(weights, torch.tensor(values, dtype=torch.float64))


def test_defaults_are_the_root_of_the_count_plus_ten(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, "counts.json", {"sat": 6})
    weights = token_weights(str(path), tokenizer, SIZE)
    assert weights.dtype == torch.float64
    assert weights.tolist() == [(16.0 if index == SAT else 10.0) ** 0.5 for index in range(SIZE)]


def test_power_zero_gives_equal_weights(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, "counts.json", {"the": 1000})
    assert token_weights(path, tokenizer, SIZE, power=0.0).tolist() == [1.0] * SIZE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "counts.json is not valid JSON"),
        ("3", "must hold an object of token counts or a list of counts"),
        ([1, 2, 3], f"lists 3 counts; one per row is needed: {SIZE}"),
        ({"dog": 3}, "counts 'dog', which is neither a token of the model nor an id"),
        ({"-1": 3}, "counts '-1', which is neither"),
        ({"\u00b2": 3}, "counts '\u00b2', which is neither"),
        ({"the": -1}, f"count -1 for id {THE}"),
        ({"the": "many"}, f"count 'many' for id {THE}"),
        ({"the": None}, f"count None for id {THE}"),
        ({"the": float("nan")}, f"count nan for id {THE}"),
        ({"the": float("inf")}, f"count inf for id {THE}"),
        ({"10": 3}, f"count 3 for id 10; counts are numbers >= 0 for ids below {SIZE}"),
        ({"the": 0}, "holds no token of the table"),
        ({}, "holds no token of the table"),
        ([0] * SIZE, "holds no token of the table"),
    ],
    ids=[
        "no json",
        "number",
        "short list",
        "unknown token",
        "negative id",
        "superscript",
        "negative count",
        "text as count",
        "null as count",
        "nan",
        "infinity",
        "id beyond the table",
        "all zero",
        "empty object",
        "list of zeros",
    ],
)
def test_unusable_counts_are_refused(
    tmp_path: Path, tokenizer: Any, content: object, message: str
) -> None:
    path = write(tmp_path, "counts.json", content)
    with pytest.raises(InputError, match=message):
        token_weights(path, tokenizer, SIZE)


def test_missing_file_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"absent\.txt is not a file"):
        token_weights(tmp_path / "absent.txt", tokenizer, SIZE)


def test_folder_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="is not a file"):
        token_weights(tmp_path, tokenizer, SIZE)


@pytest.mark.parametrize("name", ["text.txt", "counts.json"])
def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path, tokenizer: Any, name: str) -> None:
    (tmp_path / name).write_bytes(b"the \xff cat\n")
    with pytest.raises(InputError, match=f"{name} is not UTF-8 text: invalid start byte at byte 4"):
        token_weights(tmp_path / name, tokenizer, SIZE)


@pytest.mark.parametrize("text", ["", "\n \n"], ids=["empty", "blank"])
def test_text_without_words_is_refused(tmp_path: Path, tokenizer: Any, text: str) -> None:
    path = write(tmp_path, "text.txt", text)
    with pytest.raises(InputError, match=r"text\.txt holds no token of the table"):
        token_weights(path, tokenizer, SIZE)


def test_text_of_unknown_words_only_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, "text.txt", "ein ganz anderer satz\n")
    with pytest.raises(InputError, match=r"text\.txt holds no token of the table"):
        token_weights(path, tokenizer, SIZE)
