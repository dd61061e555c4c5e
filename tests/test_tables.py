from __future__ import annotations

import pytest
import torch
from torch import nn

from kflats import CompressionConfig, InputError, UnsupportedModelError, compress_
from kflats.tables import embedding_tables, find_tables, scale_of
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
    with pytest.raises(InputError, match=r"'wrods' is not an embedding .* \['words', 'places'\]"):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_is_read_and_tried(dtype: torch.dtype) -> None:
    embedding = Scaled(30, 8, dtype=dtype)
    assert scale_of(embedding) == 4.0
    embedding.embed_scale = torch.tensor(33.94)
    assert scale_of(embedding) == float(torch.tensor(33.94))
    embedding.embed_scale = torch.tensor(33.94).to(dtype)
    assert scale_of(embedding) == float(torch.tensor(33.94).to(dtype))
    assert scale_of(nn.Embedding(3, 2)) == 1.0


def test_embedding_that_does_something_else_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Normed does more than look up"):
        scale_of(Normed(30, 8))
