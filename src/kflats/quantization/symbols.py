"""Records of rows as symbols for an entropy coder, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kflats.quantization.packing import HALF, pack, packed_bytes, unpack
from kflats.quantization.shape import CodeShape


class Part(NamedTuple):
    """Symbols of one kind of a group: for every position one of every row.

    Attributes
    ----------
    positions, rows : int
        Coefficients of a run, or 1 for the gains; rows of the group, at least one.
    bits : int
        Symbols are below ``2 ** bits``.
    """

    positions: int
    rows: int
    bits: int


def parts_of(shape: CodeShape) -> list[Part]:
    """Return the parts of a table in their order.

    For every group with rows and codes: its gains, then its runs. A run of float16 is two parts,
    the low bytes and the high bytes.
    """
    parts = []
    for rows, runs in zip(shape.counts, shape.runs, strict=True):
        if rows and runs:
            parts.append(Part(1, rows, 8))
            for bits, count in runs:
                parts += [Part(count, rows, 8)] * 2 if bits == HALF else [Part(count, rows, bits)]
    return parts


def split(records: Tensor, shape: CodeShape) -> Iterator[Tensor]:
    """Yield the symbols of every part, shape (positions, rows), uint8."""
    start = 0
    for rows, runs, size in zip(shape.counts, shape.runs, shape.record_bytes, strict=True):
        if not rows or not runs:
            continue
        group = records[start : start + rows * size].view(rows, size)
        start, place = start + rows * size, 1
        yield group[:, :1].T
        for bits, count in runs:
            packed = group[:, place : place + packed_bytes(count, bits)]
            place += packed.shape[1]
            if bits == HALF:
                yield packed[:, ::2].T
                yield packed[:, 1::2].T
            else:
                yield unpack(packed, bits, count).T


def join(symbols: Iterator[Tensor], shape: CodeShape) -> Tensor:
    """Return the records whose parts are ``symbols``, flat, uint8; inverse of :func:`split`."""
    groups = [torch.zeros(0, dtype=torch.uint8, device="cpu")]
    for rows, runs in zip(shape.counts, shape.runs, strict=True):
        if not rows or not runs:
            continue
        columns = [next(symbols).T]
        for bits, _ in runs:
            part = next(symbols).T
            if bits == HALF:
                columns.append(torch.stack([part, next(symbols).T], 2).flatten(1))
            else:
                columns.append(pack(part, bits))
        groups.append(torch.cat(columns, 1).flatten())
    return torch.cat(groups)
