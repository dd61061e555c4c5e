from __future__ import annotations

import pytest
import torch

from kflats.errors import InputError
from kflats.layers.places import distinct, places_of


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("many", "count"), [(5, 100), (4000, 3000), (4000, 10**6)])
def test_distinct_numbers_are_those_of_sorting(many: int, count: int, dtype: torch.dtype) -> None:
    numbers = torch.randint(1, count, (many,), generator=torch.Generator().manual_seed(0)).to(dtype)
    numbers[:2] = torch.tensor([0, count - 1])
    found, places = distinct(numbers, count)
    wanted, inverse = torch.unique(numbers, return_inverse=True)
    assert torch.equal(found, wanted.to(found.dtype))
    assert torch.equal(places, inverse)
    assert torch.equal(found[places], numbers.to(found.dtype))


@pytest.mark.parametrize("many", [3, 4000])
@pytest.mark.parametrize("wrong", [-1, 3000])
def test_numbers_out_of_range_are_refused(many: int, wrong: int) -> None:
    numbers = torch.zeros(many, dtype=torch.int64)
    numbers[1] = wrong
    with pytest.raises(IndexError, match="out of range"):
        distinct(numbers, 3000)


def test_no_numbers_are_no_error() -> None:
    found, places = distinct(torch.zeros(0, dtype=torch.int64), 10)
    assert (len(found), len(places)) == (0, 0)


@pytest.mark.parametrize("label", [-1, 2, 2**40, 2**63 - 1])
def test_labels_out_of_range_are_refused_before_rows_are_counted(label: int) -> None:
    labels = torch.tensor([0, 1, label, 0])
    with pytest.raises(InputError, match=r"\(kflats_labels\) are from .* the groups 0 to 1"):
        places_of(labels, (3, 1))
