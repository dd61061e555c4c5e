from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from torch import Tensor

from kflats import Budget, BudgetError, FactorShape, ProjectiveClustering
from tests.conftest import planted, spectral_table

FORMS = pytest.mark.parametrize(
    "form",
    [{}, {"affine": True}, {"echelon": True}, {"affine": True, "echelon": True}],
    ids=["plain", "affine", "echelon", "affine echelon"],
)
LOSSES = ["squared", "power", "lp", "huber", "tukey", "truncated"]


def ragged(ranks: tuple[int, ...] = (1, 3, 9), n: int = 300, d: int = 20, seed: int = 0) -> Tensor:
    """Return rows near subspaces of different dimensions."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for rank in ranks:
        basis = torch.linalg.qr(torch.randn(d, rank, generator=generator)).Q.T
        parts.append(torch.randn(n, rank, generator=generator) @ basis)
    rows = torch.cat(parts)
    return rows + 0.02 * torch.randn(rows.shape, generator=generator)


def stored(model: ProjectiveClustering) -> int:
    """Return the numbers that the labels and ranks of a fit store, empty clusters left out."""
    labels = torch.as_tensor(model.labels_)
    counts = torch.bincount(labels, minlength=model.n_clusters).tolist()
    kept = [cluster for cluster, count in enumerate(counts) if count]
    return FactorShape(
        num_embeddings=len(labels),
        embedding_dim=model.n_features_in_,
        counts=tuple(counts[c] for c in kept),
        ranks=tuple(model.ranks_[c] for c in kept),
        basis_ids=tuple(range(len(kept))),
        affine=model.affine,
        echelon=model.echelon,
    ).num_parameters


def own_inertia(model: ProjectiveClustering, X: Tensor) -> float:
    """Return the squared distances of the rows to the flats of their labels, from scratch."""
    total = 0.0
    for cluster in range(model.n_clusters):
        rows = X[model.labels_ == cluster]
        if model.means_ is not None:
            rows = rows - model.means_[cluster]
        basis = model.bases_[cluster]
        total += float((rows - rows @ basis.T @ basis).square().sum())
    return total


@FORMS
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8, 1.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_inertia_never_rises_within_the_budget(
    form: dict[str, Any], share: float, weighted: bool
) -> None:
    for seed in range(3):
        X = spectral_table(300, 16, seed=seed)
        weights = torch.rand(300) if weighted else None
        numbers = int(share * X.numel())
        model = ProjectiveClustering(
            5, rank=Budget(num_parameters=numbers), tol=0, random_state=seed, **form
        ).fit(X, sample_weight=weights)
        assert stored(model) <= numbers
        history = model.inertia_history_
        assert all(later < earlier for earlier, later in pairwise(history))
        assert model.inertia_ == pytest.approx(history[-1], rel=1e-4, abs=1e-3)
        if not weighted:
            assert own_inertia(model, X) == pytest.approx(model.inertia_, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_budget_is_kept_under_every_loss_and_in_every_unit(loss: str, seed: int) -> None:
    X = spectral_table(300, 16, seed=seed)
    options: dict[str, Any] = {"rank": Budget(num_parameters=1900), "loss": loss, "affine": True}
    found = []
    for unit in (2.0**-16, 1.0, 2.0**13):
        model = ProjectiveClustering(4, random_state=seed, **options).fit(unit * X)
        assert stored(model) <= 1900
        history = model.inertia_history_
        assert all(later <= earlier for earlier, later in pairwise(history))
        assert model.inertia_ == pytest.approx(history[-1], rel=1e-3)
        found.append((model.ranks_, model.labels_.tolist()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("seed", range(3))
def test_budget_beats_one_rank_for_all_where_dimensions_differ(seed: int) -> None:
    X = ragged(seed=seed)
    uniform = ProjectiveClustering(3, rank=4, random_state=0).fit(X)
    budget = Budget(num_parameters=stored(uniform))
    model = ProjectiveClustering(3, rank=budget, random_state=0).fit(X)
    assert model.inertia_ < 0.5 * uniform.inertia_
    assert len(set(model.ranks_)) == 3


def test_list_gives_the_ranks_in_order() -> None:
    X = ragged()
    start = torch.arange(3).repeat_interleave(300)
    model = ProjectiveClustering(3, rank=[1, 3, 9], init=start).fit(X)
    assert model.ranks_ == (1, 3, 9)
    assert model.inertia_ < 1.01 * 900 * 20 * 0.02**2
    assert model.price_ == 0.0
    other = ProjectiveClustering(3, rank=[9, 3, 1], init=start, max_iter=1).fit(X)
    assert other.ranks_ == (9, 3, 1)
    assert other.inertia_ > 10 * model.inertia_


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
def test_list_of_equal_ranks_is_the_number(table: Tensor, affine: bool) -> None:
    options: dict[str, Any] = {"affine": affine, "random_state": 0}
    one = ProjectiveClustering(3, rank=6, **options).fit(table)
    each = ProjectiveClustering(3, rank=(6, 6, 6), **options).fit(table)
    fixed = ProjectiveClustering(3, rank=Budget(rank=6), **options).fit(table)
    assert one.ranks_ == each.ranks_ == fixed.ranks_ == (6, 6, 6)
    assert torch.equal(one.bases_, each.bases_)
    assert torch.equal(one.bases_, fixed.bases_)
    assert one.inertia_history_ == each.inertia_history_ == fixed.inertia_history_


def test_one_cluster_with_a_budget_equals_the_truncated_svd(table: Tensor) -> None:
    model = ProjectiveClustering(1, rank=Budget(num_parameters=5 * (400 + 24) + 423)).fit(table)
    assert model.ranks_ == (5,)
    values = torch.linalg.svdvals(table.double())
    assert model.inertia_ == pytest.approx(float(values[5:].square().sum()), rel=1e-5)


def test_one_affine_cluster_with_a_budget_equals_principal_components(table: Tensor) -> None:
    X = (table + 3.0).double().numpy()
    budget = Budget(num_parameters=5 * 400 + 6 * 24)
    model = ProjectiveClustering(1, rank=budget, affine=True).fit(X)
    components = PCA(5).fit(X)
    assert model.ranks_ == (5,)
    assert model.means_ is not None
    np.testing.assert_allclose(model.means_[0], components.mean_)
    np.testing.assert_allclose(
        np.abs(model.bases_[0] @ components.components_.T), np.eye(5), atol=1e-6
    )
    residual = X - components.inverse_transform(components.transform(X))
    assert model.inertia_ == pytest.approx(float((residual**2).sum()), rel=1e-9)


@pytest.mark.parametrize("rank", [6, Budget(num_parameters=12_000)], ids=["rank", "budget"])
def test_search_in_bfloat16_finds_nearly_the_same_inertia(rank: int | Budget) -> None:
    X = spectral_table(2000, 24)
    options: dict[str, Any] = {"rank": rank, "affine": True, "random_state": 0}
    wide = ProjectiveClustering(5, **options).fit(X)
    narrow = ProjectiveClustering(5, search_dtype="bfloat16", **options).fit(X)
    assert narrow.inertia_ == pytest.approx(wide.inertia_, rel=0.05)
    assert narrow.inertia_ != wide.inertia_
    if isinstance(rank, int):  # the last assignment is in the working type
        torch.testing.assert_close(narrow.predict(X), narrow.labels_)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_shapes_and_kinds_where_ranks_differ(kind: str) -> None:
    X: Any = ragged().numpy() if kind == "numpy" else ragged()
    start = np.arange(3).repeat(300)
    model = ProjectiveClustering(3, rank=[1, 3, 9], init=start, affine=True).fit(X)
    kinds = np.ndarray if kind == "numpy" else Tensor
    assert model.bases_.shape == (3, 9, 20)
    assert not np.asarray(model.bases_[0, 1:]).any()
    assert not np.asarray(model.bases_[1, 3:]).any()
    labels, coefficients = model.predict(X), model.transform(X)
    assert coefficients.shape == (900, 9)
    assert not np.asarray(coefficients[labels == 0][:, 1:]).any()
    rows = model.inverse_transform(coefficients, labels)
    assert rows.shape == X.shape
    assert float(((X - rows) ** 2).sum()) == pytest.approx(model.inertia_, rel=1e-4)
    assert model.get_feature_names_out().shape == (9,)
    for array in (labels, coefficients, rows, model.labels_, model.bases_, model.means_):
        assert isinstance(array, kinds)


def test_budget_is_a_parameter_like_others(table: Tensor) -> None:
    budget = Budget(compression=0.5)
    model = ProjectiveClustering(3, rank=budget, random_state=0)
    assert model.get_params()["rank"] == budget
    assert clone(model).rank == budget
    fitted = clone(model).fit(table)
    assert "compression=0.5" in repr(model)
    again = model.set_params(rank=Budget(compression=0.7)).fit(table)
    assert again.inertia_ > fitted.inertia_
    assert stored(again) <= 0.3 * table.numel()


def test_price_decides_where_a_new_row_belongs() -> None:
    X = ragged()
    model = ProjectiveClustering(3, rank=Budget(num_parameters=4300), random_state=0).fit(X)
    small = min(range(3), key=lambda cluster: model.ranks_[cluster])
    assert set(model.predict(torch.zeros(4, 20)).tolist()) == {small}
    large = max(range(3), key=lambda cluster: model.ranks_[cluster])
    far = 1e3 * model.bases_[large][:1]
    assert model.predict(far).tolist() == [large]


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ([1, 2], r"rank=\[1, 2\] must be 3 whole numbers, one per cluster, between 0 and n_feat"),
        ([1, 2, 3, 4], "must be 3 whole numbers"),
        ([1, 2, 25], "between 0 and n_features=24"),
        ([1, 2, -1], r"rank=\[1, 2, -1\] must be"),
        ([1, 2, 1.5], r"rank=\[1, 2, 1.5\] must be 3 whole numbers"),
        ("3", "'rank' parameter"),
        (Budget(rank=25), "rank=25 must be between 1 and n_features=24"),
    ],
)
def test_wrong_ranks_are_refused(table: Tensor, rank: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectiveClustering(3, rank=rank).fit(table)


def test_budget_below_its_labels_is_refused(table: Tensor) -> None:
    with pytest.raises(BudgetError, match=r"a size of 399 bytes cannot be met: the labels of 400"):
        ProjectiveClustering(3, rank=Budget(num_bytes=399)).fit(table)
    with pytest.raises(BudgetError, match=r"3 means alone take 72 numbers, more than the 71"):
        ProjectiveClustering(3, rank=Budget(num_parameters=71), affine=True).fit(table)


def test_budget_for_nothing_but_the_means_gives_rank_zero(table: Tensor) -> None:
    model = ProjectiveClustering(
        3, rank=Budget(num_parameters=80), affine=True, random_state=0
    ).fit(table)
    assert model.ranks_ == (0, 0, 0)
    assert model.bases_.shape == (3, 0, 24)
    assert model.transform(table).shape == (400, 0)
    rows = model.inverse_transform(model.transform(table), model.labels_)
    assert model.means_ is not None
    torch.testing.assert_close(rows, model.means_[model.labels_])
    assert model.inertia_ == pytest.approx(float((table - rows).square().sum()), rel=1e-5)


@FORMS
def test_budget_for_everything_is_exact(table: Tensor, form: dict[str, Any]) -> None:
    model = ProjectiveClustering(3, rank=Budget(num_parameters=10**7), random_state=0, **form).fit(
        table
    )
    eps = torch.finfo(table.dtype).eps
    assert model.inertia_ <= 24 * eps * float(table.square().sum())


def test_rows_that_are_few_or_equal() -> None:
    rows = torch.randn(5, 4)
    each = ProjectiveClustering(5, rank=Budget(num_parameters=40), affine=True).fit(rows)
    assert stored(each) <= 40
    equal = ProjectiveClustering(3, rank=Budget(num_parameters=30), affine=True).fit(
        torch.ones(20, 4)
    )
    assert equal.inertia_ <= 1e-10
    column = ProjectiveClustering(2, rank=Budget(num_parameters=15), affine=True).fit(
        torch.randn(20, 1)
    )
    assert stored(column) <= 15


@pytest.mark.parametrize("rank", [5, Budget(num_parameters=1500)], ids=["rank", "budget"])
def test_clusters_without_weight_have_finite_flats(rank: int | Budget) -> None:
    X = spectral_table(300, 16)
    weights = torch.ones(300)
    weights[:200] = 0.0
    for seed in range(3):
        start = torch.randint(1, 3, (300,), generator=torch.Generator().manual_seed(seed))
        start[:200] = 0
        model = ProjectiveClustering(3, rank=rank, affine=True, init=start).fit(
            X, sample_weight=weights
        )
        assert bool(torch.isfinite(model.bases_).all())
        assert model.means_ is not None
        assert float(model.means_.abs().max()) < 10
        assert np.isfinite(model.inertia_)


def test_planted_dimensions_are_found_in_float64() -> None:
    X, _, _ = planted(n_per_cluster=200, noise=1e-3)
    numbers = 600 * 2 + 3 * 2 * 12
    model = ProjectiveClustering(
        3, rank=Budget(num_parameters=numbers), init="random", random_state=0
    ).fit(X)
    assert model.bases_.dtype == torch.float64
    assert model.ranks_ == (2, 2, 2)
    assert model.inertia_ <= 1.01 * X.numel() * 1e-6
