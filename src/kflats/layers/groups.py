"""Where each group of rows lies in the flat tensors of a factorised table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from kflats.factors.shape import STORED


@dataclass(frozen=True)
class Group:
    """One group of rows.

    Attributes
    ----------
    rows : slice
        Its places among the rows sorted by group.
    numbers : slice
        Its coefficients in the flat tensor of all coefficients.
    rank : int
        Coefficients per row.
    directions : slice or None
        Rows of the stacked bases that it uses; None for rows stored as they are.
    basis : int
        Number of the basis, -1 for none.
    omitted : int
        Numbers of the identity matrices that the bases before its own leave out in echelon form.
    """

    rows: slice
    numbers: slice
    rank: int
    directions: slice | None
    basis: int
    omitted: int

    def coefficients(self, flat: Tensor) -> Tensor:
        """Return the (rows, rank) view of the flat coefficients."""
        count = self.rows.stop - self.rows.start
        matrix: Tensor = flat[self.numbers].view(count, self.rank)
        return matrix


@lru_cache(maxsize=64)
def _layout(
    counts: tuple[int, ...], ranks: tuple[int, ...], basis_ids: tuple[int, ...]
) -> tuple[Group, ...]:
    basis_ranks: dict[int, int] = {}
    for rank, basis in zip(ranks, basis_ids, strict=True):
        basis_ranks[basis] = max(rank, basis_ranks.get(basis, 0))
    starts, total, omitted = {}, 0, 0
    for basis in sorted(basis_ranks.keys() - {STORED}):
        starts[basis] = (total, omitted)
        total += basis_ranks[basis]
        omitted += basis_ranks[basis] ** 2
    groups, row, number = [], 0, 0
    for count, rank, basis in zip(counts, ranks, basis_ids, strict=True):
        start, before = starts.get(basis, (0, 0))
        groups.append(
            Group(
                rows=slice(row, row + count),
                numbers=slice(number, number + count * rank),
                rank=rank,
                directions=None if basis == STORED else slice(start, start + rank),
                basis=basis,
                omitted=before,
            )
        )
        row, number = row + count, number + count * rank
    return tuple(groups)


def layout(
    counts: Sequence[int], ranks: Sequence[int], basis_ids: Sequence[int]
) -> tuple[Group, ...]:
    """Return the groups of a table with these counts, ranks and bases (see FactorShape)."""
    return _layout(tuple(counts), tuple(ranks), tuple(basis_ids))


def longest(groups: Sequence[Group]) -> list[Group]:
    """Return for every basis, in their order, a group that uses all its directions."""
    found: dict[int, Group] = {}
    for group in groups:
        if group.basis not in found or group.rank > found[group.basis].rank:
            found[group.basis] = group
    return [found[basis] for basis in sorted(found.keys() - {STORED})]


def occurring(groups: Sequence[Group], places: Tensor) -> Iterator[tuple[Group, slice, Tensor]]:
    """Yield the groups that occur in ascending ``places``, and which of the places are theirs.

    Third comes each of those places as a row number within the group.
    """
    starts = torch.tensor([g.rows.start for g in groups], dtype=places.dtype, device=places.device)
    bounds = [0, *torch.searchsorted(places, starts[1:]).tolist(), len(places)]
    rows = places - starts[torch.bucketize(places, starts[1:], right=True)]
    runs = [slice(begin, end) for begin, end in pairwise(bounds)]
    parts = rows.split([run.stop - run.start for run in runs])
    for group, run, part in zip(groups, runs, parts, strict=True):
        if run.start < run.stop:
            yield group, run, part
