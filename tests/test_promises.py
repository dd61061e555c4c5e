from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.promises import ROUNDING, assert_same_model, assert_same_outputs, assert_same_tensors


def test_one_bit_of_one_tensor_is_seen() -> None:
    model, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    assert_same_tensors(model, other)
    assert other.running_mean is not None
    other.running_mean[1] = -0.0
    with pytest.raises(AssertionError):
        assert_same_tensors(model, other)


def test_tensors_that_are_not_saved_are_compared() -> None:
    model, other = nn.Module(), nn.Module()
    for each, value in ((model, 1), (other, 2)):
        each.register_buffer("places", torch.tensor(value), persistent=False)
    with pytest.raises(AssertionError):
        assert_same_tensors(model, other)


def test_missing_names_and_other_types_are_seen() -> None:
    one = {"weight": torch.zeros(2)}
    for other in ({}, {"bias": torch.zeros(2)}, {"weight": torch.zeros(2, dtype=torch.int32)}):
        with pytest.raises(AssertionError):
            assert_same_tensors(other, one)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_rounding_passes_and_more_does_not(dtype: torch.dtype) -> None:
    expected = torch.tensor([8.0, 0.5, -4.0], dtype=dtype)
    size = 8 * ROUNDING[dtype]
    assert_same_outputs(expected + torch.tensor([0, size / 2, 0], dtype=dtype), expected)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_outputs(expected + torch.tensor([0, 2 * size, 0], dtype=dtype), expected)
    with pytest.raises(AssertionError):
        assert_same_outputs(expected[:2], expected)


def test_equal_answers_of_other_tensors_are_no_same_model() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(AssertionError):
        assert_same_model(model, other, lambda _: torch.zeros(1))
