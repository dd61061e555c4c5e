from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kflats import FactorizedEmbedding
from kflats.demo.compare import Row, compare, pairwise_cosines, sentences
from kflats.tables import find_tables

N, D = 400, 12


class BagOfWords(nn.Module):
    """An encoder that adds up the rows of hashed words; ``watch`` sees it at every call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(N, D, padding_idx=0)
        self.watch: Callable[[BagOfWords], None] = lambda encoder: None

    def encode(self, texts: list[str], **options: Any) -> Tensor:
        self.watch(self)
        ids = [[zlib.crc32(word.encode()) % N for word in text.split()] for text in texts]
        with torch.no_grad():
            return torch.stack([self.words(torch.tensor(row)).sum(0) for row in ids])


@pytest.fixture
def encoder() -> BagOfWords:
    return BagOfWords()


def rows_of(encoder: BagOfWords, **options: Any) -> list[Row]:
    (table,) = find_tables(encoder)
    return list(compare(encoder, table, (0.3, 0.6), (1, 3), **options))


def test_there_are_120_distinct_sentences() -> None:
    texts = sentences()
    assert len(texts) == len(set(texts)) == 120
    assert all(text == text.strip() != "" for text in texts)


def test_every_pair_of_sentences_is_compared_once(encoder: BagOfWords) -> None:
    cosines = pairwise_cosines(encoder, ["a b", "a b c", "d"])
    vectors = nn.functional.normalize(encoder.encode(["a b", "a b c", "d"]), dim=1)
    expected = torch.stack(
        [vectors[0] @ vectors[1], vectors[0] @ vectors[2], vectors[1] @ vectors[2]]
    )
    torch.testing.assert_close(cosines, expected)


def test_rows_are_dense_then_bits_then_factors(encoder: BagOfWords) -> None:
    methods = [
        (row.method, row.compression, row.n_clusters)[: 2 if row.method == "flats" else 3]
        for row in rows_of(encoder)
    ]
    assert methods == [
        ("dense", None, None),
        ("fp16", None, None),
        ("int8", None, None),
        ("int4", None, None),
        ("SVD", 0.3, 1),
        ("k = 3", 0.3, 3),
        ("flats", 0.3),
        ("SVD", 0.6, 1),
        ("k = 3", 0.6, 3),
        ("flats", 0.6),
    ]


def test_dense_row_is_the_reference(encoder: BagOfWords) -> None:
    assert rows_of(encoder)[0] == Row("dense", None, None, N * D, 4 * N * D, 0.0, 100.0)


def test_similarity_falls_with_the_size(encoder: BagOfWords) -> None:
    of = {(row.method, row.compression): row.similarity for row in rows_of(encoder)}
    assert of["fp16", None] > 99.99
    assert 100 > of["int8", None] > of["int4", None]
    assert of["SVD", 0.3] > of["SVD", 0.6]


def test_factors_are_tried_through_the_layer_that_would_be_shipped(encoder: BagOfWords) -> None:
    seen: list[str] = []
    encoder.watch = lambda self: seen.append(type(self.words).__name__)
    rows = rows_of(encoder)
    assert seen == ["Embedding"] * 4 + ["FactorizedEmbedding"] * 6
    assert [row.num_bytes for row in rows[1:4]] == [2 * N * D, N * (D + 2), N * (D // 2 + 2)]


def test_bytes_and_parameters_are_those_of_the_layer(encoder: BagOfWords) -> None:
    layers: list[FactorizedEmbedding] = []

    def keep(self: BagOfWords) -> None:
        if isinstance(self.words, FactorizedEmbedding):
            layers.append(self.words)

    encoder.watch = keep
    rows = rows_of(encoder)[4:]
    assert [row.num_bytes for row in rows] == [layer.num_bytes for layer in layers]
    assert [row.parameters for row in rows] == [layer.shape.num_parameters for layer in layers]


def test_padding_row_is_kept_in_every_table(encoder: BagOfWords) -> None:
    seen: list[int | None] = []
    encoder.watch = lambda self: seen.append(self.words.padding_idx)
    rows_of(encoder)
    assert seen == [0] * 10


def test_every_step_is_announced(encoder: BagOfWords) -> None:
    titles: list[str] = []
    rows = rows_of(encoder, on_step=titles.append)
    assert titles[:4] == ["dense", "fp16", "int8", "int4"]
    assert len(titles) == len(rows)


def test_encoder_has_its_own_table_after_every_row(encoder: BagOfWords) -> None:
    own, weight = encoder.words, encoder.words.weight.detach().clone()
    (table,) = find_tables(encoder)
    for _ in compare(encoder, table, (0.5,), (2,)):
        assert encoder.words is own
    assert torch.equal(own.weight, weight)


@pytest.mark.parametrize("call", [2, 6], ids=["bits", "factors"])
def test_encoder_has_its_own_table_after_an_error(encoder: BagOfWords, call: int) -> None:
    own, modules = encoder.words, []

    def fail(self: BagOfWords) -> None:
        modules.append(self.words)
        if len(modules) == call:
            raise RuntimeError("out of memory")

    encoder.watch = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        rows_of(encoder)
    assert modules[-1] is not own
    assert encoder.words is own


def test_modules_that_share_the_table_are_both_put_back(encoder: BagOfWords) -> None:
    other = nn.Embedding(N, D)
    other.weight = encoder.words.weight
    encoder.other = other
    own = encoder.words
    rows_of(encoder)
    assert encoder.words is own
    assert encoder.other is other


def test_row_becomes_a_dictionary(encoder: BagOfWords) -> None:
    row = rows_of(encoder)[-1]
    assert Row(**row.to_dict()) == row
