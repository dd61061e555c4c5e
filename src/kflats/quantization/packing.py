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
    codes = codes_of_entry(bits, packed.device).to(torch.uint8)
    wanted = entries(packed, bits, count)
    found = codes.index_select(0, wanted.view(-1))
    return found.view(len(packed), wanted.shape[1] * codes.shape[1])[:, :count]


def entries(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return one number for the codes that begin in each byte of the low plane, int32.

    Its lowest 8 bits are that byte, those above the bits of the same codes in the high plane.
    Shape (m, bytes of the low plane); see :func:`codes_of_entry`.
    """
    low, *high = PLANES[bits]
    if not high:
        return packed.int()
    size, taken = packed_bytes(count, low), high[0] * 8 // low
    parts = _parts(taken, packed.device)
    above = parts.index_select(0, packed[:, size:].int().view(-1)).view(torch.int32)
    above = above.view(len(packed), (packed.shape[1] - size) * (8 // taken))
    return packed[:, :size] | above[:, :size]


@lru_cache(maxsize=64)
def _parts(width: int, device: torch.device) -> Tensor:
    """Return the parts of ``width`` bits of every byte, each times 256.

    As pairs of int32 in one int64, which is found faster; shape (256, 8 // width // 2).
    """
    shifts = torch.arange(0, 8, width, dtype=torch.int32, device=device)
    values = torch.arange(256, dtype=torch.int32, device=device)
    parts = ((values[:, None] >> shifts) & (2**width - 1)) << 8
    pairs: Tensor = parts.view(torch.int64)
    return pairs.view(-1) if pairs.shape[1] == 1 else pairs


@lru_cache(maxsize=64)
def codes_of_entry(bits: int, device: torch.device) -> Tensor:
    """Return the codes that every number of :func:`entries` stands for, int32.

    Shape (256, codes) for one plane; with a high plane 256 for each value of its bits.
    """
    low, *high = PLANES[bits]
    shifts = torch.arange(0, 8, low, dtype=torch.int32, device=device)
    values = torch.arange(256, dtype=torch.int32, device=device)
    codes: Tensor = (values[:, None] >> shifts) & (2**low - 1)
    for width in high:
        above = torch.arange(2 ** (width * len(shifts)), dtype=torch.int32, device=device)
        places = width * torch.arange(len(shifts), dtype=torch.int32, device=device)
        parts = (above[:, None] >> places) & (2**width - 1)
        codes = (codes | parts[:, None] << low).view(-1, len(shifts))
    return codes


def _pack_plane(codes: Tensor, width: int) -> Tensor:
    each = 8 // width
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, -codes.shape[1] % each))
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)
    planes = padded.view(len(codes), padded.shape[1] // each, each)
    return (planes << shifts).sum(2, dtype=torch.uint8)
