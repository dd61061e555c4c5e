from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

from kflats import FitProgress, InputError, ProjectiveClustering
from tests.conftest import planted, spectral_table

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a start draws random numbers per row, so a repeated row changes it, as for KMeans; "
        "test_weight_two_equals_two_copies shows the equivalence from one start"
    ),
}
"""Checks of scikit-learn that are not met, with the reason."""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        ProjectiveClustering(),
        ProjectiveClustering(n_clusters=2, affine=True),
        ProjectiveClustering(n_clusters=2, init="random", assignment="nearest"),
    ],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def test_hand_worked_inertia() -> None:
    X = np.array([[3.0, 0.0], [5.0, 0.0], [0.0, 2.0], [0.0, 4.0], [1.0, 10.0]])
    model = ProjectiveClustering(2, rank=1, init=np.array([0, 0, 1, 1, 1]), tol=0).fit(X)
    moments = X[2:].T @ X[2:]
    assert model.inertia_ == pytest.approx(np.linalg.eigvalsh(moments)[0])
    np.testing.assert_array_equal(model.labels_, [0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("init", "affine"),
    [("grown", False), ("random", False), ("grown", True), ("spherical", True)],
)
def test_planted_subspaces_are_recovered(init: str, affine: bool) -> None:
    X, labels, _ = planted(noise=1e-3)
    if affine:
        X = X + 5 * torch.eye(3, 12, dtype=X.dtype)[labels]
    model = ProjectiveClustering(
        3, rank=2, init=init, affine=affine, n_init=10, random_state=0, tol=0
    ).fit(X)
    assert adjusted_rand_score(labels, model.labels_) == pytest.approx(1.0)


def test_one_cluster_equals_truncated_svd(table: Tensor) -> None:
    model = ProjectiveClustering(1, rank=5, dtype="float64").fit(table)
    values = torch.linalg.svdvals(table.double())
    assert model.inertia_ == pytest.approx(float(values[5:].square().sum()), rel=1e-6)


def test_one_affine_cluster_equals_principal_components(table: Tensor) -> None:
    shifted = table + 100.0
    model = ProjectiveClustering(1, rank=5, affine=True).fit(shifted)
    centred = shifted.double() - shifted.double().mean(0)
    expected = float(torch.linalg.svdvals(centred)[5:].square().sum())
    assert model.inertia_ == pytest.approx(expected, rel=1e-3)
    assert model.means_ is not None
    torch.testing.assert_close(model.means_[0], shifted.mean(0), rtol=1e-5, atol=1e-4)


def test_parallel_lines_are_two_flats() -> None:
    t = torch.linspace(-1, 1, 20)
    X = torch.cat([torch.stack([t, torch.full_like(t, y)], dim=1) for y in (5.0, -5.0)])
    model = ProjectiveClustering(2, rank=1, affine=True, random_state=0).fit(X)
    assert model.inertia_ <= 1e-5
    assert len(set(model.labels_[:20].tolist())) == len(set(model.labels_[20:].tolist())) == 1
    assert ProjectiveClustering(2, rank=1, random_state=0).fit(X).inertia_ > 0.1


def test_full_rank_is_exact(table: Tensor) -> None:
    with pytest.warns(ConvergenceWarning, match="clusters are empty"):
        model = ProjectiveClustering(3, rank=24, random_state=0).fit(table)
    eps = torch.finfo(table.dtype).eps
    assert model.inertia_ <= 24 * eps * float(table.square().sum())
    assert set(model.labels_.tolist()) == {0}


@pytest.mark.parametrize("assignment", ["nearest", "leave_one_out"])
@pytest.mark.parametrize("init", ["grown", "random"])
def test_inertia_never_rises(assignment: str, init: str) -> None:
    X = spectral_table(300, 20)
    model = ProjectiveClustering(
        6, rank=7, init=init, n_init=1, assignment=assignment, tol=0, random_state=1
    ).fit(X)
    history = np.array(model.inertia_history_)
    assert len(history) == model.n_iter_ >= 3
    assert (np.diff(history) < 0).all()
    assert model.inertia_ <= history[-1] * (1 + 1e-5)


def test_leave_one_out_finds_lower_inertia() -> None:
    X = spectral_table(300, 20)

    def total(assignment: str) -> float:
        return sum(
            ProjectiveClustering(6, rank=7, assignment=assignment, tol=0, random_state=seed)
            .fit(X)
            .inertia_
            for seed in range(5)
        )

    assert total("leave_one_out") < total("nearest")


def test_labels_are_the_nearest_subspaces(table: Tensor) -> None:
    model = ProjectiveClustering(4, rank=5, random_state=0).fit(table)
    residuals = torch.stack(
        [(table - (table @ basis.T) @ basis).square().sum(1) for basis in model.bases_], dim=1
    )
    torch.testing.assert_close(model.labels_, residuals.argmin(1))
    torch.testing.assert_close(model.predict(table), model.labels_)
    per_cluster = torch.zeros(4).index_add_(0, model.labels_, residuals.min(1).values)
    torch.testing.assert_close(model.cluster_inertia_.float(), per_cluster, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("rank", [3, 17], ids=["low", "high"])
def test_bases_are_orthonormal(table: Tensor, affine: bool, rank: int) -> None:
    bases = ProjectiveClustering(3, rank=rank, affine=affine, random_state=0).fit(table).bases_
    torch.testing.assert_close(bases @ bases.mT, torch.eye(rank).expand(3, -1, -1))


def test_round_trip_is_the_projection(table: Tensor) -> None:
    model = ProjectiveClustering(3, rank=6, affine=True, random_state=0).fit(table)
    rows = model.inverse_transform(model.transform(table), model.labels_)
    assert float((table - rows).square().sum()) == pytest.approx(model.inertia_, rel=1e-5)
    assert model.score(table) == pytest.approx(-model.inertia_, rel=1e-9)


def test_weight_two_equals_two_copies() -> None:
    X = spectral_table(120, 10)
    start = torch.arange(120) % 3
    weights = torch.ones(120)
    weights[:40] = 2.0
    options: dict[str, Any] = {"rank": 3, "tol": 0, "assignment": "nearest"}
    weighted = ProjectiveClustering(3, init=start, **options).fit(X, sample_weight=weights)
    copies = torch.cat([X, X[:40]])
    doubled = ProjectiveClustering(3, init=torch.cat([start, start[:40]]), **options).fit(copies)
    assert weighted.inertia_ == pytest.approx(doubled.inertia_, rel=1e-5)
    torch.testing.assert_close(weighted.labels_, doubled.labels_[:120])


def test_scaling_scales_the_inertia(table: Tensor) -> None:
    one = ProjectiveClustering(3, rank=6, random_state=0).fit(table)
    ten = ProjectiveClustering(3, rank=6, random_state=0).fit(8.0 * table)
    assert ten.inertia_ == pytest.approx(64.0 * one.inertia_, rel=1e-5)
    torch.testing.assert_close(ten.labels_, one.labels_)


def test_equal_seeds_give_equal_results(table: Tensor) -> None:
    first = ProjectiveClustering(4, rank=5, random_state=3).fit(table)
    second = clone(first).fit(table)
    assert torch.equal(first.bases_, second.bases_)
    assert first.inertia_history_ == second.inertia_history_
    again = first.bases_.clone()
    assert torch.equal(first.fit(table).bases_, again)


def test_more_starts_are_never_worse(table: Tensor) -> None:
    one, five = (
        ProjectiveClustering(5, rank=5, init="random", n_init=n, random_state=0).fit(table).inertia_
        for n in (1, 5)
    )
    assert five <= one


def test_random_start_runs_ten_times_by_default(table: Tensor) -> None:
    runs = set()
    ProjectiveClustering(
        2, rank=3, init="random", random_state=0, callback=lambda step: runs.add(step.run)
    ).fit(table)
    assert runs == set(range(10))


def test_grown_start_beats_the_random_one_on_minilm(minilm_table: Tensor) -> None:
    model = ProjectiveClustering(5, rank=216, random_state=0).fit(minilm_table)
    squared_error = model.inertia_ / float(minilm_table.double().square().sum())
    assert squared_error <= 0.1330


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_is_accepted(dtype: torch.dtype) -> None:
    X = spectral_table().to(dtype)
    model = ProjectiveClustering(3, rank=6, random_state=0).fit(X)
    wide = ProjectiveClustering(3, rank=6, random_state=0).fit(X.to(model.bases_.dtype))
    assert model.bases_.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert model.inertia_ == wide.inertia_


def test_numpy_and_torch_agree_and_come_back_as_they_came(table: Tensor) -> None:
    options: dict[str, Any] = {"rank": 6, "random_state": 0}
    torch_model = ProjectiveClustering(3, **options).fit(table)
    numpy_model = ProjectiveClustering(3, **options).fit(table.numpy())
    for name in ("labels_", "bases_", "cluster_inertia_"):
        assert isinstance(getattr(torch_model, name), Tensor)
        assert isinstance(getattr(numpy_model, name), np.ndarray)
        np.testing.assert_array_equal(getattr(numpy_model, name), getattr(torch_model, name))
    assert isinstance(torch_model.predict(table.numpy()), np.ndarray)
    assert isinstance(numpy_model.transform(table), Tensor)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_input_and_read_only_input_are_left_alone(table: Tensor, dtype: type) -> None:
    array: Any = table.numpy().astype(dtype)
    array.setflags(write=False)
    before = array.copy()
    ProjectiveClustering(3, rank=6, affine=True, random_state=0).fit(array)
    np.testing.assert_array_equal(array, before)


def test_empty_cluster_takes_the_farthest_rows() -> None:
    X, labels, _ = planted(n_clusters=2, noise=1e-3)
    start = torch.zeros(len(X), dtype=torch.int64)
    model = ProjectiveClustering(2, rank=2, init=start, tol=0, assignment="nearest").fit(X)
    assert adjusted_rand_score(labels, model.labels_) == pytest.approx(1.0)


def test_cluster_smaller_than_rank_is_exact_and_orthonormal() -> None:
    X = torch.cat([spectral_table(100, 12), torch.zeros(3, 12)])
    X[100:] = 50 * torch.eye(12)[:3]
    start = torch.cat([torch.zeros(100), torch.ones(3)]).long()
    model = ProjectiveClustering(2, rank=5, init=start, max_iter=1).fit(X)
    torch.testing.assert_close(model.bases_ @ model.bases_.mT, torch.eye(5).expand(2, -1, -1))
    small, basis = X[100:], model.bases_[1]
    torch.testing.assert_close((small @ basis.T) @ basis, small)


def test_duplicate_rows_leave_clusters_empty_with_a_warning() -> None:
    X = torch.ones(20, 4)
    with pytest.warns(ConvergenceWarning, match=r"2 of n_clusters=3 clusters are empty"):
        model = ProjectiveClustering(3, rank=1, random_state=0).fit(X)
    assert model.inertia_ <= 1e-5
    assert set(model.labels_.tolist()) == {0}


def test_rows_of_zeros_belong_to_the_first_cluster() -> None:
    X, _, _ = planted(noise=1e-3)
    X[::7] = 0.0
    model = ProjectiveClustering(3, rank=2, random_state=0).fit(X)
    assert set(model.labels_[::7].tolist()) == {0}


def test_all_zero_table_has_zero_inertia() -> None:
    with pytest.warns(ConvergenceWarning, match="clusters are empty"):
        model = ProjectiveClustering(2, rank=1, random_state=0).fit(torch.zeros(10, 3))
    assert model.inertia_ == 0.0


def test_callback_sees_every_refitting(table: Tensor) -> None:
    seen: list[FitProgress] = []
    model = ProjectiveClustering(3, rank=6, random_state=0, callback=seen.append).fit(table)
    assert [step.iteration for step in seen] == list(range(1, model.n_iter_))
    assert [step.inertia for step in seen] == model.inertia_history_[1:]


def test_max_iter_bounds_the_refittings(table: Tensor) -> None:
    assert (
        ProjectiveClustering(4, rank=5, max_iter=2, tol=0, random_state=0).fit(table).n_iter_ == 2
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 25}, r"rank=25 must be between 1 and n_features=24"),
        ({"rank": 0}, r"'rank' parameter .* must be an int in the range \[1"),
        ({"n_clusters": 401}, r"n_samples=400 should be >= n_clusters=401"),
        ({"init": "best"}, "'init' parameter"),
        ({"init": torch.zeros(3).long()}, r"init has shape \(3,\)"),
        ({"init": torch.full((400,), 2)}, "init must hold values between 0 and 1"),
        ({"dtype": "float16"}, r"dtype='float16' is not a working dtype"),
        ({"device": "abacus"}, r"device='abacus' cannot be used here"),
    ],
)
def test_wrong_parameters_are_refused(table: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectiveClustering(**{"n_clusters": 2, "rank": 3, **options}).fit(table)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"sample_weight has shape \(3,\)"),
        (-torch.ones(400), "negative, infinite or NaN"),
        (torch.full((400,), torch.nan), "negative, infinite or NaN"),
        (torch.zeros(400), "zero everywhere"),
    ],
)
def test_wrong_weights_are_refused(table: Tensor, weights: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProjectiveClustering(2, rank=3).fit(table, sample_weight=weights)


def test_nonfinite_values_name_their_row(table: Tensor) -> None:
    table[17, 3] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity, first in row 17"):
        ProjectiveClustering(2, rank=3).fit(table)


def test_coefficients_need_labels(table: Tensor) -> None:
    model = ProjectiveClustering(2, rank=3, random_state=0).fit(table)
    with pytest.raises(InputError, match=r"labels=model\.predict"):
        model.inverse_transform(model.transform(table))


def test_methods_before_fit_say_so(table: Tensor) -> None:
    with pytest.raises(NotFittedError, match="not fitted yet"):
        ProjectiveClustering(2).predict(table)


def test_agrees_with_k_means_where_both_find_rays() -> None:
    X, labels, _ = planted(rank=1, noise=1e-3)
    X = X * torch.sign(X.sum(1, keepdim=True))
    ours = ProjectiveClustering(3, rank=1, random_state=0).fit_predict(X)
    unit = torch.nn.functional.normalize(X)
    theirs = KMeans(3, n_init=10, random_state=0).fit_predict(unit.numpy())
    assert adjusted_rand_score(ours, theirs) == adjusted_rand_score(labels, ours) == 1.0


@pytest.mark.gpu
def test_cuda_agrees_with_cpu(table: Tensor) -> None:
    cpu = ProjectiveClustering(3, rank=6, random_state=0).fit(table)
    cuda = ProjectiveClustering(3, rank=6, random_state=0, device="cuda").fit(table)
    assert cuda.labels_.device.type == "cpu"
    assert cuda.inertia_ == pytest.approx(cpu.inertia_, rel=1e-3)
