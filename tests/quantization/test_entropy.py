from __future__ import annotations

import sys
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kflats import CheckpointError, InputError
from kflats.errors import MissingExtraError
from kflats.quantization.fit import code_table
from kflats.quantization.packing import HALF, PLANES, pack
from kflats.quantization.settings import CodeSettings
from kflats.quantization.shape import CodeShape, Runs
from tests.conftest import spectral_table

pytest.importorskip("constriction")

from kflats.quantization.entropy import compress_codes, compress_records, decompress_codes


def shape_of(counts: tuple[int, ...], runs: tuple[Runs, ...], d: int = 12) -> CodeShape:
    return CodeShape(
        num_embeddings=sum(counts),
        embedding_dim=d,
        counts=counts,
        runs=runs,
        basis_ids=(0,) * len(counts),
        rotated=(False,),
    )


def records_of(shape: CodeShape, seed: int = 0) -> Tensor:
    """Return random records; half of the codes are zero."""
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.zeros(0, dtype=torch.uint8)]
    for rows, runs in zip(shape.counts, shape.runs, strict=True):
        if not runs:
            continue
        parts = [torch.randint(256, (rows, 1), generator=generator).to(torch.uint8)]
        for bits, count in runs:
            if bits == HALF:
                values = torch.randn(rows, count, generator=generator).half()
                parts.append(values.view(torch.uint8))
            else:
                codes = torch.randint(1 << bits, (rows, count), generator=generator)
                parts.append(pack(codes * torch.randint(2, codes.shape, generator=generator), bits))
        groups.append(torch.cat(parts, 1).flatten())
    return torch.cat(groups)


SHAPE = shape_of((40, 0, 25), (((16, 2), (8, 1), (5, 3), (3, 4)), ((4, 12),), ((2, 5), (1, 7))))
RECORDS = records_of(SHAPE)


@st.composite
def shapes(draw: st.DrawFn) -> CodeShape:
    counts, runs = [], []
    for _ in range(draw(st.integers(1, 4))):
        counts.append(draw(st.integers(0, 9)))
        bits = draw(st.lists(st.sampled_from([*PLANES, HALF]), unique=True, max_size=4))
        runs.append(tuple((b, draw(st.integers(1, 3))) for b in sorted(bits, reverse=True)))
    counts[0] += sum(counts) == 0
    return shape_of(tuple(counts), tuple(runs))


@settings(max_examples=100, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 1000))
def test_decompressing_is_the_exact_inverse(shape: CodeShape, seed: int) -> None:
    records = records_of(shape, seed)
    assert torch.equal(decompress_codes(compress_records(records, shape), shape), records)


@pytest.mark.parametrize("levels", ["uniform", "lloyd-max"])
@pytest.mark.parametrize("rotated", [False, True])
def test_tables_become_smaller_and_come_back(levels: str, rotated: bool) -> None:
    table = spectral_table(2000, 32)
    codes = code_table(table, 32_000, settings=CodeSettings(levels=levels, rotated=rotated))
    blob = compress_codes(codes)
    assert len(blob) < 0.97 * len(codes.coefficients)
    assert torch.equal(decompress_codes(blob, codes.shape), codes.coefficients)


def test_positions_of_different_frequencies_are_told_apart() -> None:
    shape = shape_of((4000,), (((1, 8),),), d=8)
    share = torch.linspace(0.01, 0.99, 8)
    bits = (torch.rand(4000, 8, generator=torch.Generator().manual_seed(0)) < share).int()
    records = torch.cat([torch.zeros(4000, 1, dtype=torch.uint8), pack(bits, 1)], 1).flatten()
    entropy = -(share * share.log2() + (1 - share) * (1 - share).log2()).sum() * 4000 / 8
    blob = compress_records(records, shape)
    assert len(blob) < 1.02 * float(entropy) + 60


def test_records_of_one_symbol_and_of_none_need_no_words() -> None:
    shape = shape_of((50, 3), (((4, 12),), ()))
    zeros = torch.zeros(50 * 7, dtype=torch.uint8)
    assert len(compress_records(zeros, shape)) == 1 + 4 + 2 * (2 + 2)
    nothing = shape_of((5, 0), ((), ((4, 12),)))
    blob = compress_records(torch.zeros(0, dtype=torch.uint8), nothing)
    assert len(blob) == 5
    assert decompress_codes(blob, nothing).numel() == 0


def test_layout_begins_with_version_and_checksum() -> None:
    blob = compress_records(RECORDS, SHAPE)
    assert int(blob[0]) == 1
    checksum = int.from_bytes(bytes(blob[1:5].tolist()), "little")
    assert checksum == zlib.crc32(bytes(RECORDS.tolist()))


def test_every_damaged_byte_is_noticed() -> None:
    blob = compress_records(RECORDS, SHAPE)
    for place in range(len(blob)):
        for change in (1, 0x80, 0xFF):
            damaged = blob.clone()
            damaged[place] ^= change
            try:
                found = decompress_codes(damaged, SHAPE)
            except CheckpointError:
                continue
            assert torch.equal(found, RECORDS)  # such as a frequency that changes no symbol


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 6, 7, 40, 200, -1, -4])
def test_cut_blobs_are_refused(cut: int) -> None:
    blob = compress_records(RECORDS, SHAPE)
    with pytest.raises(CheckpointError, match="entropy-coded records"):
        decompress_codes(blob[:cut], SHAPE)
    with pytest.raises(CheckpointError, match="entropy-coded records"):
        decompress_codes(torch.cat([blob, blob[:4]]), SHAPE)


def test_blobs_of_other_tables_and_versions_are_refused() -> None:
    blob = compress_records(RECORDS, SHAPE)
    other = shape_of((65,), (((4, 12),),))
    with pytest.raises(CheckpointError, match="damaged"):
        decompress_codes(blob, other)
    blob[0] = 2
    with pytest.raises(CheckpointError, match=r"have the version 2; this kflats reads 1"):
        decompress_codes(blob, SHAPE)


def test_bits_that_no_code_uses_are_refused() -> None:
    shape = shape_of((4,), (((2, 5),),))
    records = torch.full((4 * 3,), 255, dtype=torch.uint8)
    with pytest.raises(InputError, match="bits are set in them that no code uses"):
        compress_records(records, shape)


def test_without_constriction_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(MissingExtraError, match=r"\.\[entropy\]"):
        compress_records(RECORDS, SHAPE)
