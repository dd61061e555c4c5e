"""Parameters and bytes of a factorised table, in both directions: the only accounting there is.

``compression`` is the paper's word: the fraction of the table's parameters that is removed, so
0.4 leaves 60 %. Labels are no parameters in that sense, but they are bytes on disk, and every
byte count includes them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Self

import torch

from kflats.errors import BudgetError, InputError

_EXACT_ID_BYTES = 4


def label_dtype(n_clusters: int) -> torch.dtype | None:
    """Return the smallest integer type that holds a label; None where one cluster needs none."""
    if n_clusters == 1:
        return None
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if n_clusters - 1 <= torch.iinfo(dtype).max:
            return dtype
    raise InputError(f"n_clusters={n_clusters} is more than a 32-bit label can hold.")


@dataclass(frozen=True, kw_only=True)
class FactorShape:
    """The sizes that decide what a factorised table stores.

    One cluster is the SVD baseline: no labels are stored for it.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows ``n`` and columns ``d`` of the table.
    n_clusters, rank : int
        Subspaces ``k`` and their dimension ``j``.
    affine : bool, default=False
        Whether every subspace has a mean.
    n_exact : int, default=0
        Rows that are stored as they are, beside the factors.

    Examples
    --------
    >>> shape = FactorShape(num_embeddings=30522, embedding_dim=384, n_clusters=5, rank=216)
    >>> shape.num_parameters, round(shape.compression, 3)
    (7007472, 0.402)
    >>> shape.num_bytes(torch.float32)
    28060410
    """

    num_embeddings: int
    embedding_dim: int
    n_clusters: int
    rank: int
    affine: bool = False
    n_exact: int = 0

    def __post_init__(self) -> None:
        for name in ("num_embeddings", "embedding_dim", "n_clusters", "rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.rank > self.embedding_dim:
            raise InputError(
                f"rank={self.rank} must be between 1 and embedding_dim={self.embedding_dim}."
            )
        if not 0 <= self.n_exact <= self.num_embeddings:
            raise InputError(
                f"n_exact={self.n_exact} must be between 0 and "
                f"num_embeddings={self.num_embeddings}."
            )

    @property
    def dense_parameters(self) -> int:
        """``n * d``."""
        return self.num_embeddings * self.embedding_dim

    @property
    def num_parameters(self) -> int:
        """``n * j + k * j * d``, plus ``k * d`` for means and ``d`` for every exact row."""
        n, d, k, j = self.num_embeddings, self.embedding_dim, self.n_clusters, self.rank
        return n * j + k * j * d + (k * d if self.affine else 0) + self.n_exact * d

    @property
    def compression(self) -> float:
        """Fraction of the parameters removed; negative where the factors are larger."""
        return 1 - self.num_parameters / self.dense_parameters

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes on disk: factors in ``dtype``, labels, and ids of exact rows."""
        label = label_dtype(self.n_clusters)
        label_bytes = 0 if label is None else label.itemsize * self.num_embeddings
        return self.num_parameters * dtype.itemsize + label_bytes + _EXACT_ID_BYTES * self.n_exact

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the shape a JSON object describes; unknown and missing fields are refused."""
        known = {field.name for field in fields(cls)}
        if set(data) != known:
            raise InputError(
                f"a factor shape has the fields {sorted(known)}, got {sorted(data)}: "
                "the file was written by another version of kflats or damaged."
            )
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A size that a factorised table must not exceed: parameters, bytes, or a fixed rank.

    Exactly one of the three is given.

    Parameters
    ----------
    compression : float, optional
        Fraction of the parameters to remove, between 0 and 1, both excluded.
    num_bytes : int, optional
        Most bytes on disk.
    rank : int, optional
        The dimension itself.

    Examples
    --------
    >>> Budget(compression=0.4).shape(30522, 384, n_clusters=5).rank
    216
    >>> Budget(num_bytes=5_000_000).shape(30522, 384, n_clusters=5, dtype=torch.float16).rank
    76
    """

    compression: float | None = None
    num_bytes: int | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        given = [
            name for name in ("compression", "num_bytes", "rank") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise InputError(
                f"got {' and '.join(given) or 'no size'}; give exactly one of compression, "
                "num_bytes (a target size) and rank."
            )
        if self.compression is not None and not 0 < self.compression < 1:
            raise InputError(
                f"compression={self.compression} must be between 0 and 1, both excluded: 0.4 "
                "removes 40 % of the parameters."
            )
        for name in ("num_bytes", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} must be at least 1.")

    def shape(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        n_clusters: int,
        affine: bool = False,
        n_exact: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> FactorShape:
        """Return the shape of largest rank that stays within the budget.

        Raises
        ------
        BudgetError
            If even rank 1 is too large for this number of clusters.
        InputError
            If a fixed rank exceeds ``embedding_dim``.
        """
        of_rank = partial(
            FactorShape,
            num_embeddings=num_embeddings,
            embedding_dim=embedding_dim,
            n_clusters=n_clusters,
            affine=affine,
            n_exact=n_exact,
        )
        if self.rank is not None:
            return of_rank(rank=self.rank)
        smallest = of_rank(rank=1)
        if self.compression is not None:
            allowed = (1 - self.compression) * smallest.dense_parameters
            spare, cost = allowed - smallest.num_parameters, 1
        else:
            allowed = float(self.num_bytes or 0)
            spare, cost = allowed - smallest.num_bytes(dtype), dtype.itemsize
        if spare < 0:
            remedy = "Use fewer clusters or a larger budget." if n_clusters > 1 else "Allow more."
            raise BudgetError(
                f"{self} cannot be met by n_clusters={n_clusters} on a table of "
                f"{num_embeddings} x {embedding_dim}: rank 1 already takes "
                f"{smallest.num_parameters} parameters, {smallest.num_bytes(dtype)} bytes in "
                f"{dtype}. {remedy}"
            )
        per_rank = (num_embeddings + n_clusters * embedding_dim) * cost
        return of_rank(rank=min(embedding_dim, 1 + int(spare // per_rank)))

    def __str__(self) -> str:
        if self.compression is not None:
            return f"compression={self.compression}"
        if self.num_bytes is not None:
            return f"a size of {self.num_bytes} bytes"
        return f"rank={self.rank}"
