"""Layers over a table in packed codes: rows are unpacked when they are asked for, and only they."""

from __future__ import annotations

import json
from typing import Any, Self

import torch
from torch import Tensor, nn

from kflats.errors import InputError
from kflats.factors.shape import label_dtype
from kflats.layers.coded_logits import multiply_codes
from kflats.layers.embedding import TableEmbedding, check_options
from kflats.layers.linear import TableLinear
from kflats.layers.places import distinct, places_at, places_of
from kflats.layers.stored import StoredTable
from kflats.quantization.codes import Codes, rows_at
from kflats.quantization.shape import BASIS_DTYPES, CodeShape


class CodedTable(StoredTable):
    """What :class:`QuantizedEmbedding` and :class:`QuantizedLinear` store.

    The tensors are those of :class:`kflats.quantization.codes.Codes`. They do not train, and
    no gradient reaches them even where ``requires_grad`` is set; see
    :func:`kflats.quantization.training.unpack_` for that.

    Parameters
    ----------
    shape : CodeShape
        Sizes.
    device : optional
        As in :class:`torch.nn.Embedding`.
    dtype : torch.dtype, optional
        Of the rows that come out, of scales, code books and exact rows.

    Attributes
    ----------
    scales, books, exact
        See :class:`kflats.quantization.codes.Codes`; parameters without gradient.
    coefficients, bases
        See there; whole numbers, buffers.
    labels : Tensor of shape (num_embeddings,) or None
        Group of every row. A buffer.
    offsets : Tensor of shape (num_embeddings,), smallest integer type, or None
        Place of every row in its group. A buffer that is not saved: it follows from the labels.
    """

    FACTORS = ("scales", "books", "exact")
    SAVED_BUFFERS = ("coefficients", "bases", "labels")
    DERIVED_BUFFERS = ("offsets",)

    shape: CodeShape
    bases: Tensor
    labels: Tensor | None
    offsets: Tensor | None

    def __init__(
        self,
        shape: CodeShape,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape)
        self._text = json.dumps(shape.to_dict())  # operators take no objects
        d, chosen = shape.embedding_dim, dtype or torch.get_default_dtype()

        def zeros(kind: torch.dtype, *sizes: int) -> Tensor:
            return torch.zeros(*sizes, dtype=kind, device=device)

        def constant(*sizes: int) -> nn.Parameter:
            return nn.Parameter(zeros(chosen, *sizes), requires_grad=False)

        self.scales = constant(shape.num_scales)
        self.books = constant(shape.book_size)
        self.exact = constant(shape.n_exact, d) if shape.n_exact else None
        sizes = zip(shape.counts, shape.record_bytes, strict=True)
        packed = sum(count * size for count, size in sizes)
        self.register_buffer("coefficients", zeros(torch.uint8, packed))
        directions = sum(shape.directions)
        self.register_buffer("bases", zeros(BASIS_DTYPES[shape.basis_bits], directions, d))
        label = label_dtype(len(shape.counts))
        labels = offsets = None
        if label is not None:
            counts = torch.tensor(shape.counts, device=device)
            groups = torch.arange(len(counts), dtype=label, device=device)
            n = shape.num_embeddings
            labels = groups.repeat_interleave(counts, output_size=n)
            offsets = torch.zeros(n, dtype=_offset_dtype(shape), device=device)
        self.register_buffer("labels", labels)
        self.register_buffer("offsets", offsets, persistent=False)

    def fill(self, codes: Codes) -> Self:
        """Take the tensors of ``codes``, which must have the shape of the layer."""
        if codes.shape != self.shape:
            raise InputError(f"{codes.shape} does not fit a layer of {self.shape}.")
        for name in self.FACTORS:
            tensor = getattr(codes, name)
            value = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            setattr(self, name, value)
        for name in self.SAVED_BUFFERS:
            self.register_buffer(name, getattr(codes, name))
        return self.index_()

    def freeze_(self) -> Self:
        """Let no tensor have a gradient, as in a new layer; loaders of weights turn it on."""
        for name in self.FACTORS:
            if (tensor := getattr(self, name)) is not None:
                tensor.requires_grad_(False)
        return self

    @property
    def like(self) -> Tensor:
        """The scales."""
        return self.scales

    @property
    def codes(self) -> Codes:
        """The tensors of the table, detached."""
        scales, books, exact = self._constants
        return Codes(self.shape, self.coefficients, self.labels, self.bases, scales, books, exact)

    @property
    def _constants(self) -> tuple[Tensor, Tensor, Tensor | None]:
        exact = None if self.exact is None else self.exact.detach()
        return self.scales.detach(), self.books.detach(), exact

    def index_(self) -> Self:
        """Find the places of the rows in their groups; call it after changing the labels.

        Raises
        ------
        InputError
            If the labels do not have ``shape.counts`` rows in each group.
        """
        if self.labels is not None and not self.labels.is_meta:
            places = places_of(self.labels, self.shape.counts)
            starts = places.new_tensor(self.shape.row_starts)
            offsets = places - starts[self.labels.long()]
            self._derive("offsets", offsets.to(_offset_dtype(self.shape)))
        return self

    def rows(self, ids: Tensor, padding_idx: int | None = None) -> Tensor:  # noqa: ARG002
        """Return rows of the table, shape (*ids.shape, embedding_dim), without gradient."""
        tensors = (self.coefficients, self.bases, *self._constants, self.labels, self.offsets)
        rows: Tensor = lookup_codes(ids, *tensors, self._text)
        return rows

    def product(self, hidden: Tensor) -> Tensor:
        """Return ``hidden @ table.T``, shape (*, num_embeddings).

        Codes are unpacked block by block, for the gradient of ``hidden`` once more, and multiplied
        in coefficient space. Under autocast it computes in the dtype of autocast, as ``nn.Linear``
        does.
        """
        device = hidden.device.type
        casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if casts and hidden.dtype != torch.float64:
            hidden = hidden.to(torch.get_autocast_dtype(device))
        tensors = (self.coefficients, self.bases, *self._constants, self.labels, self.offsets)
        result: Tensor = multiply_codes(hidden, *tensors, self._text)
        return result

    def extra_repr(self) -> str:
        """Describe the sizes in ``print(model)``."""
        s = self.shape
        kind = "rotated" if any(s.rotated) else "plain"
        text = (
            f"{s.num_embeddings}, {s.embedding_dim}, bits={s.bits(self.like.dtype):.2f}, {kind}, "
            f"n_clusters={s.n_clusters}, rank={s.rank_range}"
        )
        return f"{text}, n_exact={s.n_exact}" if s.n_exact else text


