"""Semantic textual similarity: whether cosines of embeddings rank pairs as people do."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kflats.errors import InputError
from kflats.extras import need

HUB_DATASET = "mteb/stsbenchmark-sts"
_COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs with a similarity judged by people.

    Attributes
    ----------
    first, second : list of str
        The sentences.
    scores : list of float
        Their similarity, on any scale.
    source : str
        Where they come from.
    """

    first: list[str]
    second: list[str]
    scores: list[float]
    source: str


def load_pairs(data: str | Path | None = None, split: str = "test") -> Pairs:
    """Read sentence pairs from a file or from the Hub.

    Parameters
    ----------
    data : path, optional
        A parquet file with the columns sentence1, sentence2 and score (or label), or a folder
        with ``stsb_<split>.parquet`` or ``<split>.parquet``. None downloads STS-B from the Hub.
    split : str, default='test'
        Which part.

    Raises
    ------
    InputError
        If the file or a column is missing.
    """
    if data is None:
        return _from_hub(split)
    path = Path(data)
    if path.is_dir():
        names = [f"stsb_{split}.parquet", f"{split}.parquet"]
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise InputError(
                f"{path} holds neither {names[0]} nor {names[1]}; name the file itself."
            )
        path = found[0]
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; give a parquet file with the columns {', '.join(_COLUMNS)}, "
            "or leave --data out to download STS-B."
        )
    need("demo", "pandas", "pyarrow")
    import pandas

    try:
        frame = pandas.read_parquet(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file: {error}") from error
    if "score" not in frame.columns:
        frame = frame.rename(columns={"label": "score"})
    return _pairs({name: frame[name].tolist() for name in frame.columns}, str(path))


def _from_hub(split: str) -> Pairs:
    wanted = f"give a parquet file with the columns {', '.join(_COLUMNS)} (--data FILE)"
    need("glue", "datasets", instead=wanted)
    import datasets

    try:
        table = datasets.load_dataset(HUB_DATASET, split=split)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{HUB_DATASET} ({split}) could not be downloaded: {error}. Give a local parquet file "
            "with --data."
        ) from error
    return _pairs(table.to_dict(), f"{HUB_DATASET}:{split}")


def _pairs(columns: dict[str, list[Any]], source: str) -> Pairs:
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise InputError(
            f"{source} has the columns {sorted(columns)}; {', '.join(missing)} missing."
        )
    for name, kinds in zip(_COLUMNS, (str, str, Real), strict=True):
        for row, value in enumerate(columns[name]):
            if not isinstance(value, kinds):
                wanted = "a number" if kinds is Real else "text"
                raise InputError(f"{source}: {name} in row {row} is {value!r}, not {wanted}.")
    scores = [float(value) for value in columns["score"]]
    return Pairs(columns["sentence1"], columns["sentence2"], scores, source)


def embed(model: Any, sentences: list[str], batch_size: int = 64) -> Tensor:
    """Return unit sentence embeddings of shape (sentences, dim), each distinct one encoded once."""
    distinct = list(dict.fromkeys(sentences))
    place = {sentence: index for index, sentence in enumerate(distinct)}
    vectors = model.encode(
        distinct, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
    )
    vectors = torch.nn.functional.normalize(vectors.to(torch.float32).cpu(), dim=1)
    return vectors[[place[sentence] for sentence in sentences]]


def sts_spearman(model: Any, pairs: Pairs, batch_size: int = 64) -> float:
    """Return the Spearman correlation of cosines with the scores, times 100.

    Parameters
    ----------
    model : SentenceTransformer
        Anything with its ``encode``.
    pairs : Pairs
        At least two.
    batch_size : int, default=64
        Sentences per forward pass.

    Raises
    ------
    InputError
        If the correlation is not defined: fewer than two pairs, or constant values.
    """
    from scipy.stats import spearmanr

    if not pairs.scores:
        raise InputError(f"{pairs.source} holds no pair of sentences.")
    both = embed(model, [*pairs.first, *pairs.second], batch_size)
    first, second = both[: len(pairs.first)], both[len(pairs.first) :]
    cosines = (first * second).sum(1)
    if not bool(torch.isfinite(cosines).all()) or not np.isfinite(pairs.scores).all():
        raise InputError(f"{pairs.source}: a score or an embedding is NaN or infinite.")
    distinct = (len(set(pairs.scores)), len(set(cosines.tolist())))
    if min(distinct) < 2:
        raise InputError(
            f"{pairs.source}: {distinct[0]} distinct scores and {distinct[1]} distinct cosines; "
            "a rank correlation needs two of each."
        )
    return 100 * float(spearmanr(cosines.numpy(), pairs.scores).statistic)
