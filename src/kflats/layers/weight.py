"""What code that reads ``embedding.weight`` gets from a factorised layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from kflats.errors import UnsupportedModelError


class TableView:
    """Stands for the dense table where only its kind is read, not its values.

    Models look at ``embedding.weight.dtype``, ``.device`` or ``.shape``; those answers are free.
    Anything that needs values raises, because the dense table does not exist.

    Parameters
    ----------
    coefficients : torch.Tensor of shape (num_embeddings, rank)
        Gives dtype, device and ``requires_grad``.
    embedding_dim : int
        Columns of the table.
    """

    _is_hf_initialized = True  # transformers must not draw random values for it

    def __init__(self, coefficients: torch.Tensor, embedding_dim: int) -> None:
        self.dtype = coefficients.dtype
        self.device = coefficients.device
        self.requires_grad = coefficients.requires_grad
        self.shape = torch.Size((coefficients.shape[0], embedding_dim))
        self.ndim = 2

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Return the shape of the table, or one size."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Return 2."""
        return self.ndim

    def numel(self) -> int:
        """Return the number of entries of the dense table."""
        return self.shape.numel()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"TableView(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f".{name}")

    def __getitem__(self, index: object) -> NoReturn:
        self._refuse("[...]")

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> NoReturn:
        cls._refuse(f" in torch.{getattr(func, '__name__', func)}")

    @staticmethod
    def _refuse(what: str) -> NoReturn:
        raise UnsupportedModelError(
            f"the values of a factorised table were read (weight{what}), but it is not stored as "
            "a matrix. Call the layer with ids, or build the dense table with "
            "layer.to_embedding().weight."
        )
