"""What a fit has found, for rows of any magnitude."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from kflats.clustering import arrays
from kflats.clustering.arrays import Array
from kflats.clustering.flats import Flats
from kflats.clustering.lloyd import assign
from kflats.clustering.losses import Loss
from kflats.clustering.rows import Rows
from kflats.clustering.runs import Run
from kflats.units import Unit, largest_magnitude


@dataclass(frozen=True)
class Fitted:
    """Flats, and the unit of the rows they were fitted to.

    Attributes
    ----------
    flats, loss
        Of the best run.
    shift : Tensor of shape (n_features,) or None
        See :class:`Rows`.
    unit : Unit
        What the rows were divided by.
    """

    flats: Flats
    loss: Loss
    shift: Tensor | None
    unit: Unit

    def labels(self, table: Tensor) -> Tensor:
        """Return the best flat of every row."""
        fitted = self._near(table)
        return assign(fitted._rows(table, None), fitted.flats, loss=fitted.loss)[0]

    def inertia(self, table: Tensor, sample_weight: Array | None) -> float:
        """Return the (weighted) loss of all rows, with the best flat for each."""
        fitted = self._near(table)
        rows = fitted._rows(table, sample_weight)
        labels = assign(rows, fitted.flats, loss=fitted.loss)[0]
        run = Run.of(rows, labels, fitted.flats, [], fitted.loss)
        return fitted.unit.times(run.inertia, fitted.loss.degree)

    def _rows(self, table: Tensor, sample_weight: Array | None) -> Rows:
        dtype, device = self.flats.eigenvectors.dtype, self.flats.eigenvectors.device
        table, weights = self.unit.divide(table).to(device), None
        if sample_weight is not None:
            weights = arrays.check_weights(sample_weight, len(table), device, dtype)
        return Rows(table, weights, dtype, self.shift)

    def _near(self, table: Tensor) -> Fitted:
        """Return the same flats in a unit in which the squares of these rows are safe."""
        unit = Unit.near(largest_magnitude(table), self.unit.exponent)
        change = Unit(unit.exponent - self.unit.exponent)
        is_linear = self.flats.means is None and self.flats.price == 0 and self.loss.is_squared
        if change.is_one or (change.exponent < 0 and not is_linear):
            return self  # rows far smaller than means, prices or scales do not matter beside them
        flats, loss, shift = self.flats, self.loss, self.shift
        means = None if flats.means is None else change.divide(flats.means)
        flats = replace(flats, means=means, price=change.times(flats.price, -loss.degree))
        loss = loss if loss.scale is None else replace(loss, scale=change.bounded(loss.scale))
        return Fitted(flats, loss, None if shift is None else change.divide(shift), unit)
