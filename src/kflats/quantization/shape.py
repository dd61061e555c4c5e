"""CodeShape: what a table in packed codes stores, to the byte."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Self

import torch

from kflats.errors import InputError
from kflats.factors.shape import STORED, check_fields, check_sizes, label_dtype, rank_range
from kflats.quantization.packing import HALF, PLANES, packed_bytes

Runs = tuple[tuple[int, int], ...]
"""(bits, coefficients) of a row from its first coefficient on; the others are zero."""
BASIS_DTYPES = {8: torch.int8, 16: torch.int16}


@dataclass(frozen=True, kw_only=True)
class CodeShape:
    """The sizes of a table in packed codes.

    A row is ``gain * coefficients @ basis (+ mean)``. The rows are divided into groups; all rows
    of a group have the same basis and the same bits for each coefficient. Its record is one byte
    for the gain and the packed codes, see :mod:`kflats.quantization.packing`.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows ``n`` and columns ``d`` of the table.
    counts : tuple of int
        Rows of each group; they sum to ``num_embeddings``.
    runs : tuple of tuple of (bits, coefficients)
        For each group, bits descending; empty where a row is its mean, and for exact rows.
    basis_ids : tuple of int
        Basis of each group, from 0, ascending; -1 for rows stored as they are, the last group.
    rotated : tuple of bool
        For each basis, whether it is a rotation that is stored; otherwise it is the identity.
    affine : bool, default=True
        Whether every basis has a mean beside it.
    basis_bits : {8, 16}, default=8
        Bits of the numbers in bases and means, with one scale per direction.

    Examples
    --------
    >>> plain = CodeShape(
    ...     num_embeddings=1000, embedding_dim=64, counts=(1000,), runs=(((4, 64),),),
    ...     basis_ids=(0,), rotated=(False,), affine=False,
    ... )
    >>> plain.record_bytes  # a gain and 64 x 4 bits
    (33,)
    >>> plain.num_bytes(torch.float32)  # records, 64 column scales, the code book
    33328
    """

    num_embeddings: int
    embedding_dim: int
    counts: tuple[int, ...]
    runs: tuple[Runs, ...]
    basis_ids: tuple[int, ...]
    rotated: tuple[bool, ...]
    affine: bool = True
    basis_bits: int = 8

    def __post_init__(self) -> None:
        for name in ("counts", "basis_ids", "rotated"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        runs = tuple(tuple((int(b), int(c)) for b, c in group) for group in self.runs)
        object.__setattr__(self, "runs", runs)
        for name in ("num_embeddings", "embedding_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if not len(self.counts) == len(self.runs) == len(self.basis_ids) > 0:
            raise InputError(
                f"counts, runs and basis_ids have {len(self.counts)}, {len(self.runs)} and "
                f"{len(self.basis_ids)} entries; give one of each per group."
            )
        if min(self.counts) < 0 or sum(self.counts) != self.num_embeddings:
            raise InputError(
                f"counts sum to {sum(self.counts)}; they must be 0 or more and sum to "
                f"num_embeddings={self.num_embeddings}."
            )
        if self.basis_bits not in BASIS_DTYPES:
            raise InputError(f"basis_bits={self.basis_bits} must be one of {[*BASIS_DTYPES]}.")
        self._check_groups()

    def _check_groups(self) -> None:
        coded = [basis for basis in self.basis_ids if basis != STORED]
        exact = self.basis_ids[len(coded) :]
        wanted = set(range(len(self.rotated)))
        if coded != sorted(coded) or set(coded) != wanted or exact not in ((), (STORED,)):
            raise InputError(
                f"basis_ids={self.basis_ids} must name the {len(self.rotated)} bases in order, "
                f"and at most one last group {STORED} of rows stored as they are."
            )
        for runs, basis in zip(self.runs, self.basis_ids, strict=True):
            bits = [width for width, _ in runs]
            known = all(width in PLANES or width == HALF for width in bits)
            if (
                not known
                or bits != sorted(set(bits), reverse=True)
                or (exact and runs and basis < 0)
            ):
                raise InputError(
                    f"runs={runs} must have descending widths of {[*PLANES, HALF]} bits, and none "
                    "for rows stored as they are."
                )
            if any(count < 1 for _, count in runs) or coded_in(runs) > self.embedding_dim:
                raise InputError(
                    f"runs={runs} must have from 1 to embedding_dim={self.embedding_dim} "
                    "coefficients."
                )

    @cached_property
    def record_bytes(self) -> tuple[int, ...]:
        """Bytes of a row of each group: its gain and codes; 0 where nothing is coded."""
        return tuple(
            (1 + sum(packed_bytes(count, bits) for bits, count in runs)) if runs else 0
            for runs in self.runs
        )

    @cached_property
    def coded(self) -> tuple[int, ...]:
        """Coefficients that the rows of each group have."""
        return tuple(coded_in(runs) for runs in self.runs)

    @cached_property
    def row_starts(self) -> tuple[int, ...]:
        """Place of the first row of each group, and the number of rows."""
        return tuple(accumulate(self.counts, initial=0))

    @cached_property
    def byte_starts(self) -> tuple[int, ...]:
        """First byte of the records of each group, and their number of bytes."""
        sizes = zip(self.counts, self.record_bytes, strict=True)
        return tuple(accumulate((count * size for count, size in sizes), initial=0))

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """The widths that have a code book, ascending."""
        found: set[int] = {bits for runs in self.runs for bits, _ in runs}
        return tuple(sorted(found - {HALF}))

    @cached_property
    def basis_ranks(self) -> tuple[int, ...]:
        """Coefficients that the rows of each basis have at most."""
        found = [0] * len(self.rotated)
        for coded, basis in zip(self.coded, self.basis_ids, strict=True):
            if basis != STORED:
                found[basis] = max(found[basis], coded)
        return tuple(found)

    @cached_property
    def directions(self) -> tuple[int, ...]:
        """Rows that each basis stores: its mean, and its directions if it is rotated."""
        pairs = zip(self.basis_ranks, self.rotated, strict=True)
        return tuple(int(self.affine) + (rank if rotated else 0) for rank, rotated in pairs)

    @property
    def num_scales(self) -> int:
        """One number per stored direction, and one per column of an identity."""
        return sum(self.directions) + self.embedding_dim * self.rotated.count(False)

    @property
    def book_size(self) -> int:
        """Numbers that describe the codes: two for the gains, and the levels of each width."""
        return 2 + sum(1 << bits for bits in self.widths)

    @property
    def n_clusters(self) -> int:
        """Number of bases ``k``."""
        return len(self.rotated)

    @property
    def rank(self) -> int:
        """Coefficients that a row has at most."""
        return max(self.basis_ranks, default=0)

    @property
    def rank_range(self) -> str:
        """Coefficients of the bases in words: '384', or '31-254' where they differ."""
        return rank_range(self.basis_ranks)

    @property
    def n_exact(self) -> int:
        """Rows stored as they are."""
        return self.counts[-1] if self.basis_ids[-1] == STORED else 0

    @property
    def dense_parameters(self) -> int:
        """``n * d``."""
        return self.num_embeddings * self.embedding_dim

    @property
    def num_parameters(self) -> int:
        """Numbers that are stored, in however many bits: coefficients, exact rows, bases, means."""
        coded = sum(count * each for count, each in zip(self.counts, self.coded, strict=True))
        return coded + (self.n_exact + sum(self.directions)) * self.embedding_dim

    @property
    def compression(self) -> float:
        """Fraction of the parameters removed; codes save bits, so this is seldom the point."""
        return 1 - self.num_parameters / self.dense_parameters

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes on disk; ``dtype`` is that of exact rows, scales and code books."""
        records = zip(self.counts, self.record_bytes, strict=True)
        label = label_dtype(len(self.counts))
        return (
            sum(count * size for count, size in records)
            + (0 if label is None else label.itemsize * self.num_embeddings)
            + sum(self.directions) * self.embedding_dim * (self.basis_bits // 8)
            + dtype.itemsize * (self.num_scales + self.book_size)
            + self.n_exact * self.embedding_dim * dtype.itemsize
        )

    def bits(self, dtype: torch.dtype) -> float:
        """Return the bits on disk per parameter of the dense table."""
        return 8 * self.num_bytes(dtype) / self.dense_parameters

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()},
            "runs": [[list(run) for run in runs] for runs in self.runs],
        }

    @staticmethod
    @lru_cache(maxsize=64)
    def parse(text: str) -> CodeShape:
        """Return the shape that :meth:`to_dict` has described, as JSON text, each made once."""
        return CodeShape.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the shape a JSON object describes; unknown and missing fields are refused."""
        check_fields(data, [field.name for field in fields(cls)], "a shape of packed codes")
        numbers = [data[name] for name in ("num_embeddings", "embedding_dim", "basis_bits")]
        numbers += _entries(data["counts"], 1) + _entries(data["basis_ids"], 1)
        numbers += _entries(data["runs"], 3)
        truths = [data["affine"], *_entries(data["rotated"], 1)]
        is_sound = all(type(each) is int for each in numbers)
        is_sound &= all(type(each) is bool for each in truths)
        if not is_sound or any(len(run) != 2 for run in _entries(data["runs"], 2)):
            raise InputError(
                "a shape of packed codes holds whole numbers, lists of them, runs of (bits, "
                f"coefficients) and truth values, got {data}."
            )
        shape = cls(**data)
        check_sizes(numbers, shape)
        return shape


def _entries(data: Any, depth: int) -> list[Any]:
    """Return the entries of nested lists; None in the place of what is no list."""
    if not depth:
        return [data]
    if type(data) is not list:
        return [None]
    return [entry for each in data for entry in _entries(each, depth - 1)]


def coded_in(runs: Runs) -> int:
    """Return the coefficients of a row."""
    return sum(count for _, count in runs)
