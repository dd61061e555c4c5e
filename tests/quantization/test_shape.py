from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from kflats import InputError
from kflats.quantization.fit import code_table
from kflats.quantization.settings import CodeSettings
from kflats.quantization.shape import CodeShape
from tests.conftest import spectral_table

SIZES: dict[str, Any] = {
    "num_embeddings": 30,
    "embedding_dim": 16,
    "counts": (10, 8, 7, 5),
    "runs": (((4, 8), (1, 3)), (), ((16, 2), (3, 10)), ()),
    "basis_ids": (0, 0, 1, -1),
    "rotated": (True, False),
}


def shape(**changes: Any) -> CodeShape:
    """Return two bases, one of them an identity, rows at a mean, and exact rows."""
    return CodeShape(**{**SIZES, **changes})


def test_every_byte_is_counted_by_hand() -> None:
    found = shape()
    assert found.record_bytes == (1 + 4 + 1, 0, 1 + 4 + 3 + 2, 0)
    assert found.widths == (1, 3, 4)
    assert found.book_size == 2 + 2 + 8 + 16
    assert found.basis_ranks == (11, 12)
    assert found.directions == (1 + 11, 1)
    assert found.num_scales == 13 + 16
    records, labels, bases = 10 * 6 + 7 * 10, 30, 13 * 16
    numbers = 29 + 28 + 5 * 16
    assert found.num_bytes(torch.float32) == records + labels + bases + 4 * numbers
    assert found.num_bytes(torch.float16) == records + labels + bases + 2 * numbers
    wide = shape(basis_bits=16)
    assert wide.num_bytes(torch.float32) == found.num_bytes(torch.float32) + bases
    assert found.bits(torch.float32) == 8 * found.num_bytes(torch.float32) / (30 * 16)


def test_sizes_are_told() -> None:
    found = shape()
    assert (found.n_clusters, found.rank, found.rank_range, found.n_exact) == (2, 12, "11-12", 5)
    assert found.dense_parameters == 480
    assert found.num_parameters == 10 * 11 + 7 * 12 + (5 + 13) * 16
    assert found.compression == 1 - found.num_parameters / 480


def test_one_group_needs_no_labels() -> None:
    one = {"counts": (30,), "runs": (((4, 16),),), "basis_ids": (0,), "rotated": (False,)}
    assert shape(**one).num_bytes(torch.float32) == 30 * 9 + 16 + 4 * (1 + 16 + 18)
    linear = shape(**one, affine=False)
    assert linear.num_bytes(torch.float32) == 30 * 9 + 4 * (16 + 18)
    assert linear.rank_range == "16"


def test_a_shape_without_bases_has_exact_rows_only() -> None:
    exact = shape(counts=(30,), runs=((),), basis_ids=(-1,), rotated=())
    assert (exact.n_clusters, exact.rank, exact.rank_range, exact.n_exact) == (0, 0, "0", 30)
    assert exact.num_bytes(torch.float32) == 4 * (480 + 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("exact", [[], [0, 7]], ids=["no exact rows", "exact rows"])
@pytest.mark.parametrize(
    "form", [{"rotated": False}, {}, {"n_clusters": 2, "basis_bits": 16}], ids=str
)
def test_the_bytes_are_those_of_the_tensors(
    form: dict[str, Any], exact: list[int], dtype: torch.dtype
) -> None:
    codes = code_table(
        spectral_table().to(dtype),
        12_000,
        exact_ids=torch.tensor(exact).long(),
        settings=CodeSettings(**form),
    )
    assert codes.num_bytes == codes.shape.num_bytes(dtype)


@pytest.mark.parametrize("changes", [{}, {"affine": False}, {"basis_bits": 16}], ids=str)
def test_a_shape_comes_back_from_json(changes: dict[str, Any]) -> None:
    found = shape(**changes)
    assert CodeShape.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    "changes",
    [
        {"num_embeddings": 30.0},
        {"num_embeddings": "30"},
        {"num_embeddings": None},
        {"embedding_dim": True},
        {"counts": 30},
        {"counts": [10.0, 8, 7, 5]},
        {"counts": "abcd"},
        {"basis_ids": None},
        {"basis_ids": [0, 0, True, -1]},
        {"runs": 5},
        {"runs": [5, 5, 5, 5]},
        {"runs": [[[4, 8, 1]], [], [], []]},
        {"runs": [[[4]], [], [], []]},
        {"runs": [[[4.0, 8]], [], [], []]},
        {"rotated": [1, 0]},
        {"rotated": "yes"},
        {"affine": 1},
        {"affine": None},
        {"basis_bits": "8"},
    ],
    ids=str,
)
def test_values_of_a_wrong_kind_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a shape of packed codes holds whole numbers"):
        CodeShape.from_dict({**shape().to_dict(), **changes})


