"""FactorizedEmbedding: k small layers and their bases where an ``nn.Embedding`` stood."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from kflats.budget import FactorShape, label_dtype
from kflats.errors import InputError
from kflats.factorization import Factorization
from kflats.layers.lookup import lookup
from kflats.layers.weight import TableView

_REFUSED = {"max_norm": None, "scale_grad_by_freq": False, "sparse": False}


class FactorizedEmbedding(nn.Module):
    """An embedding whose rows are ``coefficients[i] @ bases[labels[i]]``.

    The paper's section 3.2: ``n_clusters`` parallel layers of ``rank`` outputs and one layer that
    recombines them. Only a row's own ``rank`` coefficients are stored, not the zeros at the
    places of the other clusters. A new layer holds zeros; :meth:`from_embedding` fills one.

    Parameters
    ----------
    shape : FactorShape
        Rows, columns, clusters, rank, and whether there are means and exact rows.
    padding_idx : int, optional
        Id whose row gives no gradient, as in :class:`torch.nn.Embedding`; may be negative.
    scale : float, default=1.0
        Factor on the output, for models that scale their embeddings.
    device, dtype : optional
        As in :class:`torch.nn.Embedding`.

    Attributes
    ----------
    coefficients : Parameter of shape (num_embeddings, rank)
        One row per id.
    bases : Parameter of shape (n_clusters, rank, embedding_dim)
        Orthonormal rows when fresh; training may change them.
    labels : Tensor of shape (num_embeddings,) or None
        Cluster of every row in the smallest integer type; None for one cluster. A buffer.
    means : Parameter of shape (n_clusters, embedding_dim) or None
        Points of affine flats.
    exact_ids : Tensor of shape (n_exact,), int32, or None
        Ascending ids of the rows stored as they are. A buffer.
    exact_rows : Parameter of shape (n_exact, embedding_dim) or None
        Those rows.

    Examples
    --------
    >>> import torch
    >>> dense = torch.nn.Embedding(100, 16)
    >>> factors = Factorization.svd(dense.weight, rank=16)
    >>> layer = FactorizedEmbedding.from_embedding(dense, factors)
    >>> ids = torch.tensor([[3, 7], [99, 3]])
    >>> torch.allclose(layer(ids), dense(ids), atol=1e-5)
    True
    """

    labels: Tensor | None
    exact_ids: Tensor | None

    def __init__(
        self,
        shape: FactorShape,
        *,
        padding_idx: int | None = None,
        scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.padding_idx = _normal_padding(padding_idx, shape.num_embeddings)
        self.scale = scale

        def parameter(*sizes: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*sizes, device=device, dtype=dtype))

        n, d, k = shape.num_embeddings, shape.embedding_dim, shape.n_clusters
        self.coefficients = parameter(n, shape.rank)
        self.bases = parameter(k, shape.rank, d)
        self.means = parameter(k, d) if shape.affine else None
        self.exact_rows = parameter(shape.n_exact, d) if shape.n_exact else None
        kind = label_dtype(k)
        self.register_buffer(
            "labels", None if kind is None else torch.zeros(n, dtype=kind, device=device)
        )
        ids = torch.arange(shape.n_exact, dtype=torch.int32, device=device)
        self.register_buffer("exact_ids", ids if shape.n_exact else None)

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
            Ids of shape (m,) and their rows of shape (m, embedding_dim), stored as they are.
        padding_idx, scale
            See the class.
        """
        n_exact = 0 if exact is None else len(exact[0])
        sizes = {**factorization.shape.to_dict(), "n_exact": n_exact}
        like = factorization.coefficients
        layer = cls(
            FactorShape(**sizes),
            padding_idx=padding_idx,
            scale=scale,
            device=like.device,
            dtype=like.dtype,
        )
        with torch.no_grad():
            layer.coefficients.copy_(factorization.coefficients)
            layer.bases.copy_(factorization.bases)
            if layer.means is not None and factorization.means is not None:
                layer.means.copy_(factorization.means)
            if layer.labels is not None:
                layer.labels.copy_(factorization.labels)
            if exact is not None and layer.exact_ids is not None:
                order = torch.argsort(exact[0])
                layer.exact_ids.copy_(exact[0][order])
                layer.exact_rows.copy_(exact[1][order])  # type: ignore[union-attr]
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
        sizes = (factorization.num_embeddings, factorization.embedding_dim)
        if tuple(embedding.weight.shape) != sizes:
            raise InputError(
                f"the embedding is {tuple(embedding.weight.shape)} and the factorisation {sizes}; "
                "factor embedding.weight itself."
            )
        exact = None
        if exact_ids is not None and len(exact_ids):
            ids = exact_ids.to(embedding.weight.device)
            exact = (ids, embedding.weight.detach()[ids])
        layer = cls.from_factorization(
            factorization, exact=exact, padding_idx=embedding.padding_idx
        )
        return layer.requires_grad_(embedding.weight.requires_grad).train(embedding.training)

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.shape.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return self.shape.embedding_dim

    @property
    def weight(self) -> TableView:
        """Shape, dtype and device of the table for code that asks; values raise."""
        return TableView(self.coefficients, self.embedding_dim)

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameters and buffers, as they lie on disk."""
        return self.shape.num_bytes(self.coefficients.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ``ids`` times ``scale``, shape (*ids.shape, embedding_dim).

        Raises
        ------
        IndexError
            If an id is negative or not below ``num_embeddings``.
        """
        rows = self.rows(ids)
        return rows if self.scale == 1.0 else rows * self.scale

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows of the table, before ``scale``."""
        padding = -1 if self.padding_idx is None else self.padding_idx
        rows: Tensor = lookup(ids, self.coefficients, self.bases, self.labels, self.means, padding)
        if self.exact_ids is None or self.exact_rows is None:
            return rows
        known = self.exact_ids.to(ids.dtype)
        place = torch.searchsorted(known, ids).clamp_max(len(known) - 1)
        exact = nn.functional.embedding(place, self.exact_rows)
        if self.padding_idx is not None:
            exact = torch.where((ids == padding)[..., None], exact.detach(), exact)
        return torch.where((known[place] == ids)[..., None], exact, rows)

    def share_with(self, other: FactorizedEmbedding) -> None:
        """Use the parameters and buffers of ``other`` from now on, as tied modules do."""
        if self.shape != other.shape:
            raise InputError(f"{self.shape} cannot share the factors of {other.shape}.")
        for name, parameter in other.named_parameters(recurse=False):
            setattr(self, name, parameter)
        for name, buffer in other.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=False)

    def to_embedding(self) -> nn.Embedding:
        """Return an ``nn.Embedding`` with the same output: builds the dense table."""
        with torch.no_grad():
            ids = torch.arange(self.num_embeddings, device=self.coefficients.device)
            dense: nn.Embedding = nn.Embedding.from_pretrained(
                self(ids), freeze=not self.coefficients.requires_grad, padding_idx=self.padding_idx
            )
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """Describe the sizes in ``print(model)``."""
        text = ", ".join(f"{name}={value}" for name, value in self.shape.to_dict().items() if value)
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        return text if self.scale == 1.0 else f"{text}, scale={self.scale:g}"


def check_options(embedding: nn.Embedding) -> None:
    """Raise InputError if ``embedding`` uses an option that factors cannot keep."""
    for name, harmless in _REFUSED.items():
        value: Any = getattr(embedding, name)
        if value != harmless:
            raise InputError(
                f"the embedding has {name}={value}, which a factorised table cannot keep; "
                f"set {name}={harmless} first if training does not need it."
            )


def _normal_padding(padding_idx: int | None, num_embeddings: int) -> int | None:
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise InputError(
            f"padding_idx={padding_idx} must be within num_embeddings={num_embeddings}."
        )
    return padding_idx % num_embeddings
