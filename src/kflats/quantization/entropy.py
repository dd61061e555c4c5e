"""Records of a table in fewer bytes on disk: entropy coding of their gains and codes.

A blob is, all numbers little-endian:

- one byte, the version of this layout;
- four bytes, the CRC-32 of the records;
- for every part of the table (see :func:`kflats.quantization.symbols.parts_of`) two bytes, the
  positions that share frequencies, then the frequencies of each such block: the smallest and the
  largest symbol, one byte each, and if they differ one byte for each symbol between them, see
  :class:`kflats.quantization.frequencies.Frequencies`;
- words of 32 bits, the last first: an asymmetric numeral system (Duda 2015) with the symbols of all
  blocks in turn, position by position and row by row. A block of one symbol has none.

The frequencies are those of the table; nothing adapts while decoding.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kflats.errors import CheckpointError, InputError, MissingExtraError
from kflats.quantization.codes import Codes
from kflats.quantization.frequencies import Frequencies, best_block, merge
from kflats.quantization.shape import CodeShape
from kflats.quantization.symbols import join, parts_of, split

VERSION = 1
_HEAD = struct.Struct("<BI")


def compress_codes(codes: Codes) -> Tensor:
    """Return the records of a table entropy-coded, flat, uint8.

    Raises
    ------
    MissingExtraError
        If constriction is not installed.
    InputError
        If bits of the records are set that no code uses.

    Examples
    --------
    >>> import torch
    >>> from kflats.quantization.fit import code_table
    >>> table = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> codes = code_table(table, 33_000)
    >>> blob = compress_codes(codes)
    >>> torch.equal(decompress_codes(blob, codes.shape), codes.coefficients)
    True
    """
    return compress_records(codes.coefficients, codes.shape)


def compress_records(records: Tensor, shape: CodeShape) -> Tensor:
    """Return records of a shape entropy-coded, see :func:`compress_codes`."""
    plain = records.detach().cpu()
    found = coders()
    coder, tables, blocks = found.stream.stack.AnsCoder(), [], []
    for symbols in split(plain, shape):
        part = symbols.contiguous().numpy()
        counts = np.stack([np.bincount(each, minlength=256) for each in part])
        counts = counts[:, : 1 << int(part.max()).bit_length()]
        size = best_block(counts)
        tables.append(struct.pack("<H", size))
        for start, each in zip(range(0, len(part), size), merge(counts, size), strict=True):
            model = Frequencies.of(each)
            tables.append(model.to_bytes())
            blocks.append((part[start : start + size], model))
    for values, model in reversed(blocks):  # a stack: what is put last is read first
        if len(model.steps) > 1:
            flat = values.ravel().astype(np.int32) - model.low
            coder.encode_reverse(flat, _categorical(found, model))
    words = coder.get_compressed().astype("<u4").tobytes()
    head = _HEAD.pack(VERSION, zlib.crc32(plain.numpy().tobytes()))
    blob = torch.frombuffer(bytearray(head + b"".join(tables) + words), dtype=torch.uint8)
    try:
        decompress_codes(blob, shape)
    except CheckpointError as error:
        raise InputError(
            f"the records do not come back from entropy coding ({error}): bits are set in them "
            "that no code uses. Compress the table again, or save it without entropy."
        ) from error
    return blob


def decompress_codes(blob: Tensor, shape: CodeShape) -> Tensor:
    """Return the records of a table from what :func:`compress_codes` made, flat, uint8.

    Raises
    ------
    CheckpointError
        If the blob is damaged or of another table or version; the records are never wrong.
    MissingExtraError
        If constriction is not installed.
    """
    found, data = coders(), bytes(blob.detach().cpu().numpy())
    if len(data) < _HEAD.size or data[0] != VERSION:
        raise CheckpointError(
            f"entropy-coded records have the version {data[0] if data else None}; this kflats "
            f"reads {VERSION}: install the kflats that wrote them, or save them again."
        )
    _, checksum = _HEAD.unpack_from(data)
    try:
        models, place = _read_models(data, shape)
        words = np.frombuffer(data[place:], dtype="<u4").astype(np.uint32)
        coder = found.stream.stack.AnsCoder(words)
        records = join(_decode(found, coder, models, shape), shape)
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"entropy-coded records are damaged: {error}.") from error
    if not coder.is_empty() or zlib.crc32(records.numpy().tobytes()) != checksum:
        raise CheckpointError(
            "entropy-coded records are damaged: what they decode to has another checksum. "
            "Download or copy the file again."
        )
    return records.to(blob.device)


def coders() -> Any:
    """Return the package constriction.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        import constriction
    except ImportError as error:
        raise MissingExtraError("constriction", "entropy") from error
    return constriction


def _categorical(found: Any, model: Frequencies) -> Any:
    return found.stream.model.Categorical(model.weights, perfect=False)


def _read_models(data: bytes, shape: CodeShape) -> tuple[list[list[tuple[int, Frequencies]]], int]:
    """Return positions and frequencies of the blocks of every part, and the place of the words."""
    models, place = [], _HEAD.size
    for part in parts_of(shape):
        (size,) = struct.unpack_from("<H", data, place)
        if not size:
            raise ValueError(f"a block of no positions at byte {place}")
        place, blocks = place + 2, []
        for start in range(0, part.positions, size):
            model, place = Frequencies.read(data, place, part.bits)
            blocks.append((min(size, part.positions - start), model))
        models.append(blocks)
    return models, place


def _decode(
    found: Any, coder: Any, models: list[list[tuple[int, Frequencies]]], shape: CodeShape
) -> Iterator[Tensor]:
    for part, blocks in zip(parts_of(shape), models, strict=True):
        result, start = np.empty((part.positions, part.rows), dtype=np.uint8), 0
        for positions, model in blocks:
            values: Any = model.low
            if len(model.steps) > 1:
                flat = coder.decode(_categorical(found, model), positions * part.rows)
                values = (flat + model.low).reshape(positions, part.rows)
            result[start : start + positions] = values
            start += positions
        yield torch.from_numpy(result)
