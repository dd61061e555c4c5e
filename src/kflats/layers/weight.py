"""What code that reads ``embedding.weight`` gets from a factorised layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from kflats.errors import UnsupportedModelError

if TYPE_CHECKING:
    from kflats.layers.stored import StoredTable


class TableView:
    """Stands for the dense table, which does not exist.

    Free: ``shape``, ``size()``, ``dtype``, ``device``, ``requires_grad``. Computed from the
    factors, differentiably: rows by id (``weight[ids]``, ``F.embedding(ids, weight)``) and
    products with hidden states (``hidden @ weight.T``, ``F.linear(hidden, weight)``), which some
    models do by hand. Anything else raises: the dense table is built on demand by
    ``layer.dense_rows()`` only.

    Parameters
    ----------
    table : StoredTable
        The layer.
    transposed : bool, default=False
        Whether it stands for the transposed table.
    """

    _is_hf_initialized = True  # transformers must not draw random values for it
    is_leaf = True
    ndim = 2

    def __init__(self, table: StoredTable, transposed: bool = False) -> None:
        self._table = table
        self._transposed = transposed
        n, d = table.shape.num_embeddings, table.shape.embedding_dim
        self.dtype = table.like.dtype
        self.device = table.like.device
        self.requires_grad = table.like.requires_grad
        self.shape = torch.Size((d, n) if transposed else (n, d))

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Return the shape of the table, or one size."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Return 2."""
        return self.ndim

    def numel(self) -> int:
        """Return the number of entries of the dense table."""
        return self.shape.numel()

    def data_ptr(self) -> int:
        """Return an address that two views share if they stand for one table."""
        return self._table.coefficients.data_ptr()

    def t(self) -> TableView:
        """Return the view of the transposed table."""
        return TableView(self._table, not self._transposed)

    T = property(t)
    mT = T  # noqa: N815  torch's name

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"TableView(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f".{name}")

    def __getitem__(self, index: Any) -> Tensor:
        """Return the rows of an id, a tensor or a list of ids; slices are refused."""
        if isinstance(index, tuple) and len(index) == 2 and _is_whole(index[1]):
            index = index[0]
        if self._transposed or isinstance(index, _NO_IDS) or index is None:
            self._refuse("[...]")
        ids = torch.as_tensor(index, device=self.device)
        if not ids.numel():
            ids = ids.long()
        if ids.is_floating_point() or ids.dtype == torch.bool:
            self._refuse("[...]")
        if self._table.is_loading:
            return self._initialized(ids)
        return self._table.rows(torch.where(ids < 0, ids + len(self), ids))

    def _initialized(self, ids: Tensor) -> Tensor:
        """Return rows that transformers takes for read: it sets those of the padding to zero."""
        rows = self._table.like.new_zeros(*ids.shape, self.shape[1])
        rows._is_hf_initialized = True  # type: ignore[attr-defined]
        return rows

    def __rmatmul__(self, hidden: Tensor) -> Tensor:
        return self._product(hidden)

    def _product(self, hidden: Tensor) -> Tensor:
        if not self._transposed:
            self._refuse(" in a product with the table, not its transpose")
        return self._table.product(hidden)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        if func not in _FUNCTIONS:
            cls._refuse(f" in torch.{getattr(func, '__name__', func)}")
        return _FUNCTIONS[func](*args, **(kwargs or {}))

    @staticmethod
    def _refuse(what: str) -> NoReturn:
        raise UnsupportedModelError(
            f"the values of a factorised table were read (weight{what}), but it is not stored as "
            "a matrix. Call the layer with ids, or build the dense table with layer.dense_rows()."
        )


_NO_IDS = slice | tuple | bool | type(Ellipsis)


def _is_whole(part: object) -> bool:
    return part is Ellipsis or (isinstance(part, slice) and part == slice(None))


def _view(value: Any, what: str) -> TableView:
    """Return the view in the place of an argument where it can serve."""
    if not isinstance(value, TableView):
        TableView._refuse(f" as another argument of {what}")
    return value


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:  # noqa: A002
    result = _view(weight, "linear").t()._product(input)
    return result if bias is None else result + bias.to(result.dtype)


def _matmul(input: Tensor, other: Any) -> Tensor:  # noqa: A002
    return _view(other, "matmul")._product(input)


def _embedding(
    input: Tensor,  # noqa: A002
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    view = _view(weight, "embedding")
    if view._transposed or max_norm is not None:
        view._refuse(" in embedding, transposed or with max_norm")
    return view._table.rows(input, padding_idx)


_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.nn.functional.linear: _linear,
    torch.nn.functional.embedding: _embedding,
}
