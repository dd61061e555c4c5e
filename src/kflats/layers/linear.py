"""FactorizedLinear: an output head whose weight is a factorised table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from kflats.layers.embedding import exact_pair
from kflats.layers.stored import StoredTable
from kflats.layers.table import FactorTable

if TYPE_CHECKING:
    from kflats.factors.factorization import Factorization


class TableLinear(StoredTable):
    """A compressed table where the weight of an output head stood.

    Parameters
    ----------
    shape : FactorShape or CodeShape
        ``num_embeddings`` is the number of outputs, ``embedding_dim`` that of inputs.
    bias : bool, default=False
        Whether there is a bias of shape (out_features,).
    device, dtype : optional
        As in :class:`torch.nn.Linear`.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        shape: Any,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, device=device, dtype=dtype)  # type: ignore[call-arg]
        zeros = torch.zeros(shape.num_embeddings, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if zeros is None else nn.Parameter(zeros))

    @property
    def in_features(self) -> int:
        """Columns of the table."""
        size: int = self.shape.embedding_dim
        return size

    @property
    def out_features(self) -> int:
        """Rows of the table."""
        size: int = self.shape.num_embeddings
        return size

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits, shape (*, out_features), of hidden states (*, in_features)."""
        result = self.product(hidden)
        return result if self.bias is None else result + self.bias.to(result.dtype)

    def take_over(self, old: Any) -> None:
        """Use the very bias of the head."""
        self.bias = old.bias

    folds_scale = False

    def to_linear(self, weight: nn.Parameter | None = None) -> nn.Linear:
        """Return the dense head with the same output.

        Builds the dense table, unless another module that shares it gives ``weight``.
        """
        like = self.like
        if weight is None:
            weight = nn.Parameter(self.dense_rows(), requires_grad=like.requires_grad)
        head = nn.Linear(1, 1, bias=False, device=like.device, dtype=like.dtype)
        head.out_features, head.in_features = weight.shape
        head.weight = weight
        head.bias = self.bias  # type: ignore[assignment]  # None is allowed
        return head.train(self.training)

    def extra_repr(self) -> str:
        """Describe the sizes in ``print(model)``."""
        return f"{super().extra_repr()}, bias={self.bias is not None}"


class FactorizedLinear(TableLinear, FactorTable):
    """``hidden @ table.T + bias`` computed in factor space.

    The hidden state is projected on every basis, then multiplied by each row's coefficients:
    ``n * j + k * j * d`` multiply-adds per token instead of ``n * d``, and no dense table. The
    paper factors embeddings only; its section 3.2 read backwards gives this layer.

    Parameters
    ----------
    shape : FactorShape
        ``num_embeddings`` is the number of outputs, ``embedding_dim`` that of inputs.
    bias : bool, default=False
        Whether there is a bias of shape (out_features,).
    device, dtype : optional
        As in :class:`torch.nn.Linear`.

    Attributes
    ----------
    coefficients, bases, means, labels, places, pivots, columns
        See :class:`kflats.layers.FactorTable`; shared with the embedding where the head is tied.
    bias : Parameter of shape (out_features,) or None
        Never factorised.

    Examples
    --------
    >>> import torch
    >>> from kflats import Factorization
    >>> head = torch.nn.Linear(16, 100)
    >>> factors = Factorization.projective(head.weight, n_clusters=2, rank=8)
    >>> layer = FactorizedLinear.from_linear(head, factors)
    >>> hidden = torch.randn(3, 16)
    >>> dense = hidden @ factors.reconstruct().T + head.bias
    >>> torch.allclose(layer(hidden), dense, atol=1e-5)
    True
    """

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        factorization: Factorization,
        *,
        exact_ids: Tensor | None = None,
    ) -> Self:
        """Return a head that replaces ``linear`` and uses its very bias.

        Parameters
        ----------
        linear : torch.nn.Linear
            Gives the bias, whether to train, and the exact rows.
        factorization : Factorization
            Factors of ``linear.weight``, shape (out_features, in_features).
        exact_ids : Tensor of shape (m,), optional
            Outputs whose rows to keep exact.

        Raises
        ------
        InputError
            If the sizes differ.
        """
        exact = exact_pair(linear.weight, factorization, exact_ids)
        like = factorization.coefficients
        shape = cls.shape_of(factorization, exact)
        layer = cls(shape, device=like.device, dtype=like.dtype)
        layer.fill(factorization, exact)
        layer.requires_grad_(linear.weight.requires_grad).train(linear.training)
        layer.take_over(linear)
        return layer
