"""How many dimensions each subspace gets: fixed numbers, or what one budget pays for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from kflats.errors import BudgetError
from kflats.factors.shape import basis_parameters

_PRECISION = 1e-6
_LEAST_PRICE = torch.finfo(torch.float32).tiny


class RankRule(Protocol):
    """Gives every subspace its dimension."""

    def choose(self, eigenvalues: Tensor, counts: Tensor) -> tuple[tuple[int, ...], float]:
        """Return the ranks, and what one stored number costs in units of the inertia.

        Parameters
        ----------
        eigenvalues : Tensor of shape (n_clusters, n_features)
            Of the second moments, ascending: what each dimension saves.
        counts : Tensor of shape (n_clusters,)
            Rows of each cluster.
        """

    def coarse(self, share: float) -> RankRule:
        """Return a rule for about this share of the dimensions, for a growing start."""


@dataclass(frozen=True)
class FixedRanks:
    """The given dimensions, whatever the data."""

    ranks: tuple[int, ...]

    def choose(self, eigenvalues: Tensor, counts: Tensor) -> tuple[tuple[int, ...], float]:  # noqa: ARG002
        """Return the ranks; numbers cost nothing."""
        return self.ranks, 0.0

    def coarse(self, share: float) -> FixedRanks:
        """Return this share of every rank, at least 1."""
        return FixedRanks(tuple(max(1, int(rank * share)) for rank in self.ranks))


@dataclass(frozen=True)
class PricedRanks:
    """The dimensions of least inertia whose numbers fit a budget.

    The (r + 1)-th dimension of a cluster saves its eigenvalue and costs one coefficient for each
    row and one more row of the basis. At a price per number every cluster takes the rank of least
    ``inertia + price * numbers``; the price is the lowest whose ranks fit, and what is left over
    goes to the dimensions that save most for their cost.

    Attributes
    ----------
    numbers : int
        Most coefficients, numbers in bases and means together.
    affine, echelon : bool
        What a basis stores, see :func:`kflats.factors.shape.basis_parameters`.
    share : float, default=1.0
        Part of the numbers above rank 1 everywhere to use, for a growing start.
    """

    numbers: int
    affine: bool
    echelon: bool
    share: float = 1.0

    def choose(self, eigenvalues: Tensor, counts: Tensor) -> tuple[tuple[int, ...], float]:
        """Return the ranks and the price; BudgetError if rank 0 everywhere is too large.

        The price is above 0 even where the numbers pay for everything.
        """
        values = eigenvalues.double().cpu()
        losses, costs = self._table(values, counts.double().cpu())
        least = float(costs[:, 0].sum())
        if least > self.numbers:
            raise BudgetError(
                f"{len(costs)} means alone take {int(least)} numbers, more than the "
                f"{self.numbers} allowed: use fewer clusters or a larger budget."
            )
        # A share of what lies above rank 1: rows without any direction would fall together.
        floor = float(costs[:, 1].sum())
        floor = floor if floor < self.numbers else least
        allowed = int(floor + self.share * (self.numbers - floor))

        def at(price: float) -> tuple[Tensor, float]:
            ranks = (losses + price * costs).argmin(1)
            return ranks, float(costs.gather(1, ranks[:, None]).sum())

        low, high = 0.0, float(values.max()) + 1e-30
        ranks, used = at(low)
        if used > allowed:
            low = high * 1e-15
            while high > low * (1 + _PRECISION):
                price = (low * high) ** 0.5
                if at(price)[1] > allowed:
                    low = price
                else:
                    high = price
            low = high
            ranks, used = at(high)
        return self._filled(ranks, losses, costs, allowed - used), max(low, _LEAST_PRICE)

    def coarse(self, share: float) -> PricedRanks:
        """Return the rule for this share of the numbers."""
        return replace(self, share=self.share * share)

    def _table(self, eigenvalues: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return inertia and numbers of every cluster at every rank, both (k, d + 1)."""
        k, d = eigenvalues.shape
        losses = eigenvalues.new_zeros(k, d + 1)
        losses[:, :d] = eigenvalues.cumsum(1).flip(1)
        ranks = torch.arange(d + 1, dtype=eigenvalues.dtype)
        basis = basis_parameters(ranks, d, affine=self.affine, echelon=self.echelon)
        # An empty cluster is dropped at the end and stores nothing.
        return losses, counts[:, None] * ranks + basis * (counts > 0)[:, None]

    @staticmethod
    def _filled(ranks: Tensor, losses: Tensor, costs: Tensor, left: float) -> tuple[int, ...]:
        """Spend what is left on further dimensions, the best saving per number first."""
        ranks = ranks.clone()
        last = losses.shape[1] - 1
        while True:
            here, following = ranks[:, None], (ranks + 1).clamp_max(last)[:, None]
            cost = (costs.gather(1, following) - costs.gather(1, here)).squeeze(1)
            saving = (losses.gather(1, here) - losses.gather(1, following)).squeeze(1)
            worth = saving / cost.clamp_min(1e-9)
            worth[(cost > left) | (saving <= 0)] = 0.0
            best = int(worth.argmax())
            if float(worth[best]) <= 0:
                return tuple(ranks.tolist())
            ranks[best] += 1
            left -= float(cost[best])
