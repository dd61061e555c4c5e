"""FactorTable: the tensors of a factorised table, for the embedding and the output head."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from kflats.factors.shape import STORED, FactorShape, label_dtype
from kflats.layers.basis import Basis, stored_sizes
from kflats.layers.groups import Group, layout, longest
from kflats.layers.logits import logits, logits_exported
from kflats.layers.lookup import lookup, lookup_exported
from kflats.layers.places import columns_of, first_columns, pack_pivots, places_of
from kflats.layers.stored import StoredTable

if TYPE_CHECKING:
    from kflats.factors.factorization import Factorization


class FactorTable(StoredTable):
    """What :class:`FactorizedEmbedding` and :class:`FactorizedLinear` store.

    Row ``i`` of the table is ``coefficients of i @ basis of its group (+ mean)``, or stored as it
    is. The coefficients of a group lie together, so that a product with a group needs no copy.

    Parameters
    ----------
    shape : FactorShape
        Rows, columns, and the groups.
    device, dtype : optional
        As in :class:`torch.nn.Embedding`.

    Attributes
    ----------
    coefficients : Parameter of shape (shape.num_coefficients,)
        Group by group, row by row; see :meth:`group_coefficients`.
    bases : Parameter of shape (sum of shape.basis_ranks, embedding_dim)
        One basis below the other. Orthonormal rows when fresh; training may change them. In
        echelon form of shape (sum of rank * (embedding_dim - rank),): the columns of each basis
        that are no pivots, ascending, row by row; see :meth:`basis`.
    means : Parameter of shape (n_clusters, embedding_dim) or None
        Points of affine flats. In echelon form of shape (sum of embedding_dim - rank,), the
        numbers that are not at the pivots; see :meth:`mean`.
    labels : Tensor of shape (num_embeddings,) or None
        Group of every row in the smallest integer type; None for one group. A buffer.
    places : Tensor of shape (num_embeddings,), int32, or None
        Place of every row in the order of the groups. A buffer that is not saved: it follows from
        the labels.
    pivots : Tensor of shape (n_clusters, ceil(embedding_dim / 8)), uint8, or None
        In echelon form, bit ``c % 8`` (the lowest first) of byte ``c // 8`` is set where column
        ``c`` is a pivot. A buffer.
    columns : Tensor of shape (n_clusters, embedding_dim), int32, or None
        In echelon form the place of every column among the pivots, ascending, and then the
        others, ascending. A buffer that is not saved: it follows from the pivots.
    is_shared : bool
        Whether the tensors belong to another module, which saves them.
    origin : dict
        How the factors were found, for reports and model cards; empty if unknown.
    """

    FACTORS = ("coefficients", "bases", "means")
    SAVED_BUFFERS = ("labels", "pivots")
    DERIVED_BUFFERS = ("places", "columns")

    shape: FactorShape
    labels: Tensor | None
    places: Tensor | None
    pivots: Tensor | None
    columns: Tensor | None

    def __init__(
        self,
        shape: FactorShape,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape)

        def parameter(*sizes: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*sizes, device=device, dtype=dtype))

        d = shape.embedding_dim
        self.coefficients = parameter(shape.num_coefficients)
        of_bases, of_means = stored_sizes(shape)
        self.bases = parameter(*of_bases)
        self.means = parameter(*of_means) if shape.affine else None
        names = (*self.SAVED_BUFFERS, *self.DERIVED_BUFFERS)
        buffers: dict[str, Tensor | None] = dict.fromkeys(names)
        kind = label_dtype(len(shape.counts))
        if kind is not None:
            counts = torch.tensor(shape.counts, device=device)
            groups = torch.arange(len(counts), dtype=kind, device=device)
            n = shape.num_embeddings
            buffers["labels"] = groups.repeat_interleave(counts, output_size=n)
            buffers["places"] = torch.arange(n, dtype=torch.int32, device=device)
        if shape.echelon:
            columns = torch.arange(d, dtype=torch.int32, device=device)
            buffers["pivots"] = first_columns(shape.basis_ranks, d, device)
            buffers["columns"] = columns.repeat(shape.n_clusters, 1)
        # torch.export counts the buffers that are None too: they must come last.
        for name in sorted(buffers, key=lambda name: buffers[name] is None):
            self.register_buffer(name, buffers[name], persistent=name in self.SAVED_BUFFERS)

    def fill(self, factorization: Factorization, exact: tuple[Tensor, Tensor] | None) -> None:
        """Copy the factors, and the rows stored as they are, into the layer.

        Of factors in echelon form only the columns that are no pivots are copied.
        """
        labels = factorization.labels.clone()
        if exact is not None:
            labels[exact[0]] = factorization.n_clusters
        order = torch.argsort(labels, stable=True)
        with torch.no_grad():
            for number, group in enumerate(self.groups):
                members = order[group.rows]
                target = group.coefficients(self.coefficients)
                if group.directions is None and exact is not None:
                    known = torch.argsort(exact[0])
                    target.copy_(exact[1][known])
                    continue
                target.copy_(factorization.coefficients[members][:, : group.rank])
                basis, pivots = self._view(group), factorization.pivots
                kept: Any = slice(None) if pivots is None else ~pivots[number]
                basis.numbers.copy_(factorization.bases[number, : group.rank][:, kept])
                if basis.mean is not None and factorization.means is not None:
                    basis.mean.copy_(factorization.means[number][kept])
            if self.labels is not None:
                self.labels.copy_(labels)
            if self.pivots is not None and factorization.pivots is not None:
                self.pivots.copy_(pack_pivots(factorization.pivots))
        self.index_()

    @staticmethod
    def shape_of(factorization: Factorization, exact: tuple[Tensor, Tensor] | None) -> FactorShape:
        """Return the shape of a layer that holds these factors and exact rows."""
        shape: FactorShape = factorization.shape
        if exact is None or not len(exact[0]):
            return shape
        labels = factorization.labels.clone()
        labels[exact[0]] = factorization.n_clusters
        counts = torch.bincount(labels, minlength=factorization.n_clusters + 1).tolist()
        return replace(
            shape,
            counts=tuple(counts),
            ranks=(*shape.ranks, shape.embedding_dim),
            basis_ids=(*shape.basis_ids, STORED),
        )

    def index_(self) -> Self:
        """Find what follows from the labels and pivots; call it after changing them.

        Raises
        ------
        InputError
            If the labels do not have ``shape.counts`` rows in each group, or the pivots not as
            many columns of each basis as it has directions.
        """
        shape = self.shape
        if self.labels is not None and not self.labels.is_meta:
            self._derive("places", places_of(self.labels, shape.counts))
        if self.pivots is not None and not self.pivots.is_meta:
            columns = columns_of(self.pivots, shape.basis_ranks, shape.embedding_dim)
            self._derive("columns", columns)
        return self

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of rows, see :mod:`kflats.layers.groups`."""
        return layout(*self.sizes)

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Counts, ranks and basis numbers of the groups."""
        return self.shape.counts, self.shape.ranks, self.shape.basis_ids

    def group_coefficients(self, group: int) -> Tensor:
        """Return the coefficients of one group, a view of shape (count, rank)."""
        view: Tensor = self.groups[group].coefficients(self.coefficients)
        return view

    def basis(self, number: int) -> Tensor:
        """Return all columns of a basis, shape (rank, embedding_dim).

        Parameters
        ----------
        number : int
            From 0 to ``shape.n_clusters - 1``.
        """
        return self._view(longest(self.groups)[number]).whole()

    def mean(self, number: int) -> Tensor:
        """Return all columns of the mean of a basis, shape (embedding_dim,).

        Zeros where the table is not affine, and at the pivots of an echelon form. ``number`` is
        that of the basis.
        """
        return self._view(longest(self.groups)[number]).whole_mean()

    def _view(self, group: Group) -> Basis:
        return Basis.of(group, self.bases, self.means, self.columns)

    @property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return self.coefficients, self.bases, self.places, self.means, self.columns

    @property
    def like(self) -> Tensor:
        """The coefficients."""
        return self.coefficients

    def rows(self, ids: Tensor, padding_idx: int | None = None) -> Tensor:
        """Return rows of the table, shape (*ids.shape, embedding_dim)."""
        factors = self._factors
        if torch.compiler.is_exporting():
            return lookup_exported(ids, *factors, *self.sizes)
        padding = -1 if padding_idx is None else padding_idx
        rows: Tensor = lookup(ids, *factors, *self.sizes, padding)
        return rows

    def product(self, hidden: Tensor) -> Tensor:
        """Return ``hidden @ table.T``, shape (*, num_embeddings), for hidden (*, embedding_dim).

        Under autocast it computes in the dtype of autocast, as ``nn.Linear`` does.
        """
        factors = self._factors
        if torch.compiler.is_exporting():
            return logits_exported(hidden, *factors, *self.sizes)
        device = hidden.device.type
        casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if casts and hidden.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
            hidden = hidden.to(dtype)
            factors = tuple(  # type: ignore[assignment]
                f.to(dtype) if f is not None and f.is_floating_point() else f for f in factors
            )
        result: Tensor = logits(hidden, *factors, *self.sizes)
        return result

    def extra_repr(self) -> str:
        """Describe the sizes in ``print(model)``."""
        s = self.shape
        ranks = str(s.rank) if len(set(s.basis_ranks)) < 2 else f"{min(s.basis_ranks)}..{s.rank}"
        text = f"{s.num_embeddings}, {s.embedding_dim}, n_clusters={s.n_clusters}, rank={ranks}"
        text += ", affine" if s.affine else ""
        text += ", echelon" if s.echelon else ""
        return f"{text}, n_exact={s.n_exact}" if s.n_exact else text
