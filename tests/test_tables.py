from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from kflats import CompressionConfig, InputError, UnsupportedModelError, compress_
from kflats.tables import check_replaceable, embedding_tables, find_tables, scale_of
from tests.conftest import tiny_bert


class TwoTables(nn.Module):
    """Two embeddings and no way to ask for the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.places = nn.Embedding(20, 8)


class Scaled(nn.Embedding):
    """An embedding that scales its rows, as some transformers models do."""

    embed_scale: float | torch.Tensor = 4.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input) * self.embed_scale


class Speaking(TwoTables):
    """Says which tables hold the tokens, as models of transformers do."""

    def __init__(self, out: int = 50) -> None:
        super().__init__()
        self.head = nn.Linear(8, out)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.head


class Normed(Scaled):
    """Claims a scale but does something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return nn.functional.normalize(super().forward(input), dim=-1)


def test_transformers_say_which_table_is_theirs() -> None:
    (table,) = find_tables(tiny_bert())
    assert table.name == "embeddings.word_embeddings"


def test_only_table_of_a_plain_module_is_taken() -> None:
    (table,) = find_tables(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 1)))
    assert table.name == "0"


def test_several_tables_must_be_named() -> None:
    with pytest.raises(InputError, match=r"no token table .* \['words', 'places'\]"):
        find_tables(TwoTables())
    named = find_tables(TwoTables(), ["places", "words", "places"])
    assert [table.name for table in named] == ["places", "words"]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"'wrods' is no dense embedding or head .* \['words', 'places'\]"
    ):
        find_tables(TwoTables(), ["wrods"])


def test_factorised_table_is_not_found_again() -> None:
    model = nn.Sequential(nn.Embedding(90, 8))
    compress_(model, CompressionConfig(compression=0.5, n_clusters=2))
    with pytest.raises(InputError, match="already factorised"):
        find_tables(model)


def test_shared_table_is_one_table_with_all_names() -> None:
    model = TwoTables()
    model.places = nn.Embedding(50, 8)
    model.places.weight = model.words.weight
    model.add_module("again", model.words)
    (table,) = embedding_tables(model)
    assert table.names == (("words", "again"), ("places",))


def test_tied_head_belongs_to_the_table_and_comes_last() -> None:
    model = Speaking()
    model.head.weight = model.words.weight
    (table,) = find_tables(model)
    assert table.names == (("words",), ("head",))
    assert table.all_names == ("words", "head")
    assert table.embedding is model.words
    assert [table.name for table in embedding_tables(model)] == ["words", "places"]
    check_replaceable(model, table)


def test_untied_head_of_the_same_length_is_a_table_of_its_own() -> None:
    model = Speaking()
    words, head = find_tables(model)
    assert (words.name, head.name) == ("words", "head")
    assert [table.name for table in embedding_tables(model)] == ["words", "places"]
    with pytest.raises(InputError, match="'head' is read by an output head only"):
        head.embedding  # noqa: B018


def test_output_layer_of_another_length_is_no_head() -> None:
    (table,) = find_tables(Speaking(out=3))
    assert table.name == "words"


def test_linear_layer_may_be_named() -> None:
    (table,) = find_tables(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 7)), ["1"])
    assert (table.name, tuple(table.weight.shape)) == ("1", (7, 4))


def test_table_that_is_a_bare_parameter_too_is_refused() -> None:
    model = Speaking()
    model.register_parameter("out", model.get_parameter("words.weight"))
    with pytest.raises(UnsupportedModelError, match=r"'words' is also the parameter \.out of a"):
        check_replaceable(model, find_tables(model)[0])


def test_head_that_does_something_else_is_refused() -> None:
    class Squashed(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input).tanh()

    model = Speaking()
    model.head = Squashed(8, 50)
    model.head.weight = model.words.weight
    config = CompressionConfig(rank=2, n_clusters=2)
    with pytest.raises(UnsupportedModelError, match="Squashed reads 'words' and is no plain"):
        compress_(model, config)
    assert type(model.words) is nn.Embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_is_read_and_tried(dtype: torch.dtype) -> None:
    embedding = Scaled(30, 8, dtype=dtype)
    assert scale_of(embedding) == 4.0
    embedding.embed_scale = torch.tensor(33.94)
    assert scale_of(embedding) == float(torch.tensor(33.94))
    embedding.embed_scale = torch.tensor(33.94).to(dtype)
    assert scale_of(embedding) == float(torch.tensor(33.94).to(dtype))
    assert scale_of(nn.Embedding(3, 2)) == 1.0


def test_scale_of_a_float64_table() -> None:
    embedding = Scaled(400, 24, dtype=torch.float64)
    embedding.embed_scale = 32**0.5
    assert scale_of(embedding) == 32**0.5


def test_embedding_that_does_something_else_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Normed does more than look up"):
        scale_of(Normed(30, 8))


class Marked(Scaled):
    """Gives one id a row of its own, as the embedding of T5Gemma 2 does."""

    def __init__(self, own: bool) -> None:
        super().__init__(30, 8)
        self.mark = nn.Parameter(torch.ones(8)) if own else None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        rows = super().forward(input)
        mark = torch.ones(8) if self.mark is None else self.mark
        return torch.where((input == 13)[..., None], mark, rows)


@pytest.mark.parametrize(("own", "message"), [(True, "it has mark too"), (False, "does more")])
def test_row_outside_the_table_is_refused(own: bool, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        scale_of(Marked(own))


def test_zero_rows_of_the_padding_are_known() -> None:
    model: Any = nn.Sequential(nn.Embedding(9, 4, padding_idx=2))
    (table,) = find_tables(model)
    assert table.zero_ids == (2,)
    with torch.no_grad():
        model[0].weight[2, 1] = 0.5
    assert not table.zero_ids


class Towers(nn.Module):
    """Names no token table, as OWLv2 does, and has one with the size of the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.config = transformers.BertConfig(vocab_size=vocabulary)
        self.words, self.places = nn.Embedding(50, 8), nn.Embedding(20, 8)

    def get_input_embeddings(self) -> nn.Module:
        return nn.Conv2d(3, 8, 2)


def test_table_with_the_size_of_the_vocabulary_is_taken_where_none_is_named() -> None:
    (table,) = find_tables(Towers(50))
    assert table.name == "words"
    with pytest.raises(InputError, match=r"no token table .* \['words', 'places'\]"):
        find_tables(Towers(51))
