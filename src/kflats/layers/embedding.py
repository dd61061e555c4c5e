"""FactorizedEmbedding: k small layers and their bases where an ``nn.Embedding`` stood."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from kflats.errors import InputError, UnsupportedModelError
from kflats.layers.stored import StoredTable
from kflats.layers.table import FactorTable

if TYPE_CHECKING:
    from kflats.factors.factorization import Factorization

_REFUSED = {"max_norm": None, "scale_grad_by_freq": False, "sparse": False}


class TableLookup(StoredTable):
    """A compressed table that is read by ids, one by one or in bags.

    Parameters
    ----------
    shape : FactorShape or CodeShape
        Sizes of the table.
    padding_idx : int, optional
        Id that is only there to fill up; may be negative.
    device, dtype : optional
        As in :class:`torch.nn.Embedding`.
    """

    # What the dense modules have too; check_options refuses other values.
    max_norm: float | None = None
    norm_type = 2.0
    scale_grad_by_freq = False
    sparse = False

    def __init__(
        self,
        shape: Any,
        *,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, device=device, dtype=dtype)  # type: ignore[call-arg]
        self.padding_idx = _normal_padding(padding_idx, shape.num_embeddings)

    @property
    def num_embeddings(self) -> int:
        """Rows of the table; set by code that resizes, when they have that number already."""
        size: int = self.shape.num_embeddings
        return size

    @num_embeddings.setter
    def num_embeddings(self, size: int) -> None:
        if size != self.shape.num_embeddings:
            raise UnsupportedModelError(
                f"num_embeddings={size} cannot be set: the table has {self.shape.num_embeddings} "
                "rows. Call model.resize_token_embeddings, or kflats.to_dense_(model) first."
            )

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        size: int = self.shape.embedding_dim
        return size

    def extra_repr(self) -> str:
        """Describe the sizes in ``print(model)``."""
        text = super().extra_repr()
        return text if self.padding_idx is None else f"{text}, padding_idx={self.padding_idx}"


class TableEmbedding(TableLookup):
    """A compressed table where an ``nn.Embedding`` stood.

    Parameters
    ----------
    shape : FactorShape or CodeShape
        Sizes of the table.
    padding_idx : int, optional
        Id whose row gives no gradient, as in :class:`torch.nn.Embedding`; may be negative.
    scale : float, default=1.0
        Factor on the output, for models that scale their embeddings.
    device, dtype : optional
        As in :class:`torch.nn.Embedding`.
    """

    def __init__(
        self,
        shape: Any,
        *,
        padding_idx: int | None = None,
        scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, padding_idx=padding_idx, device=device, dtype=dtype)
        self.scale = scale
        self.dense_class: type[nn.Embedding] = nn.Embedding

    @property
    def embed_scale(self) -> float | None:
        """``scale``, or None for 1, under the name that the scaled embeddings have."""
        return None if self.scale == 1.0 else self.scale

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ``ids`` times ``scale``, shape (*ids.shape, embedding_dim).

        Raises
        ------
        IndexError
            If an id is negative or not below ``num_embeddings``.
        """
        rows = self.rows(ids, self.padding_idx)
        return rows if self.scale == 1.0 else rows * self.scale

    def take_over(self, old: Any) -> None:
        """Keep the class of the dense embedding, for :meth:`to_embedding`."""
        self.dense_class = dense_class_of(old)

    @property
    def folds_scale(self) -> bool:
        """Whether the dense table must hold the scale, since its class has none."""
        return self.scale != 1.0 and self.dense_class is nn.Embedding

    def to_embedding(self, weight: nn.Parameter | None = None) -> nn.Embedding:
        """Return the dense embedding with the same output, of the class it once replaced.

        Builds the dense table, unless another module that shares it gives ``weight``.
        """
        like = self.like
        if weight is None or self.folds_scale:
            table = self.dense_rows()
            table = table * self.scale if self.folds_scale else table
            weight = nn.Parameter(table, requires_grad=like.requires_grad)
        plain = self.dense_class is nn.Embedding
        scale: dict[str, Any] = {} if plain else {"embed_scale": self.scale}
        dense = self.dense_class(1, 1, padding_idx=None, **scale)
        dense = dense.to(like.device, like.dtype).train(self.training)
        dense.num_embeddings, dense.embedding_dim = weight.shape
        dense.padding_idx = self.padding_idx
        dense.weight = weight
        return dense

    def extra_repr(self) -> str:
        """Describe the sizes in ``print(model)``."""
        text = super().extra_repr()
        return text if self.scale == 1.0 else f"{text}, scale={self.scale:g}"


