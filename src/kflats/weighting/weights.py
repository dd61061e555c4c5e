"""Row weights from token counts: a table should be exact where text uses it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kflats.errors import InputError
from kflats.extras import need

_LINES_PER_BATCH = 1024


def token_weights(
    source: str | Path | Iterable[str],
    tokenizer: Any,
    num_embeddings: int,
    *,
    column: str = "text",
    smoothing: float = 10.0,
    power: float = 0.5,
) -> Tensor:
    """Return one weight per token id: ``(count + smoothing) ** power``.

    Parameters
    ----------
    source : path or iterable of str
        A UTF-8 text file, a ``.parquet`` file, texts such as the column of a dataset, or a
        ``.json`` file with an object that maps tokens (or ids) to counts, or a list of one count
        per id.
    tokenizer : transformers tokenizer
        Splits the texts, with its special tokens around each line, and knows the tokens of the
        JSON object.
    num_embeddings : int
        Rows of the table.
    column : str, default='text'
        Of the parquet file.
    smoothing : float, default=10.0
        Added to every count, so that rows which the text does not use still matter.
    power : float, default=0.5
        Of the smoothed count. 1 weights by frequency, 0 gives equal weights; in between, rows
        that the text happens to lack do not pay for the others.

    Returns
    -------
    Tensor of shape (num_embeddings,), float64
        For ``sample_weight``.

    Raises
    ------
    InputError
        If the file is missing or not in one of these forms, names an unknown token or column, or
        holds no known token at all.
    """
    if isinstance(source, str | Path) and Path(source).suffix == ".json":
        path = _existing(source)
        with _utf8(path):
            counts = known = _from_json(path, tokenizer, num_embeddings)
    else:
        counts = _from_texts(read_texts(source, column), tokenizer, num_embeddings)
        special = [index for index in tokenizer.all_special_ids if index < num_embeddings]
        known = counts.clone()
        known[special] = 0.0  # they come with every text, whatever its language
    if not bool((known > 0).any()):
        name = source if isinstance(source, str | Path) else "the texts"
        raise InputError(f"{name} holds no token of the table; give text in its language.")
    return (counts + smoothing) ** power


def read_texts(source: str | Path | Iterable[str], column: str = "text") -> Iterator[str]:
    """Yield the non-empty texts of a file, line by line, of a parquet column, or of an iterable.

    Raises
    ------
    InputError
        If the file is missing, is no UTF-8 text, or has no such column.
    """
    if not isinstance(source, str | Path):
        yield from (text for text in source if text.strip())
        return
    path = _existing(source)
    if path.suffix == ".parquet":
        yield from _column(path, column)
        return
    with _utf8(path), path.open(encoding="utf-8") as lines:
        yield from (line.strip() for line in lines if line.strip())


def check_texts(source: str | Path | None) -> None:
    """Check that the file is there and its format can be read; done before long work.

    Raises
    ------
    InputError
        If there is no such file.
    MissingExtraError
        If it is a parquet file and pyarrow is not installed.
    """
    if source is not None:
        _existing(source)


@contextmanager
def _utf8(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}."
        ) from error


def _existing(source: str | Path) -> Path:
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"{path} is not a file; give a text file, a parquet file or a JSON file of counts."
        )
    if path.suffix == ".parquet":
        need("demo", "pyarrow")
    return path


def _column(path: Path, column: str) -> Iterator[str]:
    from pyarrow import ArrowInvalid, parquet

    try:
        names = parquet.read_schema(path).names
    except ArrowInvalid as error:
        raise InputError(f"{path} is not a readable parquet file: {error}") from error
    if column not in names:
        raise InputError(f"{path} has no column {column!r}; it has {', '.join(names)}.")
    for text in parquet.read_table(path, columns=[column])[column].to_pylist():
        if isinstance(text, str) and text.strip():
            yield text


def _from_texts(texts: Iterator[str], tokenizer: Any, num_embeddings: int) -> Tensor:
    counts: Counter[int] = Counter()
    while batch := list(islice(texts, _LINES_PER_BATCH)):
        counts.update(_ids(batch, tokenizer))
    result = torch.zeros(num_embeddings, dtype=torch.float64)
    for index, count in counts.items():
        if index < num_embeddings:
            result[index] = count
    return result


def _ids(batch: list[str], tokenizer: Any) -> list[int]:
    encoded = tokenizer(batch, verbose=False)["input_ids"]
    return [index for ids in encoded for index in ids]


def _from_json(path: Path, tokenizer: Any, num_embeddings: int) -> Tensor:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if isinstance(data, list):
        pairs = list(enumerate(data))
        if len(data) != num_embeddings:
            raise InputError(
                f"{path} lists {len(data)} counts; one per row is needed: {num_embeddings}."
            )
    elif isinstance(data, dict):
        vocabulary = tokenizer.get_vocab()
        pairs = [(_index(key, vocabulary, path), count) for key, count in data.items()]
    else:
        raise InputError(f"{path} must hold an object of token counts or a list of counts.")
    result = torch.zeros(num_embeddings, dtype=torch.float64)
    for index, count in pairs:
        usable = isinstance(count, int | float) and 0 <= count < float("inf")
        if not usable or index >= num_embeddings:
            raise InputError(
                f"{path}: count {count!r} for id {index}; counts are numbers >= 0 for ids below "
                f"{num_embeddings}."
            )
        result[index] += count
    return result


def _index(key: str, vocabulary: dict[str, int], path: Path) -> int:
    if key in vocabulary:
        return vocabulary[key]
    if key.isascii() and key.isdigit():
        return int(key)
    raise InputError(f"{path} counts {key!r}, which is neither a token of the model nor an id.")
