"""Adding and removing rows of a factorised table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kflats.errors import InputError
from kflats.factors.shape import STORED, FactorShape, label_dtype
from kflats.layers.embedding import FactorizedEmbedding
from kflats.layers.linear import FactorizedLinear
from kflats.layers.table import FactorTable
from kflats.linalg import row_blocks


def new_rows(
    layer: FactorTable, n_added: int, init: Callable[[nn.Module], object] | None = None
) -> Tensor:
    """Return rows to add.

    Parameters
    ----------
    layer : FactorTable
        The table.
    n_added : int
        How many rows.
    init : callable, optional
        Fills an ``nn.Embedding`` in place. Without, the rows are drawn as transformers does with
        ``mean_resizing``: from a normal distribution with the mean and 1e-9 times the covariance
        of the present rows, so that new tokens hardly change what a model predicts.

    Returns
    -------
    Tensor of shape (n_added, embedding_dim)
        In the dtype and on the device of the factors.
    """
    like = layer.coefficients
    if init is not None:
        fresh = nn.Embedding(n_added, layer.shape.embedding_dim).to(like)
        init(fresh)
        filled: Tensor = fresh.weight.detach()
        return filled
    mean, covariance = _moments(layer)
    noise = torch.randn(n_added, len(mean), dtype=torch.float64).to(mean.device)
    values, vectors = torch.linalg.eigh(1e-9 * covariance)
    rows: Tensor = mean + (noise * values.clamp_min(0).sqrt()) @ vectors.T
    return rows.to(like.dtype)


def _moments(layer: FactorTable) -> tuple[Tensor, Tensor]:
    n, d = layer.shape.num_embeddings, layer.shape.embedding_dim
    device = layer.coefficients.device
    total = torch.zeros(d, dtype=torch.float64, device=device)
    products = torch.zeros(d, d, dtype=torch.float64, device=device)
    with torch.no_grad():
        for block in row_blocks(n, 2 * d):
            rows = layer.rows(torch.arange(block.start, block.stop, device=device)).double()
            total += rows.sum(0)
            products += rows.T @ rows
    mean = total / n
    return mean, products / n - torch.outer(mean, mean)


def resize_(readers: Sequence[FactorTable], size: int, added: Tensor | None = None) -> None:
    """Change the number of rows of one table, in place.

    Rows are removed at the end, with the highest ids. Added rows are stored as they are; compress
    the dense model again to give them a place in a subspace.

    Parameters
    ----------
    readers : sequence of FactorTable
        All layers that share the table, its owner first.
    size : int
        Rows afterwards, at least 1.
    added : Tensor of shape (size - present rows, embedding_dim), optional
        Needed for a larger size.

    Raises
    ------
    InputError
        If the size or the added rows do not fit.
    """
    first = readers[0]
    missing = size - first.shape.num_embeddings
    given = 0 if added is None else len(added)
    width = (first.shape.embedding_dim,)
    if size < 1 or given != max(0, missing) or (given and added.shape[1:] != width):  # type: ignore[union-attr]
        raise InputError(
            f"a table of {first.shape.num_embeddings} rows cannot be resized to {size} with "
            f"added rows of shape {None if added is None else tuple(added.shape)}: give a size of "
            f"at least 1, and one row of {width[0]} numbers for each new id."
        )
    parts, labels = _kept(first, size)
    groups = list(zip(map(len, parts), first.shape.ranks, first.shape.basis_ids, strict=True))
    if added is not None and missing > 0:
        if groups[-1][2] != STORED:
            groups.append((0, first.shape.embedding_dim, STORED))
            parts.append(first.coefficients.detach().new_empty(0, first.shape.embedding_dim))
        parts[-1] = torch.cat([parts[-1], added.to(parts[-1])])
        groups[-1] = (len(parts[-1]), *groups[-1][1:])
        labels = torch.cat([labels, labels.new_full((missing,), len(groups) - 1)])
    _store(first, size, groups, parts, labels)
    biases: dict[int, nn.Parameter] = {}
    for reader in readers:
        if reader is not first:
            reader.shape = first.shape
            reader.share_with(first)
        _fit_rest(reader, size, biases)


def _kept(table: FactorTable, size: int) -> tuple[list[Tensor], Tensor]:
    """Return the coefficients of each group that stay, and the labels."""
    n = min(size, table.shape.num_embeddings)
    device = table.coefficients.device
    labels = torch.zeros(n, dtype=torch.int64, device=device)
    if table.labels is not None:
        labels = table.labels[:n].long()
    counts = torch.bincount(labels, minlength=len(table.groups)).tolist()
    # The rows of a group lie in the order of their ids, so those that go are its last ones.
    parts = [
        group.coefficients(table.coefficients.detach())[:count]
        for group, count in zip(table.groups, counts, strict=True)
    ]
    return parts, labels


def _store(
    table: FactorTable,
    size: int,
    groups: list[tuple[int, int, int]],
    parts: list[Tensor],
    labels: Tensor,
) -> None:
    counts, ranks, basis_ids = (tuple(column) for column in zip(*groups, strict=True))
    table.shape = FactorShape(
        num_embeddings=size,
        embedding_dim=table.shape.embedding_dim,
        counts=counts,
        ranks=ranks,
        basis_ids=basis_ids,
        affine=table.shape.affine,
        echelon=table.shape.echelon,
    )
    trains = table.coefficients.requires_grad
    flat = torch.cat([part.reshape(-1) for part in parts])
    table.coefficients = nn.Parameter(flat, requires_grad=trains)
    kind = label_dtype(len(groups))
    table.register_buffer("labels", None if kind is None else labels.to(kind))
    table.index_()


def _fit_rest(reader: FactorTable, size: int, biases: dict[int, nn.Parameter]) -> None:
    """Fit the padding id of an embedding and the bias of a head; shared biases stay shared."""
    if isinstance(reader, FactorizedEmbedding):
        if reader.padding_idx is not None and reader.padding_idx >= size:
            reader.padding_idx = None
    elif isinstance(reader, FactorizedLinear) and reader.bias is not None:
        if id(reader.bias) not in biases:
            bias = reader.bias.detach()
            missing = max(0, size - len(bias))
            grown = torch.cat([bias[:size], bias.mean().expand(missing)])
            trains = reader.bias.requires_grad
            biases[id(reader.bias)] = nn.Parameter(grown, requires_grad=trains)
        reader.bias = biases[id(reader.bias)]
