"""Row weights from token counts: a table should be exact where text uses it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kflats.errors import InputError

_LINES_PER_BATCH = 1024


def token_weights(
    source: str | Path,
    tokenizer: Any,
    num_embeddings: int,
    *,
    smoothing: float = 1.0,
    power: float = 0.5,
) -> Tensor:
    """Return one weight per token id: ``(count + smoothing) ** power``.

    Parameters
    ----------
    source : path
        A UTF-8 text file, or a ``.json`` file with an object that maps tokens (or ids) to
        counts, or a list of one count per id.
    tokenizer : transformers tokenizer
        Splits the text and knows the tokens of the JSON object.
    num_embeddings : int
        Rows of the table.
    smoothing : float, default=1.0
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
        If the file is missing or not in one of the three forms, names an unknown token, or
        holds no known token at all.
    """
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a text file or a JSON file of counts.")
    unknown = None
    try:
        if path.suffix == ".json":
            counts = _from_json(path, tokenizer, num_embeddings)
        else:
            counts = _from_text(path, tokenizer, num_embeddings)
            unknown = getattr(tokenizer, "unk_token_id", None)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}."
        ) from error
    known = counts.clone()
    if unknown is not None and unknown < num_embeddings:
        known[unknown] = 0.0
    if not bool((known > 0).any()):
        raise InputError(f"{path} holds no token of the table; give text in its language.")
    return (counts + smoothing) ** power


def _from_text(path: Path, tokenizer: Any, num_embeddings: int) -> Tensor:
    counts: Counter[int] = Counter()
    with path.open(encoding="utf-8") as lines:
        batch: list[str] = []
        for line in lines:
            if line.strip():
                batch.append(line.strip())
            if len(batch) == _LINES_PER_BATCH:
                counts.update(_ids(batch, tokenizer))
                batch = []
        counts.update(_ids(batch, tokenizer))
    result = torch.zeros(num_embeddings, dtype=torch.float64)
    for index, count in counts.items():
        if index < num_embeddings:
            result[index] = count
    return result


def _ids(batch: list[str], tokenizer: Any) -> list[int]:
    if not batch:
        return []
    encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
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
