"""FactorTable: the tensors of a factorised table, for the embedding and the output head."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from kflats.errors import InputError
from kflats.layers.groups import layout
from kflats.layers.logits import logits, logits_exported
from kflats.layers.lookup import lookup, lookup_exported
from kflats.layers.weight import TableView
from kflats.linalg import row_blocks
from kflats.shape import FactorShape, label_dtype

if TYPE_CHECKING:
    from kflats.factorization import Factorization

FILE_NAMES = {
    "coefficients": "weight",
    "bases": "kflats_bases",
    "means": "kflats_means",
    "labels": "kflats_labels",
}
"""Names of the tensors in files.

The coefficients have the name of the table they replace: a program without kflats then meets a
tensor of a wrong shape and stops, instead of going on with a random table. The others say in its
list of unknown tensors what is missing.
"""
FACTORS = ("coefficients", "bases", "means")
"""Names of the parameters that modules with one table share."""


class FactorTable(nn.Module):
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
        One basis below the other. Orthonormal rows when fresh; training may change them.
    means : Parameter of shape (n_clusters, embedding_dim) or None
        Points of affine flats.
    labels : Tensor of shape (num_embeddings,) or None
        Group of every row in the smallest integer type; None for one group. A buffer.
    places : Tensor of shape (num_embeddings,), int32, or None
        Place of every row in the order of the groups. A buffer that is not saved: it follows from
        the labels.
    is_shared : bool
        Whether the tensors belong to another module, which saves them.
    origin : dict
        How the factors were found, for reports and model cards; empty if unknown.
    """

    labels: Tensor | None
    places: Tensor | None

    def __init__(
        self,
        shape: FactorShape,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.origin: dict[str, Any] = {}
        self.is_shared = False
        # In lists, so that they are no sub-modules.
        self._owner: list[FactorTable] = []
        self._readers: list[FactorTable] = []

        def parameter(*sizes: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*sizes, device=device, dtype=dtype))

        d = shape.embedding_dim
        self.coefficients = parameter(shape.num_coefficients)
        self.bases = parameter(sum(shape.basis_ranks), d)
        self.means = parameter(shape.n_clusters, d) if shape.affine else None
        kind = label_dtype(len(shape.counts))
        labels = places = None
        if kind is not None:
            counts = torch.tensor(shape.counts, device=device)
            groups = torch.arange(len(counts), dtype=kind, device=device)
            n = shape.num_embeddings
            labels = groups.repeat_interleave(counts, output_size=n)
            places = torch.arange(n, dtype=torch.int32, device=device)
        self.register_buffer("labels", labels)
        self.register_buffer("places", places, persistent=False)
        self.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]

    def fill(self, factorization: Factorization, exact: tuple[Tensor, Tensor] | None) -> None:
        """Copy the factors, and the rows stored as they are, into the layer."""
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
                self.bases[group.directions].copy_(factorization.bases[number])
            if self.means is not None and factorization.means is not None:
                self.means.copy_(factorization.means)
            if self.labels is not None:
                self.labels.copy_(labels)
        self.index_()

    @staticmethod
    def shape_of(factorization: Factorization, exact: tuple[Tensor, Tensor] | None) -> FactorShape:
        """Return the shape of a layer that holds these factors and exact rows."""
        if exact is None:
            return factorization.shape
        labels = factorization.labels.clone()
        labels[exact[0]] = factorization.n_clusters
        counts = torch.bincount(labels, minlength=factorization.n_clusters + 1).tolist()
        return FactorShape.uniform(
            factorization.num_embeddings,
            factorization.embedding_dim,
            n_clusters=factorization.n_clusters,
            rank=factorization.rank,
            affine=factorization.means is not None,
            n_exact=counts[-1],
            counts=tuple(counts[:-1]),
        )

    def index_(self) -> Self:
        """Find the places that follow from the labels; call it after changing labels.

        Raises
        ------
        InputError
            If the labels do not have ``shape.counts`` rows in each group.
        """
        if self.labels is None or self.labels.is_meta:
            return self
        labels = self.labels.long()
        counts = torch.bincount(labels.clamp_min(0), minlength=len(self.shape.counts)).tolist()
        for group, (found, wanted) in enumerate(zip_longest(counts, self.shape.counts)):
            if found != wanted:
                raise InputError(
                    f"the labels put {found} rows into group {group}, the table was described "
                    f"with {wanted or 'no such group'}: labels and description do not belong "
                    "together."
                )
        order = torch.argsort(labels, stable=True)
        places = self.places
        if places is None or places.shape != labels.shape or places.device != labels.device:
            places = torch.empty(len(labels), dtype=torch.int32, device=labels.device)
            self.register_buffer("places", places, persistent=False)
        # In place where it can be: modules that share the table see it too.
        places[order] = torch.arange(len(labels), dtype=torch.int32, device=labels.device)
        return self

    @property
    def groups(self) -> tuple[Any, ...]:
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

    @property
    def weight(self) -> TableView:
        """Stands for the dense table in code that asks for it, see :class:`TableView`."""
        return TableView(self)

    @property
    def num_bytes(self) -> int:
        """Bytes of the factors and labels, as they lie on disk."""
        return self.shape.num_bytes(self.coefficients.dtype)

    def rows(self, ids: Tensor, padding_idx: int | None = None) -> Tensor:
        """Return rows of the table, shape (*ids.shape, embedding_dim)."""
        factors = (self.coefficients, self.bases, self.places, self.means)
        if torch.compiler.is_exporting():
            return lookup_exported(ids, *factors, *self.sizes)
        padding = -1 if padding_idx is None else padding_idx
        rows: Tensor = lookup(ids, *factors, *self.sizes, padding)
        return rows

    def product(self, hidden: Tensor) -> Tensor:
        """Return ``hidden @ table.T``, shape (*, num_embeddings), for hidden (*, embedding_dim).

        Under autocast it computes in the dtype of autocast, as ``nn.Linear`` does.
        """
        factors = (self.coefficients, self.bases, self.places, self.means)
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

    def dense_rows(self) -> Tensor:
        """Return the whole dense table, detached, built block by block."""
        n, d = self.shape.num_embeddings, self.shape.embedding_dim
        table = self.coefficients.new_empty(n, d)
        with torch.no_grad():
            for block in row_blocks(n, d):
                ids = torch.arange(block.start, block.stop, device=table.device)
                table[block] = self.rows(ids)
        return table.detach()

    def take_over(self, old: Any) -> None:
        """Keep what is not in the factors of the module whose place this one takes."""
        raise NotImplementedError

    def share_with(self, other: FactorTable) -> None:
        """Use the factors of ``other`` from now on, as tied modules do.

        Raises
        ------
        InputError
            If the shapes differ.
        """
        if self.shape != other.shape:
            raise InputError(f"{self.shape} cannot share the factors of {other.shape}.")
        for name in FACTORS:
            setattr(self, name, getattr(other, name))
        for name in ("labels", "places"):
            self.register_buffer(name, getattr(other, name), persistent=False)
        self.origin = other.origin
        self.is_shared = True
        self._owner = [other]
        if not any(reader is self for reader in other._readers):
            other._readers.append(self)

    def own_(self) -> None:
        """Save the tensors of the table with this module from now on."""
        if self.is_shared:
            self.register_buffer("labels", self.labels)
            self.is_shared = False
            self._owner = []

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Trainer and others read the file of a checkpoint straight into load_state_dict.
        for name, file_name in FILE_NAMES.items():
            if prefix + file_name in state_dict and prefix + name not in state_dict:
                state_dict[prefix + name] = state_dict.pop(prefix + file_name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Describe the sizes in ``print(model)``."""
        s = self.shape
        ranks = str(s.rank) if len(set(s.basis_ranks)) < 2 else f"{min(s.basis_ranks)}..{s.rank}"
        text = f"{s.num_embeddings}, {s.embedding_dim}, n_clusters={s.n_clusters}, rank={ranks}"
        text += ", affine" if s.affine else ""
        return f"{text}, n_exact={s.n_exact}" if s.n_exact else text


def _after_load(module: Any, _: Any) -> None:
    """Find the places again, and tie again what loading with ``assign`` has untied."""
    if module.is_shared:
        for owner in module._owner:
            module.share_with(owner)
        return
    module.index_()
    for reader in module._readers:
        if reader.is_shared and reader._owner and reader._owner[0] is module:
            reader.share_with(module)
