from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from kflats import FactorShape, InputError
from kflats.factors.shape import basis_parameters, label_dtype

PAPER: dict[str, Any] = {"num_embeddings": 30522, "embedding_dim": 384}
MIXED: dict[str, Any] = {
    "num_embeddings": 20,
    "embedding_dim": 6,
    "counts": (8, 5, 4, 3),
    "ranks": (4, 2, 3, 6),
    "basis_ids": (0, 0, 1, -1),
}


def changed(**changes: Any) -> FactorShape:
    return FactorShape(**{**MIXED, **changes})


def test_counts_of_equal_clusters_by_hand() -> None:
    shape = FactorShape.uniform(10, 4, n_clusters=2, rank=3)
    assert shape.num_parameters == 10 * 3 + 2 * 3 * 4
    assert shape.num_bytes(torch.float16) == 2 * 54 + 10
    assert shape.compression == 1 - 54 / 40
    assert (shape.n_clusters, shape.rank, shape.n_exact) == (2, 3, 0)
    assert shape.counts == (5, 5)


def test_exact_rows_cost_their_numbers_instead_of_coefficients() -> None:
    shape = FactorShape.uniform(10, 4, n_clusters=2, rank=3, affine=True, n_exact=3)
    assert shape.num_parameters == 7 * 3 + 3 * 4 + 2 * 3 * 4 + 2 * 4
    assert shape.num_bytes(torch.float32) == 4 * 65 + 10
    assert (shape.counts, shape.ranks) == ((4, 3, 3), (3, 3, 4))
    assert (shape.basis_ids, shape.n_exact, shape.n_clusters) == ((0, 1, -1), 3, 2)


def test_groups_on_one_basis_store_it_once_at_its_longest() -> None:
    shape = changed()
    assert shape.basis_ranks == (4, 3)
    assert shape.num_coefficients == 8 * 4 + 5 * 2 + 4 * 3 + 3 * 6
    assert shape.num_parameters == 72 + (4 + 3) * 6
    assert changed(affine=True).num_parameters == 72 + (4 + 3) * 6 + 2 * 6
    assert shape.num_bytes(torch.bfloat16) == 2 * 114 + 20
    assert (shape.n_clusters, shape.rank, shape.n_exact) == (2, 4, 3)


def test_order_of_the_groups_does_not_matter_to_the_bases() -> None:
    shape = changed(ranks=(6, 3, 2, 4), basis_ids=(-1, 1, 0, 0))
    assert shape.basis_ranks == (4, 3)
    assert shape.n_exact == 8


def test_rank_zero_leaves_the_means() -> None:
    shape = changed(ranks=(0, 0, 3, 6), affine=True)
    assert shape.basis_ranks == (0, 3)
    assert shape.num_parameters == 4 * 3 + 3 * 6 + (0 + 3) * 6 + 2 * 6
    assert FactorShape.uniform(10, 4, n_clusters=2, rank=0).num_parameters == 0


def test_echelon_form_stores_no_identity_by_hand() -> None:
    plain = FactorShape.uniform(20, 10, n_clusters=3, rank=4)
    assert plain.num_parameters == 20 * 4 + 3 * 4 * 10
    shape = FactorShape.uniform(20, 10, n_clusters=3, rank=4, echelon=True)
    assert shape.num_parameters == 20 * 4 + 3 * 4 * 6
    assert shape.num_bytes(torch.float16) == 2 * 152 + 20 + 3 * 2
    ragged = changed(ranks=(3, 3, 0, 6), affine=True, echelon=True)
    assert ragged.num_parameters == 13 * 3 + 3 * 6 + 3 * 3 + 3 + 6
    assert ragged.num_bytes(torch.float32) == 4 * 75 + 20 + 2 * 1


def test_full_rank_in_echelon_form_is_the_dense_table() -> None:
    shape = FactorShape.uniform(20, 8, n_clusters=1, rank=8, affine=True, echelon=True)
    assert shape.num_parameters == 20 * 8
    assert shape.num_bytes(torch.float32) == 4 * 160 + 1


