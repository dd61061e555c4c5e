"""Codes of 1 to 8 bits packed into bytes, row by row.

A width that divides 8 is one plane: code ``i`` of a row lies in byte ``i * width // 8``, the lowest
bits first. Other widths are two planes, one after the other: the low 2 or 4 bits of all codes of
the row, then their high bits. Every plane of a row begins with a new byte; unused bits are zero.
Values of 16 bits are float16, little-endian.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""Bits of each plane of a code, the lowest first."""
HALF = 16
"""Width of values that are stored as float16."""


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of ``count`` codes of one row.

    Examples
    --------
    >>> packed_bytes(10, 3)  # 10 x 2 bits in 3 bytes, 10 x 1 bit in 2
    5
    """
    if bits == HALF:
        return 2 * count
    return sum(-(-count * width // 8) for width in PLANES[bits])


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes of shape (m, count), below ``2 ** bits``, as bytes (m, packed_bytes).

    Examples
    --------
    >>> import torch
    >>> pack(torch.tensor([[1, 2, 3, 0, 1]]), 2)  # 0b00_11_10_01, 0b01
    tensor([[57,  1]], dtype=torch.uint8)
    """
    parts, shift = [], 0
    for width in PLANES[bits]:
        parts.append(_pack_plane((codes >> shift) & (2**width - 1), width))
        shift += width
    return torch.cat(parts, 1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the codes of shape (m, count), uint8, that :func:`pack` has packed."""
    result = packed.new_zeros(len(packed), count)
    start = shift = 0
    for width in PLANES[bits]:
        stop = start + -(-count * width // 8)
        plane = look_up(packed[:, start:stop], codes_of_byte(width, packed.device))
        result |= plane[:, :count] << shift
        start, shift = stop, shift + width
    return result


def _pack_plane(codes: Tensor, width: int) -> Tensor:
    each = 8 // width
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, -codes.shape[1] % each))
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)
    planes = padded.view(len(codes), padded.shape[1] // each, each)
    return (planes << shifts).sum(2, dtype=torch.uint8)


@lru_cache(maxsize=64)
def codes_of_byte(width: int, device: torch.device) -> Tensor:
    """Return the codes in every byte of a plane, shape (256, 8 // width), uint8."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=device)
    every = torch.arange(256, dtype=torch.uint8, device=device)
    codes: Tensor = (every[:, None] >> shifts) & (2**width - 1)
    return codes


def look_up(packed: Tensor, table: Tensor) -> Tensor:
    """Return what a table of shape (256, each) holds for every byte, (m, bytes * each)."""
    found = table.index_select(0, packed.reshape(-1).int())
    return found.view(len(packed), packed.shape[1] * table.shape[1])
