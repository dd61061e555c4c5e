"""FactorShape: what a factorised table stores, in parameters and bytes. The only accounting."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor

from kflats.errors import InputError

if TYPE_CHECKING:
    from kflats.quantization.shape import CodeShape

STORED = -1
"""Basis number of rows that are stored as they are."""

_MOST = 2**31 - 1

Number = TypeVar("Number", int, Tensor)


def check_fields(data: object, known: list[str], what: str) -> None:
    """Raise InputError unless ``data`` is a JSON object with exactly the ``known`` fields."""
    found = sorted(data) if isinstance(data, dict) else [type(data).__name__]
    if found != sorted(known):
        raise InputError(
            f"{what} has the fields {sorted(known)}, got {found}: the file was written by another "
            "version of kflats or damaged."
        )


def check_sizes(numbers: list[int], shape: FactorShape | CodeShape) -> None:
    """Raise InputError if a file describes sizes that no table has, before they are used.

    Places of rows are numbers of 32 bits.
    """
    most = max(map(abs, numbers))
    if most > _MOST or shape.num_bytes(torch.float64) > 2**60:
        raise InputError(
            f"the largest size is {most}, with {shape.num_parameters} numbers altogether; sizes "
            f"are at most {_MOST}, and a table has less than an exabyte."
        )


def label_dtype(n_groups: int) -> torch.dtype | None:
    """Return the smallest integer type that holds a label; None where one group needs none."""
    if n_groups == 1:
        return None
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if n_groups - 1 <= torch.iinfo(dtype).max:
            return dtype
    raise InputError(f"{n_groups} groups are more than a 32-bit label can hold.")


def basis_parameters(rank: Number, embedding_dim: int, *, affine: bool, echelon: bool) -> Number:
    """Return the numbers stored for one basis, its mean included.

    Parameters
    ----------
    rank : int or Tensor of integers, any shape
        Directions of the basis, from 0 to ``embedding_dim``.
    embedding_dim : int
        Columns ``d`` of the table.
    affine : bool
        Whether the basis has a mean.
    echelon : bool
        Whether the columns of the identity, ``rank`` of them, are left out.

    Returns
    -------
    int or Tensor of the shape of ``rank``
        ``rank * d`` and ``d`` for the mean; in echelon form ``d - rank`` takes the place of ``d``.

    Examples
    --------
    >>> basis_parameters(2, 8, affine=True, echelon=False)
    24
    >>> basis_parameters(2, 8, affine=True, echelon=True)  # two rows and a mean of 8 - 2 numbers
    18
    """
    columns = embedding_dim - rank if echelon else embedding_dim
    return (rank + int(affine)) * columns


def rank_range(ranks: tuple[int, ...]) -> str:
    """Return dimensions in words: '216', or '31-254' where they differ; '0' for none."""
    ranks = ranks or (0,)
    return str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)}-{max(ranks)}"


def mask_bytes(embedding_dim: int) -> int:
    """Return the bytes of one bit per column."""
    return -(-embedding_dim // 8)


@dataclass(frozen=True, kw_only=True)
class FactorShape:
    """The sizes that decide what a factorised table stores.

    The rows of the table are divided into groups. The rows of a group lie in the first
    ``rank`` directions of one basis; several groups may use one basis, and a group may have none:
    its rows are stored as they are. :meth:`uniform` makes the usual case, one group per cluster.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows ``n`` and columns ``d`` of the table.
    counts : tuple of int
        Rows of each group; they sum to ``num_embeddings``.
    ranks : tuple of int
        Coefficients per row of each group, from 0 (the rows are the mean of the flat, or zero) to
        ``embedding_dim``; ``embedding_dim`` where the rows are stored as is.
    basis_ids : tuple of int
        Basis of each group, from 0; -1 for rows stored as they are.
    affine : bool, default=False
        Whether every basis has a mean beside it.
    echelon : bool, default=False
        Whether every basis is the identity in as many columns as it has directions, its pivots,
        and its mean is zero there. These numbers are not stored; one bit per basis and column
        says where they are. All groups on one basis then have its rank.

    Examples
    --------
    >>> shape = FactorShape.uniform(30522, 384, n_clusters=5, rank=216)
    >>> shape.num_parameters, round(shape.compression, 3)
    (7007472, 0.402)
    >>> shape.num_bytes(torch.float32)
    28060410
    >>> mixed = FactorShape(
    ...     num_embeddings=100, embedding_dim=8, counts=(90, 10), ranks=(2, 8), basis_ids=(0, -1)
    ... )
    >>> mixed.num_parameters  # 90 * 2 coefficients, 10 whole rows, a basis of 2 * 8
    276
    >>> FactorShape.uniform(30522, 384, n_clusters=5, rank=216, echelon=True).num_parameters
    6774192
    """

    num_embeddings: int
    embedding_dim: int
    counts: tuple[int, ...]
    ranks: tuple[int, ...]
    basis_ids: tuple[int, ...]
    affine: bool = False
    echelon: bool = False

    def __post_init__(self) -> None:
        for name in ("counts", "ranks", "basis_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("num_embeddings", "embedding_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if not len(self.counts) == len(self.ranks) == len(self.basis_ids) > 0:
            raise InputError(
                f"counts, ranks and basis_ids have {len(self.counts)}, {len(self.ranks)} and "
                f"{len(self.basis_ids)} entries; give one of each per group."
            )
        if min(self.counts) < 0 or sum(self.counts) != self.num_embeddings:
            raise InputError(
                f"counts sum to {sum(self.counts)}; they must be 0 or more and sum to "
                f"num_embeddings={self.num_embeddings}."
            )
        for rank in self.ranks:
            if not 0 <= rank <= self.embedding_dim:
                raise InputError(
                    f"rank={rank} must be between 0 and embedding_dim={self.embedding_dim}."
                )
        self._check_basis_ids()

    def _check_basis_ids(self) -> None:
        used = {basis for basis in self.basis_ids if basis != STORED}
        if used != set(range(len(used))):
            raise InputError(
                f"basis_ids={self.basis_ids} must number the bases 0, 1, 2, ... without a gap, "
                f"and be {STORED} for rows stored as they are."
            )
        of_basis = self.basis_ranks
        for rank, basis in zip(self.ranks, self.basis_ids, strict=True):
            if basis == STORED and rank != self.embedding_dim:
                raise InputError(
                    f"rank={rank} of rows stored as they are must be "
                    f"embedding_dim={self.embedding_dim}."
                )
            if self.echelon and basis != STORED and rank != of_basis[basis]:
                raise InputError(
                    f"groups of ranks {rank} and {of_basis[basis]} use basis {basis}: in "
                    "echelon form all groups on one basis must have its rank."
                )

    @classmethod
    def uniform(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        *,
        n_clusters: int,
        rank: int,
        affine: bool = False,
        echelon: bool = False,
        n_exact: int = 0,
        counts: tuple[int, ...] | None = None,
    ) -> Self:
        """Return the shape of clusters of one rank, with ``n_exact`` rows stored as they are.

        No size depends on how the rows spread over such clusters, so ``counts`` may be left out:
        they are as equal as can be then.

        Raises
        ------
        InputError
            If a number is out of range.
        """
        for name, value in (("num_embeddings", num_embeddings), ("n_clusters", n_clusters)):
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1.")
        if not 0 <= n_exact <= num_embeddings:
            raise InputError(
                f"n_exact={n_exact} must be between 0 and num_embeddings={num_embeddings}."
            )
        if counts is None:
            each, rest = divmod(num_embeddings - n_exact, n_clusters)
            counts = tuple(each + (cluster < rest) for cluster in range(n_clusters))
        stored = 1 if n_exact else 0
        return cls(
            num_embeddings=num_embeddings,
            embedding_dim=embedding_dim,
            counts=counts + (n_exact,) * stored,
            ranks=(rank,) * n_clusters + (embedding_dim,) * stored,
            basis_ids=tuple(range(n_clusters)) + (STORED,) * stored,
            affine=affine,
            echelon=echelon,
        )

    @property
    def n_clusters(self) -> int:
        """Number of bases ``k``."""
        return max(self.basis_ids) + 1

    @property
    def basis_ranks(self) -> tuple[int, ...]:
        """Directions of each basis."""
        found = [0] * self.n_clusters
        for rank, basis in zip(self.ranks, self.basis_ids, strict=True):
            if basis != STORED:
                found[basis] = max(found[basis], rank)
        return tuple(found)

    @property
    def rank(self) -> int:
        """The largest rank of a basis: ``j`` where all are equal; 0 without bases."""
        return max(self.basis_ranks, default=0)

    @property
    def rank_range(self) -> str:
        """The dimensions in words: '216', or '31-254' where they differ."""
        return rank_range(self.basis_ranks)

    @property
    def n_exact(self) -> int:
        """Rows stored as they are."""
        pairs = zip(self.counts, self.basis_ids, strict=True)
        return sum(count for count, basis in pairs if basis == STORED)

    @property
    def num_coefficients(self) -> int:
        """Coefficients of all rows, rows stored as they are included."""
        return sum(count * rank for count, rank in zip(self.counts, self.ranks, strict=True))

    @property
    def dense_parameters(self) -> int:
        """``n * d``."""
        return self.num_embeddings * self.embedding_dim

    @property
    def num_parameters(self) -> int:
        """Coefficients, bases and means: ``n * j + k * j * d`` for clusters of one rank.

        In echelon form ``n * j + k * j * (d - j)``.
        """
        return self.num_coefficients + sum(
            basis_parameters(rank, self.embedding_dim, affine=self.affine, echelon=self.echelon)
            for rank in self.basis_ranks
        )

    @property
    def compression(self) -> float:
        """Fraction of the parameters removed; negative where the factors are larger."""
        return 1 - self.num_parameters / self.dense_parameters

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes on disk: factors in ``dtype``, and one label per row.

        In echelon form also ``ceil(d / 8)`` bytes per basis, which mark its pivots.
        """
        label = label_dtype(len(self.counts))
        label_bytes = 0 if label is None else label.itemsize * self.num_embeddings
        pivot_bytes = self.n_clusters * mask_bytes(self.embedding_dim) if self.echelon else 0
        return self.num_parameters * dtype.itemsize + label_bytes + pivot_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the shape a JSON object describes; unknown and missing fields are refused."""
        check_fields(data, [field.name for field in fields(cls)], "a factor shape")
        lists = [data[name] for name in ("counts", "ranks", "basis_ids")]
        numbers = [data["num_embeddings"], data["embedding_dim"]]
        for each in lists:
            numbers += each if isinstance(each, list) else ["no list"]
        truths = [data["affine"], data["echelon"]]
        if {type(number) for number in numbers} != {int} or {type(t) for t in truths} != {bool}:
            raise InputError(
                f"a factor shape holds whole numbers, lists of them and truth values, got {data}."
            )
        shape = cls(**data)
        check_sizes(numbers, shape)
        return shape
