"""Layers over a table in packed codes that train: latent coefficients, quantised in the forward.

Parameters are in relative units, each about 1, so that one learning rate suits all of them: bases
in units of their directions, columns in units of themselves, gains as logarithms.
"""

from __future__ import annotations

from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from kflats.errors import InputError, UnsupportedModelError
from kflats.factors.shape import STORED
from kflats.layers.coded import CodedTable, QuantizedEmbedding, QuantizedLinear
from kflats.layers.embedding import TableEmbedding
from kflats.layers.linear import TableLinear
from kflats.layers.places import distinct, places_of
from kflats.layers.stored import StoredTable
from kflats.quantization.codebooks import nearest
from kflats.quantization.codes import Codes
from kflats.quantization.latents import Latents, codes_of, latents_of
from kflats.quantization.packing import HALF
from kflats.quantization.shape import CodeShape, Runs


class TrainableTable(StoredTable):
    """What a table in packed codes becomes for training, see :mod:`kflats.quantization.training`.

    A row is ``gain * levels[nearest(latent)] @ basis + mean``. Gradients pass the rounding to the
    nearest level as if it were not there; levels, gains and bases get their true gradients. Rows
    stored as they are stay as they are. Parameters are float32.

    Parameters
    ----------
    shape : CodeShape
        Sizes of the packed table.
    device : optional
        Without effect: the layer is empty until :meth:`fill`, and then where the codes are.
    dtype : torch.dtype, optional
        Of the rows that come out.

    Attributes
    ----------
    latent, log_gains, bases, columns, levels, exact
        See :class:`kflats.quantization.latents.Latents`. Parameters; ``exact`` without gradient.
    labels, units, ends
        See there. Buffers.
    places : Tensor of shape (num_embeddings,), int32, or None
        Place of every row in the order of the groups. A buffer that is not saved.
    """

    FACTORS = ("latent", "log_gains", "bases", "columns", "levels", "exact")
    SAVED_BUFFERS = ("labels", "units", "ends")
    DERIVED_BUFFERS = ("places",)

    shape: CodeShape
    latent: nn.Parameter
    log_gains: nn.Parameter
    bases: nn.Parameter
    columns: nn.Parameter | None
    levels: nn.Parameter
    exact: nn.Parameter | None
    labels: Tensor | None
    units: Tensor
    ends: Tensor
    places: Tensor | None

    def __init__(
        self,
        shape: CodeShape,
        *,
        device: torch.device | str | None = None,  # noqa: ARG002  of the codes that fill it
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape)
        self.row_dtype = dtype or torch.get_default_dtype()
        for name in self.FACTORS:
            self.register_parameter(name, None)
        for name in self.SAVED_BUFFERS:
            self.register_buffer(name, None)
        self.register_buffer("places", None, persistent=False)

    def fill(self, codes: Codes, table: Tensor | None = None) -> Self:
        """Take what ``codes`` holds; the rows that come out are the same.

        The latent numbers begin at the rows of ``table``, the dense one, if it is given; see
        :func:`kflats.quantization.latents.latents_of`.
        """
        latents = latents_of(codes, table)
        for name in self.FACTORS:
            tensor = getattr(latents, name)
            is_fixed = name == "exact" or tensor is None or not tensor.numel()
            value = None if tensor is None else nn.Parameter(tensor, requires_grad=not is_fixed)
            setattr(self, name, value)
        for name in self.SAVED_BUFFERS:
            self.register_buffer(name, getattr(latents, name))
        self.row_dtype = codes.scales.dtype
        return self.index_()

    def codes(self) -> Codes:
        """Return the table as it is now in packed codes of the same shape."""
        tensors = {name: getattr(self, name) for name in (*self.FACTORS, *self.SAVED_BUFFERS)}
        found: dict[str, Any] = {
            name: None if tensor is None else tensor.detach() for name, tensor in tensors.items()
        }
        return codes_of(Latents(shape=self.shape, **found), self.row_dtype)

    @property
    def coefficients(self) -> NoReturn:  # type: ignore[override]
        """Raise: there are no packed coefficients, which all that saves a table asks for."""
        raise InputError(
            "the table is unpacked for training; call kflats.pack_(model) before it is saved, "
            "exported or made dense."
        )

    @property
    def like(self) -> Tensor:
        """An empty tensor with the dtype and the device of the rows."""
        return torch.empty(0, dtype=self.row_dtype, device=self.units.device)

    def index_(self) -> Self:
        """Find the places of the rows; call it after changing the labels."""
        if self.labels is not None and not self.labels.is_meta:
            self._derive("places", places_of(self.labels, self.shape.counts))
        return self

    def rows(self, ids: Tensor, padding_idx: int | None = None) -> Tensor:
        """Return rows of the table, shape (*ids.shape, embedding_dim); each distinct one once.

        Raises
        ------
        IndexError
            If an id is out of range.
        """
        flat = ids.reshape(-1)
        wanted = flat if self.places is None else self.places.index_select(0, flat)
        places, inverse = distinct(wanted, self.shape.num_embeddings)
        with torch.autocast(self.units.device.type, enabled=False):
            rows = self._rows_at(places)
        if padding_idx is not None:
            padding = padding_idx if self.places is None else self.places[padding_idx]
            rows = torch.where((places == padding)[:, None], rows.detach(), rows)
        found = rows.to(self.row_dtype).index_select(0, inverse)
        return found.view(*ids.shape, self.shape.embedding_dim)

    def product(self, hidden: Tensor) -> Tensor:
        """Return ``hidden @ table.T``, shape (*, num_embeddings); the whole table is computed."""
        rows = self.rows(torch.arange(self.shape.num_embeddings, device=self.units.device))
        return torch.nn.functional.linear(hidden, rows.to(hidden.dtype))

    def _rows_at(self, places: Tensor) -> Tensor:
        """Return the rows at ascending places, float32."""
        shape = self.shape
        counts = torch.tensor(shape.counts, device=places.device)
        starts = (counts.cumsum(0) - counts).to(places.dtype)
        bounds = [*torch.searchsorted(places, starts).tolist(), len(places)]
        widths = shape.coded
        counted = list(zip(shape.counts, widths, strict=True))
        latents = self.latent.split([count * width for count, width in counted])
        gains = self.log_gains.split([count * bool(width) for count, width in counted])
        directions = (self.bases * self.units[: len(self.bases), None]).split(shape.directions)
        levels = self._sorted_levels()
        parts = []
        for group, width in enumerate(widths):
            here = places[bounds[group] : bounds[group + 1]] - starts[group]
            if not len(here):
                continue
            if shape.basis_ids[group] == STORED:
                parts.append(self._exact_rows(here))
                continue
            inner = None
            if width:
                own = latents[group].view(-1, width).index_select(0, here)
                gain = gains[group].index_select(0, here).exp()
                inner = gain[:, None] * _at_levels(own, shape.runs[group], levels)
            parts.append(self._outer(shape.basis_ids[group], inner, len(here), directions))
        return torch.cat(parts) if parts else self.units.new_empty(0, shape.embedding_dim)

    def _outer(
        self, basis: int, inner: Tensor | None, count: int, directions: tuple[Tensor, ...]
    ) -> Tensor:
        """Return ``inner @ basis + mean``."""
        shape, own = self.shape, directions[basis]
        mean = own[0] if shape.affine else self.units.new_zeros(shape.embedding_dim)
        if inner is None:
            return mean.expand(count, -1)
        width = inner.shape[1]
        if shape.rotated[basis]:
            start = int(shape.affine)
            return torch.addmm(mean, inner, own[start : start + width])
        scaled = inner * self._column_scales(basis)[:width]
        return torch.nn.functional.pad(scaled, (0, shape.embedding_dim - width)) + mean

    def _column_scales(self, basis: int) -> Tensor:
        if self.columns is None:
            raise ValueError("a rotated basis has no column scales")
        start = self.shape.rotated[:basis].count(False) * self.shape.embedding_dim
        own = slice(start, start + self.shape.embedding_dim)
        return self.columns[own] * self.units[len(self.bases) :][own]

    def _exact_rows(self, places: Tensor) -> Tensor:
        if self.exact is None:
            raise ValueError("the table has no rows that are stored as they are")
        return self.exact.index_select(0, places).float()

    def _sorted_levels(self) -> dict[int, Tensor]:
        """Return the levels of each width, ascending even where training has moved them past."""
        widths = self.shape.widths
        parts = self.levels.split([2**width for width in widths])
        return {width: part.sort().values for width, part in zip(widths, parts, strict=True)}

    def extra_repr(self) -> str:
        """Describe the sizes in ``print(model)``."""
        s = self.shape
        return f"{s.num_embeddings}, {s.embedding_dim}, bits={s.bits(self.row_dtype):.2f}, unpacked"


