"""A weighted sample of rows to fit instead of all of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from numpy.random import RandomState
from torch import Tensor

from kflats.clustering.rows import Moments, Rows
from kflats.linalg import eigh_ascending

_FLOOR = 1e-6


def sensitivities(rows: Rows, rank: int) -> Tensor:
    """Return how much each row can matter to any set of flats, up to a factor.

    The mean of three shares, each summing to 1: of the squared norm, of the leverage
    ``x (XᵀX)⁻¹ xᵀ`` (which bounds a row's share in the cost of every subspace), and of the squared
    distance to a rough solution, the best single subspace of the given rank.

    Parameters
    ----------
    rows : Rows
        All rows, with their weights.
    rank : int
        Dimension of the rough solution.

    Returns
    -------
    Tensor of shape (n_samples,), float64
        Positive, sums to 1.
    """
    labels = torch.zeros(len(rows), dtype=torch.int64, device=rows.table.device)
    values, vectors = eigh_ascending(Moments.of(rows, labels, 1).second.to(rows.dtype))
    kept = values[0] > _FLOOR * values[0, -1]
    scales = torch.where(kept, values[0].clamp_min(torch.finfo(rows.dtype).tiny).rsqrt(), 0.0)
    outside = rows.n_features - rank
    shares = torch.empty(len(rows), 3, dtype=torch.float64, device=labels.device)
    for block in rows.blocks(3 * rows.n_features):
        squares = (rows.take(block) @ vectors[0]).square_()
        shares[block, 0] = squares.sum(1).double()
        shares[block, 1] = (squares @ scales.square()).double()
        shares[block, 2] = squares[:, :outside].sum(1).double()
    if rows.weights is not None:
        shares *= rows.weights[:, None]
    totals = shares.sum(0)
    found = (shares / totals.clamp_min(torch.finfo(torch.float64).tiny)).sum(1)
    if float(found.sum()) == 0:
        found = torch.ones_like(found)
    return found / found.sum()


def coreset(rows: Rows, size: int, rank: int, random: RandomState) -> tuple[Tensor, Rows]:
    """Return the ids of a sample of rows, and the sample.

    ``size`` rows are drawn with replacement in proportion to their sensitivity; a row that is
    drawn m times with probability p stands for ``m / (size * p)`` rows, so that every weighted
    sum over the sample is an unbiased estimate of the sum over all rows.

    Parameters
    ----------
    rows : Rows
        All rows.
    size : int
        Draws.
    rank : int
        See :func:`sensitivities`.
    random : RandomState
        Source of the draws.
    """
    chances = sensitivities(rows, rank)
    drawn = random.choice(len(rows), size, p=chances.cpu().numpy())
    ids, times = torch.unique(torch.from_numpy(drawn).to(chances.device), return_counts=True)
    copies = (times / (size * chances[ids])).to(rows.dtype)
    sample = rows.subset(ids)
    weights = copies if sample.weights is None else sample.weights * copies
    return ids, replace(sample, weights=weights, copies=copies)
