from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kflats.quantization.packing import HALF, PLANES, pack, packed_bytes, unpack

WIDTHS = [1, 2, 3, 4, 5, 6, 8]
LAYOUTS: dict[int, tuple[list[int], list[int]]] = {
    1: ([1, 0, 1, 1, 0, 0, 0, 1, 1], [0b10001101, 0b1]),
    2: ([1, 2, 3, 0, 2], [0b00_11_10_01, 0b10]),
    3: ([5, 2, 7, 0, 4], [0b00_11_10_01, 0b00, 0b10101]),
    4: ([1, 15, 6], [0xF1, 0x06]),
    5: ([17, 15, 30], [0xF1, 0x0E, 0b101]),
    6: ([33, 31, 62, 5, 16], [0xF1, 0x5E, 0x00, 0b00_11_01_10, 0b01]),
    8: ([7, 255, 128], [7, 255, 128]),
}


@st.composite
def codes_of_some_width(draw: st.DrawFn) -> tuple[Tensor, int]:
    bits = draw(st.sampled_from(WIDTHS))
    shape = draw(st.tuples(st.integers(0, 5), st.integers(0, 40)))
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, shape, generator=generator), bits


@given(codes_of_some_width())
def test_codes_come_back_from_their_bytes(case: tuple[Tensor, int]) -> None:
    codes, bits = case
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(codes), packed_bytes(codes.shape[1], bits))
    assert torch.equal(unpack(packed, bits, codes.shape[1]).long(), codes)


@given(st.sampled_from(WIDTHS), st.integers(0, 40))
def test_every_plane_begins_with_a_new_byte(bits: int, count: int) -> None:
    assert sum(PLANES[bits]) == bits
    assert packed_bytes(count, bits) == sum((count * width + 7) // 8 for width in PLANES[bits])
    assert packed_bytes(8 * count, bits) == count * bits


def test_half_precision_values_have_two_bytes() -> None:
    assert packed_bytes(5, HALF) == 10


@pytest.mark.parametrize("bits", WIDTHS)
def test_layout_is_the_one_that_files_hold(bits: int) -> None:
    codes, layout = LAYOUTS[bits]
    packed = pack(torch.tensor([codes, codes[::-1]]), bits)
    assert packed[0].tolist() == layout
    assert unpack(torch.tensor([layout], dtype=torch.uint8), bits, len(codes)).tolist() == [codes]


@pytest.mark.parametrize("bits", WIDTHS)
def test_unused_bits_are_zero(bits: int) -> None:
    packed = pack(torch.full((1, 3), 2**bits - 1), bits)
    assert sum(byte.bit_count() for byte in packed[0].tolist()) == 3 * bits