def _at_levels(values: Tensor, runs: Runs, levels: dict[int, Tensor]) -> Tensor:
    """Return the nearest levels; the gradient goes to the levels, and straight to the values."""
    parts = []
    for (bits, _), part in zip(runs, values.split([count for _, count in runs], 1), strict=True):
        if bits == HALF:
            parts.append(part + (part.half().float() - part).detach())
            continue
        own = levels[bits]
        codes = nearest(part.detach(), own.detach())
        found = own.index_select(0, codes.view(-1)).view(part.shape)
        parts.append(found + (part - part.detach()))
    return torch.cat(parts, 1)


class TrainableEmbedding(TableEmbedding, TrainableTable):
    """A :class:`kflats.layers.QuantizedEmbedding` unpacked for training.

    Parameters
    ----------
    shape, padding_idx, scale, device, dtype
        See :class:`kflats.layers.QuantizedEmbedding`.

    Examples
    --------
    >>> import torch
    >>> from kflats.layers import QuantizedEmbedding
    >>> from kflats.quantization.fit import code_table
    >>> dense = torch.nn.Embedding(1000, 64)
    >>> packed = QuantizedEmbedding.from_embedding(dense, code_table(dense.weight, 33_000))
    >>> layer = TrainableEmbedding(packed.shape).fill(packed.codes)
    >>> ids = torch.tensor([3, 7])
    >>> torch.allclose(layer(ids), packed(ids), atol=1e-5), layer(ids).requires_grad
    (True, True)
    """


