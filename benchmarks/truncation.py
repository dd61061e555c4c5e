"""Per-row truncation: what a row would save by keeping only its leading coefficients."""

from __future__ import annotations

import torch
from torch import Tensor

from kflats import Factorization
from kflats.linalg import by_cluster


def truncated_error(table: Tensor, factors: Factorization, compression: float) -> float:
    """Return the squared relative error if every row kept the best prefix of its coefficients.

    The clusters stay; their principal directions are found again, rows and bases choose lengths at
    one price per number, and the price is that of the same budget. Prefixes need ordered bases,
    which in the shortest (trapezoidal) form take ``r * d - r * (r + 1) / 2`` numbers instead of
    ``r * (d - r)``. How many coefficients a row keeps is not counted, as labels are not.
    """
    allowed = (1 - compression) * table.numel()
    d = table.shape[1]
    lengths = torch.arange(d + 1, dtype=torch.float64)
    bases = lengths * d - lengths * (lengths + 1) / 2 + d
    tails = [_tails(table[rows]) for _, rows in by_cluster(factors.labels, factors.n_clusters)]

    def at(price: float) -> tuple[float, float]:
        error = size = 0.0
        for tail in tails:
            cost = tail + price * lengths
            total = cost.cummin(1).values.sum(0) + price * bases
            longest = int(total.argmin())
            kept = cost[:, : longest + 1].argmin(1)
            error += float(tail.gather(1, kept[:, None]).sum())
            size += float(kept.sum()) + float(bases[longest])
        return error, size

    low, high = 1e-9, float(max(tail.max() for tail in tails))
    for _ in range(40):
        price = (low * high) ** 0.5
        low, high = (price, high) if at(price)[1] > allowed else (low, price)
    return at(high)[0] / float(table.double().square().sum())


def _tails(rows: Tensor) -> Tensor:
    """Return the squared error of every row for every number of kept coefficients."""
    centred = rows.double() - rows.double().mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    squares = (centred @ vectors.flip(1)).square()
    tails = torch.zeros(len(rows), rows.shape[1] + 1, dtype=torch.float64)
    tails[:, :-1] = squares.flip(1).cumsum(1).flip(1)
    return tails
