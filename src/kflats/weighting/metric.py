"""A metric on the columns of a table: which directions the network looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kflats.errors import InputError
from kflats.linalg import working_dtype


@dataclass(frozen=True, eq=False)
class FeatureMetric:
    """Measures the error e of a row as ``e @ matrix @ e`` instead of ``e @ e``.

    Attributes
    ----------
    factor : Tensor of shape (d, d), float64
        ``matrix = factor @ factor.T``: rows times it are compared by ordinary distance.
    inverse : Tensor of shape (d, d), float64
        The way back.

    Examples
    --------
    >>> import torch
    >>> metric = FeatureMetric.of(torch.diag(torch.tensor([4.0, 1.0])), ridge=0.0)
    >>> metric.factor.diagonal().square().tolist()  # scaled to a mean of 1
    [1.6, 0.4]
    """

    factor: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, matrix: Tensor, *, ridge: float = 0.1) -> Self:
        """Return the metric of a symmetric, positive semi-definite matrix.

        Parameters
        ----------
        matrix : Tensor of shape (d, d)
            For instance E[h hT] of the inputs of an output head; its scale does not matter.
        ridge : float, default=0.1
            Share of the identity that is added, in units of the mean diagonal: directions that
            the sample did not show must not become free.

        Raises
        ------
        InputError
            If the matrix is not square, finite, symmetric and positive semi-definite.
        """
        wide = matrix.detach().double()
        if wide.ndim != 2 or wide.shape[0] != wide.shape[1] or not bool(wide.isfinite().all()):
            raise InputError(
                f"a feature metric is a finite matrix of shape (d, d), got {tuple(wide.shape)}."
            )
        mean = float(wide.diagonal().mean())
        if not torch.allclose(wide, wide.T, rtol=1e-4, atol=1e-6 * abs(mean)) or mean <= 0:
            raise InputError("a feature metric is symmetric with a positive diagonal.")
        unit = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
        scaled = (wide + wide.T) / (2 * mean)
        factor, failed = torch.linalg.cholesky_ex((scaled + ridge * unit) / (1 + ridge))
        if int(failed):
            raise InputError(
                "a feature metric is positive semi-definite; this matrix is not, or needs a "
                f"larger ridge than {ridge}."
            )
        return cls(factor, torch.linalg.solve_triangular(factor, unit, upper=False))

    def apply(self, table: Tensor) -> Tensor:
        """Return rows whose ordinary distances are those of the metric, in float32 at least.

        Raises
        ------
        InputError
            If the table has another number of columns.
        """
        if table.shape[1] != len(self.factor):
            raise InputError(
                f"the metric is for {len(self.factor)} columns, the table has {table.shape[1]}."
            )
        wide = working_dtype(table.dtype)
        return table.to(wide) @ self.factor.to(table.device, wide)

    def undo(self, rows: Tensor) -> Tensor:
        """Return bases or means, found on applied rows, for the rows themselves."""
        return rows @ self.inverse.to(rows)

    def transposed(self, bases: Tensor) -> Tensor:
        """Return what gives a row its coefficients in bases found on applied rows."""
        return bases @ self.factor.T.to(bases)
