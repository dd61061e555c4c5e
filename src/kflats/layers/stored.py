"""StoredTable: what every form of a compressed table can do, whatever it stores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from kflats.errors import InputError, UnsupportedModelError
from kflats.factors.shape import FactorShape
from kflats.layers.weight import TableView
from kflats.linalg import row_blocks
from kflats.quantization.shape import CodeShape

FILE_NAMES = {
    "coefficients": "weight",
    "bases": "kflats_bases",
    "means": "kflats_means",
    "scales": "kflats_scales",
    "books": "kflats_books",
    "exact": "kflats_exact",
    "labels": "kflats_labels",
    "pivots": "kflats_pivots",
}
"""Names of the tensors in files.

The coefficients have the name of the table they replace: a program without kflats then meets a
tensor of a wrong shape and stops, instead of going on with a random table. The others say in its
list of unknown tensors what is missing.
"""


class StoredTable(nn.Module):
    """A table that is not stored as a matrix: tensors that modules may share, and its rows.

    Attributes
    ----------
    FACTORS : tuple of str
        Names of the parameters that modules with one table share.
    SAVED_BUFFERS, DERIVED_BUFFERS : tuple of str
        Names of the buffers that they share: those that are saved, and those that follow from
        them. Whole numbers are buffers: a parameter that cannot train breaks code that switches
        training on, averages or flattens all parameters.
    shape : FactorShape or CodeShape
        Sizes.
    is_shared : bool
        Whether the tensors belong to another module, which saves them.
    is_loading : bool
        Whether values are being read into a skeleton, so that rows cannot be computed yet.
    origin : dict
        How the table was made, for reports and model cards; empty if unknown.
    """

    FACTORS: ClassVar[tuple[str, ...]]
    SAVED_BUFFERS: ClassVar[tuple[str, ...]]
    DERIVED_BUFFERS: ClassVar[tuple[str, ...]]
    storage_kinds: ClassVar[dict[str, str]]

    coefficients: Tensor
    shape: Any

    def __init__(self, shape: FactorShape | CodeShape) -> None:
        super().__init__()
        self.shape = shape
        self.origin: dict[str, Any] = {}
        self.is_shared = False
        self.is_loading = False
        # In lists, so that they are no sub-modules.
        self._owner: list[StoredTable] = []
        self._readers: list[StoredTable] = []
        self.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor with the dtype, the device and the ``requires_grad`` of the rows."""

    @abstractmethod
    def index_(self) -> Self:
        """Find what follows from the saved buffers; call it after changing them."""

    @abstractmethod
    def rows(self, ids: Tensor, padding_idx: int | None = None) -> Tensor:
        """Return rows of the table, shape (*ids.shape, embedding_dim)."""

    @abstractmethod
    def product(self, hidden: Tensor) -> Tensor:
        """Return ``hidden @ table.T``, shape (*, num_embeddings), for hidden (*, embedding_dim)."""

    @property
    def weight(self) -> TableView:
        """Stands for the dense table in code that asks for it, see :class:`TableView`."""
        return TableView(self)

    @property
    def table_id(self) -> int:
        """A number that modules with one table have in common, and no others in one model."""
        for owner in self._owner:
            # Sharers of a skeleton without storage have empty tensors of their own.
            if self.coefficients.is_meta or self.coefficients is owner.coefficients:
                return owner.table_id
        return id(self.coefficients)

    @property
    def num_bytes(self) -> int:
        """Bytes of the table, labels included, as they lie on disk."""
        size: int = self.shape.num_bytes(self.like.dtype)
        return size

    def dense_rows(self) -> Tensor:
        """Return the whole dense table, detached, built block by block."""
        n, d = self.shape.num_embeddings, self.shape.embedding_dim
        table = self.like.new_empty(n, d)
        with torch.no_grad():
            for block in row_blocks(n, d):
                ids = torch.arange(block.start, block.stop, device=table.device)
                table[block] = self.rows(ids)
        return table.detach()

    def take_over(self, old: Any) -> None:
        """Keep what is not in the factors of the module whose place this one takes."""
        raise NotImplementedError

    def share_with(self, other: StoredTable) -> None:
        """Use the tensors of ``other`` from now on, as tied modules do.

        Raises
        ------
        InputError
            If the shapes differ.
        """
        if self.shape != other.shape:
            raise InputError(f"{self.shape} cannot share the factors of {other.shape}.")
        for name in self.FACTORS:
            setattr(self, name, getattr(other, name))
        self._take_buffers(other)
        self.origin = other.origin
        self.is_shared = True
        self._owner = [other]
        if not any(reader is self for reader in other._readers):
            other._readers.append(self)

    def _take_buffers(self, other: StoredTable) -> None:
        for name in (*self.SAVED_BUFFERS, *self.DERIVED_BUFFERS):
            buffer = getattr(other, name)
            if buffer is not None and buffer.is_meta:
                # transformers gives storage to every tensor of a skeleton once, by one name only.
                buffer = torch.empty_like(buffer)
            self.register_buffer(name, buffer, persistent=False)

    def tie_to(self, view: Any) -> None:
        """Read the table that ``view`` stands for: what ``layer.weight = other.weight`` does.

        Raises
        ------
        UnsupportedModelError
            If ``view`` is not the weight of a layer that stores its table in the same form.
        """
        other = view._table if isinstance(view, TableView) and not view._transposed else None
        if other is self:
            return
        columns = self.shape.embedding_dim
        if other is None or (other.FACTORS, other.shape.embedding_dim) != (self.FACTORS, columns):
            raise UnsupportedModelError(
                f"the weight of a {type(self).__name__} can be set to that of another layer with "
                f"as many columns whose table is stored in the same form, not to {view!r}: call "
                "kflats.to_dense_(model) first."
            )
        for reader in self._readers:
            reader.own_()  # of the table that this module reads no longer
        self._readers.clear()
        self.shape = other.shape
        self.share_with(other)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self.tie_to(value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Cast or move; unlike parameters, buffers are replaced, so they are shared again."""
        for owner in self._owner:
            owner._apply(fn)
            names = (*self.SAVED_BUFFERS, *self.DERIVED_BUFFERS)
            held = {name: self._buffers.pop(name) for name in names}
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self._buffers |= held
            self._take_buffers(owner)
            return self
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for reader in self._readers:
            if reader.is_shared and reader._owner[0] is self:
                reader._take_buffers(self)
        return self

    def own_(self) -> None:
        """Save the tensors of the table with this module from now on."""
        if self.is_shared:
            for name in self.SAVED_BUFFERS:
                self.register_buffer(name, getattr(self, name))
            self.is_shared = False
            self._owner = []

    def _derive(self, name: str, values: Tensor) -> None:
        # In place where it can be: modules that share the table see it too.
        old = getattr(self, name)
        if old is not None and (old.shape, old.device, old.dtype) == (
            values.shape,
            values.device,
            values.dtype,
        ):
            old.copy_(values)
        else:
            self.register_buffer(name, values, persistent=False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Trainer and others read the file of a checkpoint straight into load_state_dict.
        for name, file_name in FILE_NAMES.items():
            if prefix + file_name in state_dict and prefix + name not in state_dict:
                state_dict[prefix + name] = state_dict.pop(prefix + file_name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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