@pytest.mark.parametrize("name", SIZES)
def test_missing_fields_are_refused(name: str) -> None:
    data = shape().to_dict()
    del data[name]
    with pytest.raises(InputError, match="a shape of packed codes has the fields"):
        CodeShape.from_dict(data)


def test_unknown_fields_and_other_json_are_refused() -> None:
    with pytest.raises(InputError, match=r"has the fields .*got .*colour"):
        CodeShape.from_dict({**shape().to_dict(), "colour": "blue"})
    with pytest.raises(InputError, match=r"has the fields .*got \['list'\]"):
        CodeShape.from_dict([])  # type: ignore[arg-type]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"num_embeddings": 0}, "num_embeddings=0 must be at least 1"),
    "no columns": ({"embedding_dim": 0}, "embedding_dim=0 must be at least 1"),
    "fewer runs": ({"runs": ((), ())}, "have 4, 2 and 4 entries"),
    "no groups": ({"counts": (), "runs": (), "basis_ids": ()}, "have 0, 0 and 0 entries"),
    "other sum": ({"counts": (10, 8, 7, 6)}, "counts sum to 31"),
    "negative": ({"counts": (25, -2, 2, 5)}, "must be 0 or more"),
    "basis bits": ({"basis_bits": 4}, r"basis_bits=4 must be one of \[8, 16\]"),
    "gap": ({"basis_ids": (0, 0, 2, -1)}, "must name the 2 bases in order"),
    "order": ({"basis_ids": (1, 0, 0, -1)}, "must name the 2 bases in order"),
    "more bases": ({"rotated": (True, False, True)}, "must name the 3 bases in order"),
    "exact first": ({"basis_ids": (-1, 0, 1, 1)}, "at most one last group -1"),
    "two exact": ({"basis_ids": (0, 1, -1, -1)}, "at most one last group -1"),
    "other basis": ({"basis_ids": (0, 0, 1, -2)}, "at most one last group -1"),
    "width": ({"runs": (((7, 8),), (), (), ())}, r"descending widths of \[1, 2, 3"),
    "no width": ({"runs": (((0, 8),), (), (), ())}, "descending widths"),
    "ascending": ({"runs": (((1, 8), (4, 8)), (), (), ())}, "descending widths"),
    "twice": ({"runs": (((4, 8), (4, 8)), (), (), ())}, "descending widths"),
    "coded exact rows": ({"runs": ((), (), (), ((4, 8),))}, "none for rows stored as they are"),
    "too many": ({"runs": (((4, 8), (1, 9)), (), (), ())}, "from 1 to embedding_dim=16"),
    "none": ({"runs": (((4, 0),), (), (), ())}, "from 1 to embedding_dim=16"),
    "fewer than none": ({"runs": (((4, 9), (1, -1)), (), (), ())}, "from 1 to embedding_dim=16"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_sizes_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shape(**changes)
    data = {**shape().to_dict(), **changes}
    with pytest.raises(InputError, match=message):
        CodeShape.from_dict(json.loads(json.dumps(data)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_clusters": 0}, "n_clusters=0 must be at least 1"),
        ({"max_rungs": 0}, "max_rungs=0 must be at least 1"),
        ({"levels": "cubic"}, "levels='cubic' must be one of"),
        ({"basis_bits": 4}, "basis_bits=4 must be one of"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CodeSettings(**changes)
