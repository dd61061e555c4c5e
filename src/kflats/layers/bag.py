"""Compressed tables where an ``nn.EmbeddingBag`` stood: sums, means and maxima of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from kflats.errors import InputError, UnsupportedModelError
from kflats.layers.coded import CodedTable
from kflats.layers.embedding import TableLookup, check_options, exact_pair
from kflats.layers.table import FactorTable

if TYPE_CHECKING:
    from kflats.factors.factorization import Factorization
    from kflats.quantization.codes import Codes

MODES = ("mean", "sum", "max")


class TableBag(TableLookup):
    """A compressed table where an ``nn.EmbeddingBag`` stood.

    Parameters
    ----------
    shape : FactorShape or CodeShape
        Sizes of the table.
    mode : {'mean', 'sum', 'max'}
        How the rows of a bag become one.
    padding_idx : int, optional
        Id that counts in no bag, as in :class:`torch.nn.EmbeddingBag`; may be negative.
    include_last_offset : bool, default=False
        Whether the last offset is the end of the last bag.
    device, dtype : optional
        As in :class:`torch.nn.EmbeddingBag`.

    Raises
    ------
    InputError
        If there is no such mode.
    """

    folds_scale = False

    def __init__(
        self,
        shape: Any,
        *,
        mode: str = "mean",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, padding_idx=padding_idx, device=device, dtype=dtype)
        if mode not in MODES:
            raise InputError(f"mode={mode!r} must be one of {MODES}.")
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Return one row per bag, shape (n_bags, embedding_dim).

        Every distinct row is computed once, and the bags are made of these.

        Parameters
        ----------
        ids : Tensor of shape (n_bags, length), or (n_ids,) with ``offsets``
            The ids in the bags.
        offsets : Tensor of shape (n_bags,), optional
            Where each bag begins. An empty bag gives zeros.
        per_sample_weights : Tensor of the shape of ``ids``, optional
            Factors on the rows, in mode 'sum' only.

        Raises
        ------
        IndexError
            If an id is negative or not below ``num_embeddings``.
        """
        unique, inverse, padding = self._distinct(ids)
        return functional.embedding_bag(
            inverse,
            self.rows(unique),
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )

    def _distinct(self, ids: Tensor) -> tuple[Tensor, Tensor, int | None]:
        """Return the distinct ids, the place of each id among them, and that of the padding."""
        if torch.compiler.is_compiling() and self.padding_idx is None:
            # How many ids are distinct depends on the data, which would break the graph.
            flat = ids.reshape(-1)
            return flat, torch.arange(flat.shape[0], device=ids.device).view(ids.shape), None
        unique, inverse = torch.unique(ids, return_inverse=True)
        if self.padding_idx is None:
            return unique, inverse, None
        found = (unique == self.padding_idx).nonzero()
        return unique, inverse, int(found) if len(found) else None

    def take_over(self, old: Any) -> None:
        """Take nothing: all that a bag has besides the table is described."""

    def to_bag(self, weight: nn.Parameter | None = None) -> nn.EmbeddingBag:
        """Return the dense bag with the same output.

        Builds the dense table, unless another module that shares it gives ``weight``.
        """
        if weight is None:
            weight = nn.Parameter(self.dense_rows(), requires_grad=self.like.requires_grad)
        dense = nn.EmbeddingBag(
            self.num_embeddings,
            self.embedding_dim,
            mode=self.mode,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            device="meta",
        )
        dense.weight = weight
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """Describe the sizes in ``print(model)``."""
        return f"{super().extra_repr()}, mode={self.mode!r}"


class FactorizedEmbeddingBag(TableBag, FactorTable):
    """Bags of rows that are coefficients times the basis of their cluster.

    Parameters
    ----------
    shape, mode, padding_idx, include_last_offset, device, dtype
        See :class:`TableBag`.

    Examples
    --------
    >>> import torch
    >>> from kflats import Factorization
    >>> dense = torch.nn.EmbeddingBag(100, 16)
    >>> layer = FactorizedEmbeddingBag.from_bag(dense, Factorization.svd(dense.weight, rank=16))
    >>> ids, offsets = torch.tensor([3, 7, 99, 3]), torch.tensor([0, 3])
    >>> torch.allclose(layer(ids, offsets), dense(ids, offsets), atol=1e-5)
    True
    """

    @classmethod
    def from_bag(
        cls,
        bag: nn.EmbeddingBag,
        factorization: Factorization,
        *,
        exact_ids: Tensor | None = None,
    ) -> Self:
        """Return a layer that replaces ``bag``.

        Parameters
        ----------
        bag : torch.nn.EmbeddingBag
            Gives the mode, the padding, whether to train, and the exact rows.
        factorization : Factorization
            Factors of ``bag.weight``.
        exact_ids : Tensor of shape (m,), optional
            Ids to keep exact.

        Raises
        ------
        InputError
            If the sizes differ, or the bag uses ``max_norm``, ``scale_grad_by_freq`` or
            ``sparse``.
        """
        check_bag(bag)
        exact = exact_pair(bag.weight, factorization, exact_ids)
        like = factorization.coefficients
        shape = cls.shape_of(factorization, exact)
        layer = cls(shape, **_options(bag), device=like.device, dtype=like.dtype)
        layer.fill(factorization, exact)
        return layer.requires_grad_(bag.weight.requires_grad).train(bag.training)


class QuantizedEmbeddingBag(TableBag, CodedTable):
    """Bags of rows that are packed codes, unpacked when they are looked up.

    Parameters
    ----------
    shape, mode, padding_idx, include_last_offset, device, dtype
        See :class:`TableBag`.
    """

    @classmethod
    def from_bag(cls, bag: nn.EmbeddingBag, codes: Codes) -> Self:
        """Return a layer that replaces ``bag`` and holds ``codes``.

        Raises
        ------
        InputError
            If the bag uses ``max_norm``, ``scale_grad_by_freq`` or ``sparse``.
        """
        check_bag(bag)
        return cls(codes.shape, **_options(bag), device="meta").fill(codes).train(bag.training)


def check_bag(bag: nn.EmbeddingBag) -> None:
    """Raise unless a compressed table can do what ``bag`` does.

    Raises
    ------
    UnsupportedModelError
        If it is of a class that computes something else.
    InputError
        If it uses ``max_norm``, ``scale_grad_by_freq`` or ``sparse``.
    """
    if type(bag).forward is not nn.EmbeddingBag.forward:
        raise UnsupportedModelError(
            f"{type(bag).__name__} does more than nn.EmbeddingBag; kflats replaces only that one. "
            "Name other tables with modules=[...]."
        )
    check_options(bag)


def _options(bag: nn.EmbeddingBag) -> dict[str, Any]:
    return {
        "mode": bag.mode,
        "padding_idx": bag.padding_idx,
        "include_last_offset": bag.include_last_offset,
    }
