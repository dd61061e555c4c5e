"""Budget: from a size in parameters or bytes to the largest rank that meets it.

``compression`` is the paper's word: the fraction of the table's parameters that is removed, so
0.4 leaves 60 %. Labels are no parameters in that sense, but they are bytes on disk, and every
byte count includes them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import torch

from kflats.errors import BudgetError, InputError
from kflats.factors.shape import FactorShape


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A size that a factorised table must not exceed: parameters, bytes, or a fixed rank.

    Exactly one of the four is given.

    Parameters
    ----------
    compression : float, optional
        Fraction of the parameters to remove, between 0 and 1, both excluded.
    num_bytes : int, optional
        Most bytes on disk.
    rank : int, optional
        The dimension itself.
    num_parameters : int, optional
        Most coefficients, numbers in bases, and means together.

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
    num_parameters: int | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            raise InputError(
                f"got {' and '.join(given) or 'no size'}; give exactly one of compression, "
                "num_bytes (a target size), rank and num_parameters."
            )
        if self.compression is not None and not 0 < self.compression < 1:
            raise InputError(
                f"compression={self.compression} must be between 0 and 1, both excluded: 0.4 "
                "removes 40 % of the parameters."
            )
        for name in ("num_bytes", "rank", "num_parameters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} must be at least 1.")

    def numbers(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        n_clusters: int,
        n_exact: int = 0,
        echelon: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> int:
        """Return the most coefficients, numbers in bases and means beside the exact rows.

        Labels and the masks of echelon bases count where the budget is in bytes.

        Raises
        ------
        InputError
            If the budget is a fixed rank.
        """
        if self.rank is not None:
            raise InputError(f"{self} is no size: give a compression, bytes or parameters.")
        if self.num_parameters is not None:
            allowed = self.num_parameters
        elif self.compression is not None:
            allowed = int((1 - self.compression) * num_embeddings * embedding_dim)
        else:
            without = FactorShape.uniform(
                num_embeddings,
                embedding_dim,
                n_clusters=n_clusters,
                rank=0,
                echelon=echelon,
                n_exact=n_exact,
            )
            beside = without.num_bytes(dtype) - without.num_parameters * dtype.itemsize
            allowed = (int(self.num_bytes or 0) - beside) // dtype.itemsize
        return allowed - n_exact * embedding_dim

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
            FactorShape.uniform,
            num_embeddings,
            embedding_dim,
            n_clusters=n_clusters,
            affine=affine,
            n_exact=n_exact,
        )
        if self.rank is not None:
            return of_rank(rank=self.rank)
        smallest = of_rank(rank=1)
        if self.num_bytes is None:
            allowed = float(self.num_parameters or 0)
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
        per_rank = (num_embeddings - n_exact + n_clusters * embedding_dim) * cost
        return of_rank(rank=min(embedding_dim, 1 + int(spare // per_rank)))

    def __str__(self) -> str:
        if self.compression is not None:
            return f"compression={self.compression}"
        if self.num_bytes is not None:
            return f"a size of {self.num_bytes} bytes"
        if self.num_parameters is not None:
            return f"{self.num_parameters} parameters"
        return f"rank={self.rank}"
