from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kflats import FitProgress, InputError, ProjectiveClustering
from kflats.clustering.losses import LOSSES, Loss
from kflats.clustering.robust import median_distance
from kflats.clustering.rows import Rows
from tests.conftest import planted, spectral_table

POWERS = ("power", "lp")
CASES = [(name, 1.0) for name in sorted(LOSSES) if name not in POWERS]
CASES += [("power", 0.5), ("power", 1.0), ("power", 1.7), ("lp", 1.0), ("lp", 1.5), ("lp", 2.0)]
EVERY_LOSS = pytest.mark.parametrize(("name", "power"), CASES, ids=str)


def largest_angle(found: Tensor, true: Tensor) -> float:
    """Return the largest principal angle of two subspaces in degrees."""
    cosines = torch.linalg.svdvals(found.double() @ true.double().T).clamp(max=1.0)
    return float(torch.rad2deg(torch.arccos(cosines.min())))


def worst_angle(found: Tensor, true: Tensor) -> float:
    """Return the largest angle of any of several subspaces, for the best matching of them."""
    k = len(true)
    angles = [[largest_angle(found[i], true[j]) for j in range(k)] for i in range(k)]
    return min(max(angles[p[j]][j] for j in range(k)) for p in permutations(range(k)))


@EVERY_LOSS
def test_slope_is_the_derivative(name: str, power: float) -> None:
    loss = Loss(name, scale=0.7, power=power)
    squared = torch.cat([torch.linspace(0.01, 2.0, 83), torch.logspace(-6, 3, 40)]).double()
    squared = squared[(squared - 0.49).abs() > 1e-3].requires_grad_()
    slopes = torch.autograd.grad(loss.value(squared).sum(), squared)[0]
    torch.testing.assert_close(loss.slope(squared.detach()), slopes)


@EVERY_LOSS
def test_loss_is_zero_at_zero_increasing_and_concave(name: str, power: float) -> None:
    loss = Loss(name, scale=0.7, power=power)
    squared = torch.linspace(0.0, 5.0, 501, dtype=torch.float64)
    values, slopes = loss.value(squared), loss.slope(squared)
    assert float(values[0]) == 0.0
    assert bool((values.diff() >= 0).all())
    assert bool((values[:40].diff() > 0).all())
    assert bool((slopes.diff() <= 1e-15).all())
    assert bool((slopes >= 0).all())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(POWERS)))
def test_small_distances_cost_their_square(name: str) -> None:
    squared = torch.tensor([1e-8, 1e-6, 1e-4], dtype=torch.float64)
    values = Loss(name, scale=0.7).value(squared)
    torch.testing.assert_close(values, squared, rtol=1e-3, atol=0)


def test_losses_by_hand() -> None:
    far = torch.tensor([16.0, 100.0])
    assert Loss("huber", 2.0).value(far).tolist() == [12.0, 36.0]  # 2 * 2 * r - 4
    assert Loss("truncated", 2.0).value(far).tolist() == [4.0, 4.0]
    torch.testing.assert_close(Loss("tukey", 2.0).value(far), torch.full((2,), 4 / 3))
    torch.testing.assert_close(Loss("power", 1e-9).value(far), far.sqrt())
    torch.testing.assert_close(Loss("power", 1e-12, 0.5).value(far), far**0.25, rtol=1e-4, atol=0)
    torch.testing.assert_close(Loss("geman_mcclure", 2.0).value(far), 4 * far / (4 + far))