class FactorizedEmbedding(TableEmbedding, FactorTable):
    """An embedding whose rows are coefficients times the basis of their cluster.

    The paper's section 3.2: ``n_clusters`` parallel layers of ``rank`` outputs and one layer that
    recombines them. Only a row's own coefficients are stored, not the zeros at the places of the
    other clusters. A new layer holds zeros; :meth:`from_embedding` fills one.

    Parameters
    ----------
    shape : FactorShape
        Rows, columns, and the groups of rows.
    padding_idx : int, optional
        Id whose row gives no gradient, as in :class:`torch.nn.Embedding`; may be negative.
    scale : float, default=1.0
        Factor on the output, for models that scale their embeddings.
    device, dtype : optional
        As in :class:`torch.nn.Embedding`.

    Attributes
    ----------
    coefficients, bases, means, labels, places, pivots, columns
        See :class:`kflats.layers.FactorTable`.

    Examples
    --------
    >>> import torch
    >>> from kflats import Factorization
    >>> dense = torch.nn.Embedding(100, 16)
    >>> factors = Factorization.svd(dense.weight, rank=16)
    >>> layer = FactorizedEmbedding.from_embedding(dense, factors)
    >>> ids = torch.tensor([[3, 7], [99, 3]])
    >>> torch.allclose(layer(ids), dense(ids), atol=1e-5)
    True
    """

    @classmethod
    def from_factorization(
        cls,
        factorization: Factorization,
        *,
        exact: tuple[Tensor, Tensor] | None = None,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> Self:
        """Return a layer that holds the factors, on their device and in their dtype.

        Parameters
        ----------
        factorization : Factorization
            What to store.
        exact : pair of Tensors, optional
            Distinct ids of shape (m,) and their rows of shape (m, embedding_dim), stored as they
            are instead of coefficients.
        padding_idx, scale
            See the class.
        """
        like = factorization.coefficients
        layer = cls(
            cls.shape_of(factorization, exact),
            padding_idx=padding_idx,
            scale=scale,
            device=like.device,
            dtype=like.dtype,
        )
        layer.fill(factorization, exact)
        return layer

    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        factorization: Factorization,
        *,
        exact_ids: Tensor | None = None,
    ) -> Self:
        """Return a layer that replaces ``embedding``.

        Parameters
        ----------
        embedding : torch.nn.Embedding
            Gives ``padding_idx``, whether to train, and the exact rows.
        factorization : Factorization
            Factors of ``embedding.weight``.
        exact_ids : Tensor of shape (m,), optional
            Ids to keep exact.

        Raises
        ------
        InputError
            If the sizes differ, or the embedding uses ``max_norm``, ``scale_grad_by_freq`` or
            ``sparse``, which change the table or its gradient in ways factors cannot follow.
        """
        check_options(embedding)
        exact = exact_pair(embedding.weight, factorization, exact_ids)
        layer = cls.from_factorization(
            factorization, exact=exact, padding_idx=embedding.padding_idx
        )
        layer.take_over(embedding)
        return layer.requires_grad_(embedding.weight.requires_grad).train(embedding.training)


def check_options(embedding: nn.Embedding | nn.EmbeddingBag) -> None:
    """Raise InputError if ``embedding`` uses an option that factors cannot keep."""
    for name, harmless in _REFUSED.items():
        value: Any = getattr(embedding, name)
        if value != harmless:
            raise InputError(
                f"the embedding has {name}={value}, which a factorised table cannot keep; "
                f"set {name}={harmless} first if training does not need it."
            )


def dense_class_of(embedding: nn.Module) -> type[nn.Embedding]:
    """Return the class that ``to_embedding`` makes again: the own one if it takes a scale."""
    if isinstance(embedding, TableEmbedding):
        return embedding.dense_class
    found = cast(type[nn.Embedding], type(embedding))
    return found if "embed_scale" in inspect.signature(found).parameters else nn.Embedding


def exact_pair(
    weight: Tensor, factorization: Factorization, exact_ids: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return the ids and rows to store as they are, after a check of the sizes."""
    sizes = (factorization.num_embeddings, factorization.embedding_dim)
    if tuple(weight.shape) != sizes:
        raise InputError(
            f"the table is {tuple(weight.shape)} and the factorisation {sizes}; factor the weight "
            "of the module itself."
        )
    if exact_ids is None or not len(exact_ids):
        return None
    ids = exact_ids.to(weight.device).long().unique()
    if int(ids[0]) < 0 or int(ids[-1]) >= len(weight):
        raise InputError(f"exact_ids={ids.tolist()} must be between 0 and {len(weight) - 1}.")
    return ids, weight.detach()[ids]


def _normal_padding(padding_idx: int | None, num_embeddings: int) -> int | None:
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise InputError(
            f"padding_idx={padding_idx} must be within num_embeddings={num_embeddings}."
        )
    return padding_idx % num_embeddings