class QuantizedEmbedding(TableEmbedding, CodedTable):
    """An embedding whose rows are packed codes, unpacked row by row when they are looked up.

    Parameters
    ----------
    shape : CodeShape
        Sizes.
    padding_idx : int, optional
        As in :class:`torch.nn.Embedding`.
    scale : float, default=1.0
        Factor on the output, for models that scale their embeddings.
    device, dtype : optional
        As in :class:`torch.nn.Embedding`.

    Examples
    --------
    >>> import torch
    >>> from kflats.quantization.fit import code_table
    >>> dense = torch.nn.Embedding(1000, 64)
    >>> layer = QuantizedEmbedding.from_embedding(dense, code_table(dense.weight, 33_000))
    >>> layer(torch.tensor([[3, 7]])).shape, layer.num_bytes <= 33_000
    (torch.Size([1, 2, 64]), True)
    """

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, codes: Codes) -> Self:
        """Return a layer that replaces ``embedding`` and holds the codes of its weight.

        Raises
        ------
        InputError
            If the embedding uses ``max_norm``, ``scale_grad_by_freq`` or ``sparse``.
        """
        check_options(embedding)
        layer = cls(codes.shape, padding_idx=embedding.padding_idx, device="meta").fill(codes)
        layer.take_over(embedding)
        return layer.train(embedding.training)


class QuantizedLinear(TableLinear, CodedTable):
    """An output head whose weight is a table in packed codes.

    Parameters
    ----------
    shape : CodeShape
        ``num_embeddings`` is the number of outputs, ``embedding_dim`` that of inputs.
    bias : bool, default=False
        Whether there is a bias of shape (out_features,).
    device, dtype : optional
        As in :class:`torch.nn.Linear`.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear, codes: Codes) -> Self:
        """Return a head that replaces ``linear`` and uses its very bias."""
        layer = cls(codes.shape, device="meta").fill(codes)
        layer.take_over(linear)
        return layer.train(linear.training)


@torch.library.custom_op("kflats::lookup_codes", mutates_args=())
def lookup_codes(
    ids: Tensor,
    coefficients: Tensor,
    bases: Tensor,
    scales: Tensor,
    books: Tensor,
    exact: Tensor | None,
    labels: Tensor | None,
    offsets: Tensor | None,
    shape: str,
) -> Tensor:
    """Return rows of a table in packed codes, shape (*ids.shape, embedding_dim).

    Every distinct row is unpacked once. ``shape`` is the :class:`CodeShape` as JSON, the other
    tensors are those of :class:`CodedTable`.

    Raises
    ------
    IndexError
        If an id is out of range.
    """
    described = CodeShape.parse(shape)
    flat = ids.reshape(-1)
    wanted = flat
    if labels is not None and offsets is not None:
        wanted = places_at(labels, offsets, described.row_starts, flat)
    unique, inverse = distinct(wanted, described.num_embeddings)
    codes = Codes(described, coefficients, labels, bases, scales, books, exact)
    rows = rows_at(codes, unique).to(scales.dtype)
    # Made in its shape: a view as the output of an operator must not be changed in place.
    result = rows.new_empty(*ids.shape, described.embedding_dim)
    torch.index_select(rows, 0, inverse, out=result.view(len(inverse), described.embedding_dim))
    return result


@lookup_codes.register_fake
def _(ids: Tensor, coefficients: Tensor, bases: Tensor, scales: Tensor, *others: Any) -> Tensor:  # noqa: ARG001
    return scales.new_empty(*ids.shape, bases.shape[1])


def _offset_dtype(shape: CodeShape) -> torch.dtype:
    kind: torch.dtype = label_dtype(max(2, *shape.counts)) or torch.uint8
    return kind