@EVERY_LOSS
@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
def test_inertia_never_rises(name: str, power: float, affine: bool) -> None:
    for seed in range(2):
        X = spectral_table(240, 16, seed=seed)
        weights = torch.rand(240) if seed else None
        seen: list[FitProgress] = []
        model = ProjectiveClustering(
            4,
            rank=5,
            loss=name,
            loss_power=power,
            affine=affine,
            tol=0,
            max_iter=40,
            random_state=seed,
            callback=seen.append,
        ).fit(X, sample_weight=weights)
        history = np.array(model.inertia_history_)
        assert len(history) == model.n_iter_ > 1
        assert (np.diff(history) <= 0).all()
        assert model.inertia_ == pytest.approx(history[-1], rel=1e-4)
        assert seen[-1].inertia == history[-1]
        torch.testing.assert_close(
            model.bases_ @ model.bases_.mT, torch.eye(5).expand(4, -1, -1), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("name", POWERS)
def test_power_two_is_the_square(table: Tensor, name: str) -> None:
    options: dict[str, Any] = {"rank": 6, "assignment": "nearest", "random_state": 0}
    plain = ProjectiveClustering(3, **options).fit(table)
    model = ProjectiveClustering(3, loss=name, loss_power=2.0, **options).fit(table)
    assert model.inertia_history_ == plain.inertia_history_
    assert torch.equal(model.bases_, plain.bases_)


@pytest.mark.parametrize("name", ["power", "huber", "cauchy", "tukey", "truncated", "lp"])
def test_gentle_loss_is_nearly_the_square(table: Tensor, name: str) -> None:
    options: dict[str, Any] = {"rank": 5, "affine": True, "tol": 0, "max_iter": 300}
    gentle: dict[str, Any] = {"loss_power": 1.999} if name in POWERS else {"loss_scale": 1e3}
    plain = ProjectiveClustering(1, **options).fit(table)
    model = ProjectiveClustering(1, loss=name, **gentle, **options).fit(table)
    assert largest_angle(model.bases_[0], plain.bases_[0]) < 1.0
    assert model.inertia_ == pytest.approx(plain.inertia_, rel=0.01)


def outliers(seed: int) -> tuple[Tensor, Tensor]:
    """Return rows on three subspaces with 20 % gross outliers among them, and the subspaces."""
    X, _, bases = planted(n_per_cluster=200, rank=3, n_features=20, noise=0.01, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    far = 2 * torch.randn(150, 20, generator=generator, dtype=torch.float64)
    return torch.cat([X, far]).float(), bases


@pytest.mark.parametrize("seed", range(3))
def test_outliers_are_survived_by_robust_losses_only(seed: int) -> None:
    X, bases = outliers(seed)
    angles = {}
    for loss in ("squared", "power", "tukey"):
        model = ProjectiveClustering(3, rank=3, loss=loss, n_init=5, random_state=0).fit(X)
        angles[loss] = worst_angle(model.bases_, bases)
    assert angles["power"] < 5
    assert angles["tukey"] < 5
    assert angles["squared"] > 30


@pytest.mark.parametrize("seed", range(3))
def test_corrupted_coordinates_are_survived_by_lp(seed: int) -> None:
    X, _, bases = planted(300, n_clusters=1, rank=3, n_features=20, noise=0.01, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for row in (torch.rand(300, generator=generator) < 0.2).nonzero().squeeze(1).tolist():
        places = torch.randperm(20, generator=generator)[:3]
        X[row, places] += 6 * torch.randn(3, generator=generator)
    squared = ProjectiveClustering(1, rank=3).fit(X)
    model = ProjectiveClustering(1, rank=3, loss="lp").fit(X)
    assert largest_angle(model.bases_[0], bases[0]) < 2
    assert largest_angle(squared.bases_[0], bases[0]) > 15


def test_lp_of_two_clusters_is_lower_than_at_the_least_squares_fit() -> None:
    X = spectral_table(300, 12)
    X[::7, 3] += 20.0
    options: dict[str, Any] = {"rank": 3, "random_state": 0}
    plain = ProjectiveClustering(2, **options).fit(X)
    rows = plain.inverse_transform(plain.transform(X), plain.predict(X))
    model = ProjectiveClustering(2, loss="lp", **options).fit(X)
    assert model.inertia_ < 0.95 * float((X - rows).abs().sum())


def test_rows_beyond_the_cut_still_join_their_nearest_flat() -> None:
    X, _ = outliers(0)
    model = ProjectiveClustering(3, rank=3, loss="truncated", n_init=5, random_state=0).fit(X)
    residuals = torch.stack([(X - X @ b.T @ b).square().sum(1) for b in model.bases_], dim=1)
    torch.testing.assert_close(model.labels_, residuals.argmin(1))
    assert model.loss_scale_ is not None
    beyond = residuals.min(1).values > model.loss_scale_**2
    assert int(beyond.sum()) > 100
    assert len(set(model.labels_[beyond].tolist())) == 3


def test_score_is_minus_the_loss(table: Tensor) -> None:
    model = ProjectiveClustering(3, rank=5, loss="cauchy", loss_scale=0.8, random_state=0)
    model.fit(table)
    residuals = torch.stack([(table - table @ b.T @ b).square().sum(1) for b in model.bases_], 1)
    expected = float((0.64 * torch.log1p(residuals.min(1).values / 0.64)).sum())
    assert model.score(table) == pytest.approx(-expected, rel=1e-4)
    assert model.inertia_ == pytest.approx(expected, rel=1e-4)
    assert float(model.cluster_inertia_.sum()) == pytest.approx(expected, rel=1e-4)


def test_scale_is_that_given_or_that_of_the_data(table: Tensor) -> None:
    def scale(X: Tensor, **options: Any) -> Any:
        return ProjectiveClustering(3, rank=5, random_state=0, **options).fit(X).loss_scale_

    assert scale(table) is None
    assert scale(table, loss="tukey", loss_scale=20.0) == 20.0
    found = scale(table, loss="tukey")
    assert scale(8.0 * table, loss="tukey") == pytest.approx(8.0 * found, rel=1e-3)
    assert found == pytest.approx(4.685 / 1.345 * scale(table, loss="huber"), rel=1e-3)


def test_all_starts_share_the_scale_of_the_first() -> None:
    X, _ = outliers(0)
    for seed in range(4):
        options: dict[str, Any] = {"loss": "welsch", "init": "random", "random_state": seed}
        one, ten = (
            ProjectiveClustering(3, rank=3, n_init=n_init, **options).fit(X) for n_init in (1, 10)
        )
        assert ten.loss_scale_ == one.loss_scale_
        assert ten.inertia_ <= one.inertia_


def test_median_distance_counts_weights_and_passes_over_exact_rows() -> None:
    squared = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 4.0, 9.0, 1e-14])
    rows = Rows(torch.ones(8, 2), None, torch.float32)
    assert median_distance(squared, rows) == 2.0
    weights = torch.tensor([9.0, 1, 1, 1, 1, 1, 5, 1])
    assert median_distance(squared, Rows(rows.table, weights, torch.float32)) == 3.0


def test_clusters_whose_rows_are_all_cut_off_keep_their_flats() -> None:
    X, bases = outliers(0)
    start = torch.arange(3).repeat_interleave(torch.tensor([200, 200, 350]))
    X[200:400] += 0.5 * torch.randn(200, 20)  # all beyond the scale, for a while or for good
    options: dict[str, Any] = {"loss": "truncated", "loss_scale": 0.1}
    model = ProjectiveClustering(3, rank=3, init=start, **options).fit(X)
    torch.testing.assert_close(model.bases_ @ model.bases_.mT, torch.eye(3).expand(3, -1, -1))
    assert largest_angle(model.bases_[0], bases[0]) < 2
    squared = ProjectiveClustering(3, rank=3, init=start, max_iter=1).fit(X)
    torch.testing.assert_close(model.bases_[1], squared.bases_[1])


def test_rows_of_zeros_do_not_make_the_scale_zero() -> None:
    X = torch.cat([torch.zeros(60, 6), spectral_table(40, 6)])
    for loss in sorted(LOSSES):
        model = ProjectiveClustering(3, rank=1, loss=loss, random_state=0).fit(X)
        rows = model.inverse_transform(model.transform(X), model.predict(X))
        assert np.isfinite(model.inertia_)
        assert float((X - rows).square().sum()) < 0.7 * float(X.square().sum())


def test_scale_is_that_of_the_rows_that_are_no_outliers() -> None:
    X, _, _ = planted(300, n_clusters=1, rank=3, n_features=20, noise=0.01)
    far = torch.cat([X, 5 * torch.randn(90, 20, dtype=torch.float64)])
    clean, found = (
        ProjectiveClustering(1, rank=3, loss="truncated").fit(rows).loss_scale_ for rows in (X, far)
    )
    assert clean == pytest.approx(3 * 0.01 * 17**0.5, rel=0.05)
    assert found == pytest.approx(clean, rel=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l1"}, "'loss' parameter .* must be a str among"),
        ({"loss": "power", "loss_power": 2.5}, "'loss_power' parameter .* in the range"),
        ({"loss": "power", "loss_power": 0.0}, "'loss_power' parameter .* in the range"),
        ({"loss": "lp", "loss_power": 0.5}, r"loss_power=0.5 of 'lp' must be from 1 to 2"),
        ({"loss": "huber", "loss_scale": 0.0}, "'loss_scale' parameter .* in the range"),
    ],
)
def test_wrong_losses_are_refused(table: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectiveClustering(2, rank=3, **options).fit(table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "hubert"}, r"loss='hubert' must be one of \['cauchy', 'geman_mcclure'"),
        ({"name": "huber", "scale": -1.0}, r"loss_scale=-1.0 must be positive"),
        ({"name": "power", "power": float("nan")}, r"loss_power=nan of 'power'"),
    ],
)
def test_losses_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Loss(**options)
