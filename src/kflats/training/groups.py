"""Which parameters train while a model is healed, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kflats.layers.trainable import TrainableTable
from kflats.storage.manifest import factor_layers

_OF_ROWS, _OF_FACTORS = 0.3, 0.1
"""Numbers of single rows move slower than shared ones: rounding makes their gradients rough."""


@dataclass(frozen=True)
class Groups:
    """The parameters that train.

    Attributes
    ----------
    codes : list of Parameter
        Of unpacked tables, shared by rows; their numbers are about 1.
    latents : list of Parameter
        Of unpacked tables, of single rows; about 1 too.
    factors : list of Parameter
        Of tables in factors, of any size.
    body : list of Parameter
        Everything else.
    """

    codes: list[nn.Parameter]
    latents: list[nn.Parameter]
    factors: list[nn.Parameter]
    body: list[nn.Parameter]

    @property
    def kept(self) -> list[nn.Parameter]:
        """Those that stay in the model."""
        return [*self.factors, *self.body]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them."""
        return [*self.codes, *self.latents, *self.factors, *self.body]

    def for_optimizer(self, rate: float, body_rate: float) -> list[dict[str, Any]]:
        """Return parameter groups with their learning rates."""
        rated: list[tuple[list[nn.Parameter], float]] = [
            (self.codes, rate),
            (self.latents, _OF_ROWS * rate),
            (self.body, body_rate),
        ]
        rated += [([each], _OF_FACTORS * rate * _size(each)) for each in self.factors]
        return [{"params": p, "lr": lr, "weight_decay": 0.0} for p, lr in rated if p]


def _size(parameter: Tensor) -> float:
    """Return the root mean square of the numbers, 1 if all are zero."""
    return float(parameter.detach().float().square().mean().sqrt()) or 1.0


def parameter_groups(model: nn.Module, parts: str) -> Groups:
    """Return what trains of a model with unpacked tables or factors; see :func:`heal_`."""
    codes: dict[int, nn.Parameter] = {}
    latents: dict[int, nn.Parameter] = {}
    factors: dict[int, nn.Parameter] = {}
    fixed: set[int] = set()
    for layer in factor_layers(model).values():
        unpacked = isinstance(layer, TrainableTable)
        for name in layer.FACTORS:
            each = getattr(layer, name)
            if each is None or not each.numel() or (unpacked and name == "exact"):
                fixed.add(id(each))
            else:
                of_rows = latents if name in ("latent", "log_gains") else codes
                (of_rows if unpacked else factors)[id(each)] = each
    known = codes.keys() | latents.keys() | factors.keys() | fixed
    others = [each for each in model.parameters() if id(each) not in known]
    return Groups(
        list(codes.values()),
        list(latents.values()),
        list(factors.values()),
        others if parts == "all" else [],
    )
