"""Error of SVD and of projective clustering over a grid of sizes, at equal parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from kflats.config import CompressionConfig
from kflats.errors import BudgetError
from kflats.factors.budget import Budget
from kflats.factors.factorization import Factorization
from kflats.factors.fit import factorize
from kflats.factors.shape import FactorShape

FLATS = "flats"


@dataclass(frozen=True)
class GridPoint:
    """One factorisation of the grid.

    Attributes
    ----------
    compression : float
        The budget: fraction of the parameters to remove.
    shape : FactorShape
        The largest that stays within it; one linear cluster is SVD.
    squared_relative_error : float
        ``||A - A_hat||_F ** 2 / ||A||_F ** 2``.
    """

    compression: float
    shape: FactorShape
    squared_relative_error: float

    @property
    def relative_error(self) -> float:
        """Not squared."""
        return float(self.squared_relative_error**0.5)

    @property
    def method(self) -> str:
        """'SVD', 'k = ...' or 'flats'."""
        if self.shape.echelon:
            return FLATS
        return "SVD" if self.shape.n_clusters == 1 else f"k = {self.shape.n_clusters}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            **asdict(self),
            "shape": self.shape.to_dict(),
            "n_clusters": self.shape.n_clusters,
            "rank": self.shape.rank,
            "method": self.method,
            "relative_error": self.relative_error,
        }


def factorizations(
    table: Tensor,
    compressions: Iterable[float],
    n_clusters: Iterable[int],
    *,
    flats: bool = False,
    random_state: int = 0,
    on_start: Callable[[str], None] | None = None,
) -> Iterator[tuple[GridPoint, Factorization]]:
    """Yield every factorisation of the grid that its budget allows, smallest compression first.

    Parameters
    ----------
    table : Tensor of shape (num_embeddings, embedding_dim)
        Finite floating values.
    compressions : iterable of float
        Each between 0 and 1.
    n_clusters : iterable of int
        Each at least 1; 1 is SVD.
    flats : bool, default=False
        Whether to add the default of :func:`kflats.compress_` at every compression.
    random_state : int, default=0
        Seed.
    on_start : callable, optional
        Called with a title before every fit.
    """
    clusters = list(n_clusters)
    for compression in sorted(compressions):
        for k in clusters:
            try:
                shape = Budget(compression=compression).shape(*table.shape, n_clusters=k)
            except BudgetError:
                continue
            if on_start is not None:
                on_start(f"{compression:.0%} smaller, {'SVD' if k == 1 else f'k = {k}'}")
            factors = Factorization.projective(table, k, shape.rank, random_state=random_state)
            yield GridPoint(compression, shape, factors.squared_relative_error), factors
        if flats:
            if on_start is not None:
                on_start(f"{compression:.0%} smaller, {FLATS}")
            config = CompressionConfig(compression=compression, random_state=random_state)
            try:
                factors = factorize(table, config)
            except BudgetError:
                continue
            yield GridPoint(compression, factors.shape, factors.squared_relative_error), factors


def curves(points: Iterable[GridPoint]) -> dict[str, tuple[list[float], list[float]]]:
    """Return compression and relative error per method, for drawing."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for point in points:
        x, y = lines.setdefault(point.method, ([], []))
        x.append(100 * point.compression)
        y.append(point.relative_error)
    return lines