@pytest.mark.parametrize(
    ("affine", "echelon", "numbers"),
    [
        (False, False, [0, 18, 36]),
        (True, False, [6, 24, 42]),
        (False, True, [0, 9, 0]),
        (True, True, [6, 12, 0]),
    ],
)
def test_parameters_of_one_basis(affine: bool, echelon: bool, numbers: list[int]) -> None:
    ranks = torch.tensor([0, 3, 6])
    found = basis_parameters(ranks, 6, affine=affine, echelon=echelon)
    assert found.tolist() == numbers
    each = [basis_parameters(rank, 6, affine=affine, echelon=echelon) for rank in (0, 3, 6)]
    assert each == numbers


def test_one_cluster_is_the_svd_formula() -> None:
    shape = FactorShape.uniform(**PAPER, n_clusters=1, rank=227)
    assert shape.num_parameters == 227 * (30522 + 384)
    assert shape.num_bytes(torch.float32) == 4 * shape.num_parameters


def test_one_cluster_with_exact_rows_has_labels() -> None:
    shape = FactorShape.uniform(100, 8, n_clusters=1, rank=2, n_exact=4)
    assert shape.num_parameters == 96 * 2 + 4 * 8 + 2 * 8
    assert shape.num_bytes(torch.float32) == 4 * 240 + 100


def test_table_of_exact_rows_only_is_the_dense_table() -> None:
    shape = FactorShape(
        num_embeddings=7, embedding_dim=3, counts=(7,), ranks=(3,), basis_ids=(-1,), affine=True
    )
    assert (shape.num_parameters, shape.compression) == (21, 0.0)
    assert (shape.n_clusters, shape.rank, shape.basis_ranks, shape.n_exact) == (0, 0, (), 7)
    assert shape.num_bytes(torch.float16) == 42


def test_clusters_may_be_empty() -> None:
    shape = FactorShape.uniform(2, 4, n_clusters=3, rank=1)
    assert shape.counts == (1, 1, 0)
    assert shape.num_parameters == 2 * 1 + 3 * 4


def test_sizes_do_not_depend_on_the_counts() -> None:
    even = FactorShape.uniform(12, 4, n_clusters=3, rank=2, n_exact=2)
    odd = FactorShape.uniform(12, 4, n_clusters=3, rank=2, n_exact=2, counts=(9, 1, 0))
    assert even.counts == (4, 3, 3, 2)
    assert odd.counts == (9, 1, 0, 2)
    assert odd.num_parameters == even.num_parameters
    assert odd.num_bytes(torch.float32) == even.num_bytes(torch.float32)


@pytest.mark.parametrize(
    ("n_groups", "dtype"),
    [(1, None), (2, torch.uint8), (256, torch.uint8), (257, torch.int16), (40000, torch.int32)],
)
def test_labels_take_the_smallest_type(n_groups: int, dtype: torch.dtype | None) -> None:
    assert label_dtype(n_groups) == dtype


