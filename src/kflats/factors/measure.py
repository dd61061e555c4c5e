"""How far stored rows are from a table, cluster by cluster, whatever the magnitudes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kflats.errors import InputError
from kflats.linalg import are_safe, by_cluster, row_blocks, row_norms, scaled_norm
from kflats.units import largest_magnitude

Rows = Callable[[slice], Tensor]


def squares(table: Tensor, rows: Rows, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
    """Return the squared errors and norms of each cluster, float64, on the CPU.

    Parameters
    ----------
    table : Tensor of shape (n, d)
        Finite values.
    rows : callable
        Returns the stored rows for a slice of the table.
    labels : Tensor of shape (n,), int64
        Cluster of every row.
    n_clusters : int
        Their number.
    """
    errors = torch.zeros(n_clusters, dtype=torch.float64, device=table.device)
    norms = torch.zeros_like(errors)
    for block in row_blocks(table.shape[0], 4 * table.shape[1]):
        wide = table[block].to(torch.float64)
        difference = wide - rows(block).to(torch.float64)
        errors.index_add_(0, labels[block], difference.square().sum(1))
        norms.index_add_(0, labels[block], wide.square().sum(1))
    return errors.cpu(), norms.cpu()


def norms_if_needed(
    table: Tensor, rows: Rows, labels: Tensor, found: tuple[Tensor, Tensor]
) -> Tensor | None:
    """Return the roots of squared errors and norms in a common unit, where squares have failed.

    Shape (2, n_clusters), float64; None where ``found``, what :func:`squares` returned, is right.
    """
    squared = torch.stack(found)
    doubtful = torch.tensor([[not are_safe(each) for each in row] for row in squared.tolist()])
    if not bool(doubtful.any()):
        return None
    norms = torch.zeros_like(squared)
    for kind, each in enumerate(row_norms(table, rows)):
        for cluster, members in by_cluster(labels, squared.shape[1]):
            norms[kind, cluster] = scaled_norm(each[members])
    are_zero = (norms == 0) & (squared == 0)
    return None if bool((are_zero | ~doubtful).all()) else norms


def check_factors(table: Tensor, *factors: Tensor | None) -> None:
    """Raise InputError if the factors of a table are beyond the range of its dtype."""
    for tensor in factors:
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"a table of {table.dtype} with values up to {largest_magnitude(table):.3g} has "
                f"factors beyond the largest number of that dtype, "
                f"{torch.finfo(table.dtype).max:.3g}: give the table in a wider dtype, or divide "
                "it by a power of two."
            )
