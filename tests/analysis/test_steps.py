from __future__ import annotations

import pytest
import torch

from kflats.analysis.dictionary import dictionary_error
from kflats.analysis.steps import STEPS, Step, steps
from kflats.errors import BudgetError
from tests.conftest import planted


def rows_of(compression: float = 0.4, k: int = 3, **options: object) -> list[Step]:
    table, _, _ = planted(200, 3, 4, 16, noise=0.1, seed=0)
    return list(steps(table.float(), compression, k, **options))  # type: ignore[arg-type]


def test_every_row_stays_within_the_budget() -> None:
    found = rows_of()
    assert [row.name for row in found] == ["SVD", *STEPS, "+ number of flats chosen"]
    assert all(row.num_parameters <= 0.6 * 600 * 16 for row in found)
    assert [row.n_clusters for row in found[:-1]] == [1] + [3] * len(STEPS)


def test_extensions_pay_on_a_union_of_subspaces() -> None:
    of = {row.name: row.squared_relative_error for row in rows_of(compression=0.7)}
    assert of["+ start from directions"] < of["SVD"]
    assert of["+ echelon form"] <= of["+ means"] * 1.01
    assert of["+ number of flats chosen"] < of["SVD"]


def test_rows_can_be_chosen_and_are_announced() -> None:
    titles: list[str] = []
    found = rows_of(names=("+ own ranks",), on_start=titles.append)
    assert [row.name for row in found] == titles == ["SVD", "+ own ranks", titles[-1]]


def test_rows_that_do_not_fit_are_left_out() -> None:
    names = [row.name for row in rows_of(compression=0.93, k=40)]
    assert names[0] == "SVD"
    assert "one rank, random start" not in names


def test_dictionary_of_the_subspaces_finds_them() -> None:
    table, _, _ = planted(100, 2, 2, 12, noise=0.02, seed=0)
    found = dictionary_error(table.float(), 0.6, 16, max_iter=30)
    assert found.n_nonzero == int(0.4 * 200 * 12 - 16 * 12) // 200
    assert found.num_parameters <= 0.4 * 200 * 12
    assert found.squared_relative_error < 0.05


def test_dictionary_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match="leaves no coefficient for 10 rows"):
        dictionary_error(torch.randn(10, 8), 0.5, 20)