def test_exact_rows_are_a_group_of_their_own_in_the_labels() -> None:
    full = FactorShape.uniform(1000, 4, n_clusters=256, rank=1)
    more = FactorShape.uniform(1000, 4, n_clusters=256, rank=1, n_exact=1)
    assert full.num_bytes(torch.float32) == 4 * full.num_parameters + 1000
    assert more.num_bytes(torch.float32) == 4 * more.num_parameters + 2000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_embeddings": 0}, "num_embeddings=0 must be at least 1"),
        ({"embedding_dim": 0}, "embedding_dim=0 must be at least 1"),
        ({"counts": (8, 5, 4, 2)}, "counts sum to 19; .* num_embeddings=20"),
        ({"counts": (8, 5, 8, -1)}, "counts sum to 20; they must be 0 or more"),
        ({"counts": (8, 5, 7)}, "have 3, 4 and 4 entries"),
        ({"ranks": (4, 2, 9)}, "have 4, 3 and 4 entries"),
        ({"counts": (), "ranks": (), "basis_ids": ()}, "have 0, 0 and 0 entries"),
        ({"ranks": (4, -1, 3, 6)}, "rank=-1 must be between 0 and embedding_dim=6"),
        ({"ranks": (4, 7, 3, 6)}, "rank=7 must be between 0 and embedding_dim=6"),
        ({"ranks": (4, 2, 3, 0)}, "rank=0 of rows stored as they are must be embedding_dim=6"),
        ({"echelon": True}, "groups of ranks 2 and 4 use basis 0: in echelon form all groups"),
        ({"ranks": (4, 2, 3, 5)}, "rank=5 of rows stored as they are must be embedding_dim=6"),
        ({"basis_ids": (0, 0, 2, -1)}, "without a gap"),
        ({"basis_ids": (1, 1, 1, -1)}, "without a gap"),
        ({"basis_ids": (0, 0, 1, -2)}, "without a gap"),
    ],
)
def test_contradictory_groups_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed(**changes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_embeddings": 0}, "num_embeddings=0 must be at least 1"),
        ({"n_clusters": 0}, "n_clusters=0 must be at least 1"),
        ({"rank": -1}, "rank=-1 must be between 0 and"),
        ({"rank": 5}, "rank=5 must be between 0 and embedding_dim=4"),
        ({"n_exact": -1}, "n_exact=-1 must be between 0 and num_embeddings=10"),
        ({"n_exact": 11}, "n_exact=11 must be between 0 and num_embeddings=10"),
        ({"counts": (5, 6)}, "counts sum to 11"),
        ({"counts": (10,)}, "have 1, 2 and 2 entries"),
    ],
)
def test_contradictory_sizes_are_refused(sizes: dict[str, Any], message: str) -> None:
    good = {"num_embeddings": 10, "embedding_dim": 4, "n_clusters": 2, "rank": 3}
    with pytest.raises(InputError, match=message):
        FactorShape.uniform(**{**good, **sizes})


@pytest.mark.parametrize(
    "shape",
    [
        changed(),
        changed(affine=True),
        FactorShape.uniform(**PAPER, n_clusters=3, rank=7),
        FactorShape.uniform(**PAPER, n_clusters=3, rank=7, echelon=True),
    ],
    ids=["mixed", "affine", "uniform", "echelon"],
)
def test_json_round_trip(shape: FactorShape) -> None:
    again = FactorShape.from_dict(json.loads(json.dumps(shape.to_dict())))
    assert again == shape
    assert hash(again) == hash(shape)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"colour": 1}, "has the fields .*colour"),
        ({"counts": ["8", 5, 4, 3]}, "holds whole numbers"),
        ({"counts": [8.0, 5, 4, 3]}, "holds whole numbers"),
        ({"counts": [[8, 5], 4, 3]}, "holds whole numbers"),
        ({"counts": None}, "holds whole numbers"),
        ({"ranks": [True, 2, 3, 6]}, "holds whole numbers"),
        ({"num_embeddings": "20"}, "holds whole numbers"),
        ({"embedding_dim": 6.0}, "holds whole numbers"),
        ({"affine": 1}, "holds whole numbers"),
        ({"echelon": 0}, "holds whole numbers"),
        ({"echelon": True}, "in echelon form all groups on one basis must have its rank"),
        ({"counts": [8, 5, 4, 2]}, "counts sum to 19"),
        ({"counts": 20}, "holds whole numbers"),
    ],
)
def test_damaged_json_is_refused(edit: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FactorShape.from_dict({**changed().to_dict(), **edit})


def test_missing_field_and_other_json_are_refused() -> None:
    data = changed().to_dict()
    del data["ranks"]
    with pytest.raises(InputError, match="a factor shape has the fields"):
        FactorShape.from_dict(data)
    with pytest.raises(InputError, match=r"got \['list'\]"):
        FactorShape.from_dict([])  # type: ignore[arg-type]
