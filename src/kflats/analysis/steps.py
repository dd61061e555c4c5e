"""What each extension of the paper's method buys on one table, at equal parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kflats.config import CompressionConfig
from kflats.errors import BudgetError
from kflats.factors.budget import Budget
from kflats.factors.factorization import Factorization
from kflats.factors.fit import factorize

_PLAIN: dict[str, Any] = {"assignment": "nearest"}

STEPS: dict[str, dict[str, Any]] = {
    "one rank, random start": {**_PLAIN, "init": "random", "n_init": 1},
    "+ start from directions": {**_PLAIN, "init": "spherical"},
    "+ growing ranks": {**_PLAIN, "init": "grown"},
    "+ leave-one-out": {},
    "+ own ranks": {"ranks": True},
    "+ means": {"ranks": True, "affine": True},
    "+ echelon form": {"ranks": True, "affine": True, "echelon": True},
}
"""Options of :class:`kflats.ProjectiveClustering`, each row one extension more than the last."""


@dataclass(frozen=True)
class Step:
    """One row: a factorisation with some of the extensions.

    Attributes
    ----------
    name : str
        Which extension it adds.
    compression : float
        Fraction of the parameters that is removed, of the budget.
    n_clusters : int
        Subspaces.
    num_parameters : int
        Coefficients, bases and means.
    squared_relative_error : float
        ``||A - A_hat||_F ** 2 / ||A||_F ** 2``.
    """

    name: str
    compression: float
    n_clusters: int
    num_parameters: int
    squared_relative_error: float


def steps(
    table: Tensor,
    compression: float,
    n_clusters: int,
    *,
    names: tuple[str, ...] = tuple(STEPS),
    random_state: int = 0,
    on_start: Callable[[str], None] | None = None,
) -> Iterator[Step]:
    """Yield SVD, every extension in turn, and the default with its own number of flats.

    Parameters
    ----------
    table : Tensor of shape (num_embeddings, embedding_dim)
        Finite floating values.
    compression : float
        Fraction of the parameters to remove, between 0 and 1.
    n_clusters : int
        Subspaces of all rows but the first and the last.
    names : tuple of str
        Rows of :data:`STEPS` to do.
    random_state : int, default=0
        Seed.
    on_start : callable, optional
        Called with the name of every row before it is computed.

    Raises
    ------
    BudgetError
        If not even an SVD is small enough; other rows that do not fit are left out.
    """
    budget = Budget(compression=compression)
    start = on_start or (lambda _: None)

    def made(name: str, factors: Factorization) -> Step:
        k, size = factors.n_clusters, factors.num_parameters
        return Step(name, compression, k, size, factors.squared_relative_error)

    start("SVD")
    rank = budget.shape(*table.shape, n_clusters=1).rank
    yield made("SVD", Factorization.svd(table, rank))
    for name in names:
        start(name)
        options = dict(STEPS[name])
        try:
            chosen: int | Budget = budget
            if not options.pop("ranks", False):
                chosen = budget.shape(*table.shape, n_clusters=n_clusters).rank
            factors = Factorization.projective(
                table, n_clusters, chosen, random_state=random_state, **options
            )
        except BudgetError:
            continue
        yield made(name, factors)
    start("+ number of flats chosen")
    config = CompressionConfig(compression=compression, random_state=random_state)
    yield made("+ number of flats chosen", factorize(table, config))
