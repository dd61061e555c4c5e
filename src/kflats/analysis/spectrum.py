"""How quickly the singular values of a table fall."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kflats.linalg import check_table, eigh_ascending, row_blocks, working_dtype
from kflats.units import Unit

SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Squared singular values of a table.

    Attributes
    ----------
    energies : Tensor of shape (embedding_dim,), float64
        Descending; they sum to the squared norm of the table, which is divided by a power of two
        first if squares would leave the range of floats.
    """

    energies: Tensor

    @classmethod
    def of(cls, table: Tensor) -> Spectrum:
        """Compute it from the second moments, reading the table block by block."""
        check_table(table)
        table = Unit.of(table).divide(table)
        compute = working_dtype(table.dtype)
        moments = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)
        for block in row_blocks(*table.shape):
            rows = table[block].to(compute)
            moments += (rows.T @ rows).cpu()
        return cls(eigh_ascending(moments[None])[0][0].flip(0))

    def ranks_for(self, shares: tuple[float, ...] = SHARES) -> dict[float, int]:
        """Return, per share of the squared norm, the smallest rank that holds it."""
        total = float(self.energies.sum())
        held = torch.cumsum(self.energies, 0) / (total or 1.0)
        last = len(held) - 1
        return {
            share: min(last, int(torch.searchsorted(held, share - 1e-12))) + 1 for share in shares
        }