class TrainableLinear(TableLinear, TrainableTable):
    """A :class:`kflats.layers.QuantizedLinear` unpacked for training.

    Parameters
    ----------
    shape, bias, device, dtype
        See :class:`kflats.layers.QuantizedLinear`.
    """


def unpacked(layer: CodedTable) -> TrainableTable:
    """Return an empty layer that trains, for the place of a packed one.

    Raises
    ------
    UnsupportedModelError
        If the packed layer is neither an embedding nor an output head.
    """
    new: Any
    if isinstance(layer, QuantizedEmbedding):
        new = TrainableEmbedding(layer.shape, padding_idx=layer.padding_idx, scale=layer.scale)
        new.dense_class = layer.dense_class
    elif isinstance(layer, QuantizedLinear):
        new = TrainableLinear(layer.shape)
        new.take_over(layer)
    else:
        raise UnsupportedModelError(
            f"{type(layer).__name__} cannot be unpacked for training; embeddings and output heads "
            "over packed codes can."
        )
    new.origin, new.row_dtype = layer.origin, layer.like.dtype
    result: TrainableTable = new
    return result.train(layer.training)


def packed(layer: TrainableTable) -> CodedTable:
    """Return an empty layer over packed codes, for the place of one that was trained."""
    new: Any
    if isinstance(layer, TrainableEmbedding):
        new = QuantizedEmbedding(
            layer.shape, padding_idx=layer.padding_idx, scale=layer.scale, device="meta"
        )
        new.dense_class = layer.dense_class
    else:
        new = QuantizedLinear(layer.shape, device="meta")
        new.take_over(layer)
    new.origin = layer.origin
    result: CodedTable = new
    return result.train(layer.training)
