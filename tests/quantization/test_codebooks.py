from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kflats import InputError
from kflats.quantization.codebooks import (
    LEVELS,
    WIDTHS,
    at_levels,
    distortion,
    fit_levels,
    gaussian_levels,
    nearest,
)

KNOWN = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
"""Squared errors of Max (1960), table I."""


def skewed(count: int = 3000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(count, generator=generator)
    return values * values.abs(), torch.rand(count, generator=generator)


def weighted_error(values: Tensor, weights: Tensor, levels: Tensor) -> float:
    return float(weights @ (values - at_levels(values, levels)).square())


@pytest.mark.parametrize("bits", KNOWN)
def test_free_levels_have_the_published_errors(bits: int) -> None:
    assert distortion(bits) == pytest.approx(KNOWN[bits], rel=5e-4)


def test_free_levels_of_two_bits_are_the_published_ones() -> None:
    expected = torch.tensor([-1.510, -0.4528, 0.4528, 1.510])
    torch.testing.assert_close(gaussian_levels(2), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_levels_ascend_and_are_symmetric(bits: int, kind: str) -> None:
    levels = gaussian_levels(bits, kind)
    assert levels.shape == (2**bits,)
    assert levels.dtype == torch.float32
    assert bool((levels.diff() > 0).all())
    assert torch.equal(levels, -levels.flip(0))


@pytest.mark.parametrize("bits", WIDTHS[1:])
def test_uniform_levels_have_equal_steps(bits: int) -> None:
    steps = gaussian_levels(bits, "uniform").diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", LEVELS)
def test_the_error_of_normal_values_is_the_computed_one_and_falls_with_the_bits(kind: str) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    errors = [distortion(0, kind)]
    for bits in WIDTHS:
        left = values - at_levels(values, gaussian_levels(bits, kind))
        errors.append(distortion(bits, kind))
        assert float(left.square().mean()) == pytest.approx(errors[-1], rel=0.05)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == 1


@pytest.mark.parametrize("bits", WIDTHS)
def test_free_levels_are_better_than_equal_steps(bits: int) -> None:
    assert distortion(bits) <= distortion(bits, "uniform") * (1 + 1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_fitting_never_raises_the_weighted_error(bits: int) -> None:
    values, weights = skewed()
    start = gaussian_levels(bits)
    errors = [
        weighted_error(values, weights, fit_levels(values, weights, start, steps))
        for steps in range(6)
    ]
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(errors))
    assert errors[-1] < 0.99 * errors[0]


def test_fitted_levels_ascend_and_are_symmetric() -> None:
    values, weights = skewed()
    levels = fit_levels(values, weights, gaussian_levels(4))
    assert bool((levels.diff() > 0).all())
    assert torch.equal(levels, -levels.flip(0))


def test_values_without_weight_do_not_move_levels() -> None:
    values, weights = skewed()
    start = gaussian_levels(3)
    assert torch.equal(fit_levels(values, torch.zeros_like(weights), start), start)
    far = torch.cat([values, values + 100])
    of_both = fit_levels(far, torch.cat([weights, torch.zeros_like(weights)]), start)
    torch.testing.assert_close(of_both, fit_levels(values, weights, start))


def test_nearest_is_the_nearest_of_all_levels() -> None:
    values, levels = torch.linspace(-4, 4, 301).view(7, 43), gaussian_levels(3)
    expected = (values[..., None] - levels).abs().argmin(-1)
    assert torch.equal(nearest(values, levels).long(), expected)
    assert torch.equal(at_levels(values, levels), levels[expected])


@pytest.mark.parametrize("bits", [0, 7, 9, 16, -1])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match=rf"bits={bits} must be one of \(1, 2, 3"):
        gaussian_levels(bits)


def test_another_kind_of_levels_is_refused() -> None:
    with pytest.raises(InputError, match="levels='cubic' must be one of"):
        gaussian_levels(2, "cubic")
