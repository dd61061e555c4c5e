"""What follows from the tensors that say where rows and columns lie: labels and pivots.

A pivot mask has one bit per column: column ``c`` is bit ``c % 8``, the lowest first, of byte
``c // 8``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kflats.errors import InputError
from kflats.factors.shape import mask_bytes

# Below these numbers sorting is faster (2 CPU cores).
_MARKED_FROM = 2048
_MOST_MARKS = 32


def places_of(labels: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the place of every row in the order of the groups, shape (num_embeddings,), int32.

    Parameters
    ----------
    labels : Tensor of shape (num_embeddings,), integers
        Group of every row.
    counts : sequence of int
        Rows that each group must have.

    Raises
    ------
    InputError
        If a label is out of range, or a group has another number of rows.
    """
    check_labels(labels, counts)
    labels = labels.long()
    order = torch.argsort(labels, stable=True)
    places = torch.empty(len(labels), dtype=torch.int32, device=labels.device)
    places[order] = torch.arange(len(labels), dtype=torch.int32, device=labels.device)
    return places


def check_labels(labels: Tensor, counts: Sequence[int]) -> None:
    """Raise InputError unless every group has the rows it must have; see :func:`places_of`."""
    least, most = (int(end) for end in labels.aminmax()) if len(labels) else (0, 0)
    if not 0 <= least <= most < len(counts):  # before anything of the size of a label is made
        raise InputError(
            f"the labels (kflats_labels) are from {least} to {most}, the table was described with "
            f"the groups 0 to {len(counts) - 1}: labels and description do not belong together."
        )
    found = torch.bincount(labels.long(), minlength=len(counts)).tolist()
    for group, (count, wanted) in enumerate(zip(found, counts, strict=True)):
        if count != wanted:
            raise InputError(
                f"the labels (kflats_labels) put {count} rows into group {group}, the table was "
                f"described with {wanted}: labels and description do not belong together."
            )


def places_at(
    labels: Tensor, offsets: Tensor, starts: Sequence[int], ids: Tensor | None = None
) -> Tensor:
    """Return the places of rows, from their groups and their places in these.

    Parameters
    ----------
    labels, offsets : Tensor of shape (num_embeddings,), integers
        Group of every row, and its place in the group.
    starts : sequence of int
        Place of the first row of each group.
    ids : Tensor of shape (m,), integers, optional
        Rows that are wanted; all of them by default.

    Returns
    -------
    Tensor of shape (m,), int32

    Raises
    ------
    IndexError
        If an id is out of range.

    Examples
    --------
    >>> places_at(torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1]), [0, 1])
    tensor([1, 0, 2], dtype=torch.int32)
    """
    if ids is not None:
        labels, offsets = labels.index_select(0, ids), offsets.index_select(0, ids)
    first = torch.tensor(starts, dtype=torch.int32, device=labels.device)
    return first.index_select(0, labels.int()).add_(offsets)


def distinct(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the distinct numbers, ascending, and the place of every number among them.

    Many numbers are not sorted but marked in a table of ``count`` bytes, in half the time.

    Parameters
    ----------
    numbers : Tensor of shape (m,), integers
        Ids, or places of rows.
    count : int
        They must be below it.

    Returns
    -------
    tuple of Tensor
        Both int64, or the first of the type of ``numbers``.

    Raises
    ------
    IndexError
        If a number is out of range.

    Examples
    --------
    >>> distinct(torch.tensor([7, 2, 7]), 10)
    (tensor([2, 7]), tensor([1, 0, 1]))
    """
    if not numbers.numel():
        return numbers, numbers.long()
    least, most = torch.stack(numbers.aminmax()).tolist()
    if not 0 <= least <= most < count:
        raise IndexError("index out of range in self")
    if numbers.numel() < max(_MARKED_FROM, count // _MOST_MARKS):
        found, inverse = torch.unique(numbers, return_inverse=True)
        return found, inverse
    wide = numbers.long()
    marks = torch.zeros(count, dtype=torch.uint8, device=numbers.device).index_fill_(0, wide, 1)
    found = marks.nonzero().view(-1)
    order = torch.arange(len(found), device=numbers.device)
    places = torch.empty(count, dtype=torch.int64, device=numbers.device)
    return found, places.index_copy_(0, found, order).index_select(0, wide)


def columns_of(pivots: Tensor, ranks: Sequence[int], embedding_dim: int) -> Tensor:
    """Return the place of every column among the pivots, ascending, and then the others.

    Parameters
    ----------
    pivots : Tensor of shape (n_clusters, ceil(embedding_dim / 8)), uint8
        See :func:`pack_pivots`.
    ranks : sequence of int
        Pivots that each basis must have.
    embedding_dim : int
        Columns of the table.

    Returns
    -------
    Tensor of shape (n_clusters, embedding_dim), int32

    Raises
    ------
    InputError
        If a basis has another number of pivots, or one beyond ``embedding_dim``.
    """
    mask = unpack_pivots(pivots, embedding_dim)
    for basis, (count, rank) in enumerate(zip(mask.sum(1).tolist(), ranks, strict=True)):
        if count != rank:
            raise InputError(
                f"the pivots (kflats_pivots) mark {count} columns of basis {basis}, the table was "
                f"described with rank {rank}: pivots and description do not belong together."
            )
    if not torch.equal(pack_pivots(mask), pivots):
        raise InputError(
            f"the pivots (kflats_pivots) mark a column beyond embedding_dim={embedding_dim}: "
            "pivots and description do not belong together."
        )
    others = mask.sum(1, keepdim=True) + (~mask).cumsum(1)
    return (torch.where(mask, mask.cumsum(1), others) - 1).to(torch.int32)


def first_columns(
    ranks: Sequence[int], embedding_dim: int, device: torch.device | str | None
) -> Tensor:
    """Return the pivots of new tables: the first columns, as many as each basis has directions."""
    wanted = torch.tensor(ranks, device=device, dtype=torch.int64)
    return pack_pivots(torch.arange(embedding_dim, device=wanted.device) < wanted[:, None])


def pack_pivots(mask: Tensor) -> Tensor:
    """Return a mask of shape (n, embedding_dim), bool, as bits, (n, ceil(embedding_dim / 8))."""
    size = mask_bytes(mask.shape[1])
    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, 8 * size - mask.shape[1]))
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits.view(len(mask), size, 8) * powers).sum(2, dtype=torch.uint8)


def unpack_pivots(packed: Tensor, embedding_dim: int) -> Tensor:
    """Return the mask of shape (n, embedding_dim), bool, that :func:`pack_pivots` has packed."""
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, :, None] & powers) != 0
    return bits.view(len(packed), 8 * packed.shape[1])[:, :embedding_dim]
