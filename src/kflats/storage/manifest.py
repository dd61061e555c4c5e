"""The description of factorised layers in a checkpoint: what a skeleton needs before weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from kflats.budget import FactorShape
from kflats.errors import CheckpointError, InputError
from kflats.layers import FactorizedEmbedding

FORMAT_VERSION = 1
FILE_NAMES = {"coefficients": "weight"}
"""Names in the file of the tensors that are called otherwise in the layer."""


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One factorised layer.

    Attributes
    ----------
    shape : FactorShape
        Sizes of the factors.
    padding_idx : int or None
        As in ``nn.Embedding``.
    scale : float
        Factor on the output.
    shares : str or None
        Name of the module whose factors it uses; None if it has its own.
    """

    shape: FactorShape
    padding_idx: int | None
    scale: float
    shares: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "shape": self.shape.to_dict(),
            "padding_idx": self.padding_idx,
            "scale": self.scale,
            "shares": self.shares,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the spec a JSON object describes; unknown and missing fields are refused."""
        known = {"shape", "padding_idx", "scale", "shares"}
        if set(data) != known:
            raise InputError(
                f"a factorised module has the fields {sorted(known)}, got {sorted(data)}: "
                "the file was written by another version of kflats or damaged."
            )
        return cls(**{**data, "shape": FactorShape.from_dict(data["shape"])})

    def empty_layer(self) -> FactorizedEmbedding:
        """Return a layer of these sizes without storage."""
        return FactorizedEmbedding(
            self.shape, padding_idx=self.padding_idx, scale=self.scale, device="meta"
        )


def tensor_shapes(specs: dict[str, LayerSpec]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that the factorised layers have in a file.

    The coefficients have the name of the table they replace, so that a program without kflats
    meets a wrong shape and stops.
    """
    shapes = {}
    for name, spec in specs.items():
        if spec.shares is None:
            for key, tensor in spec.empty_layer().state_dict().items():
                shapes[f"{name}.{FILE_NAMES.get(key, key)}"] = tuple(tensor.shape)
    return shapes


def specs_of(model: nn.Module) -> dict[str, LayerSpec]:
    """Return the specs of all factorised layers of a model by module name, owners first."""
    owners: dict[int, str] = {}
    specs: dict[str, LayerSpec] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactorizedEmbedding):
            owner = owners.setdefault(id(module.coefficients), name)
            specs[name] = LayerSpec(
                shape=module.shape,
                padding_idx=module.padding_idx,
                scale=module.scale,
                shares=None if owner == name else owner,
            )
    return specs


def build_layers(
    specs: dict[str, LayerSpec], fill: Callable[[str, FactorizedEmbedding], None] | None = None
) -> dict[str, FactorizedEmbedding]:
    """Return a layer for every spec; those that share use the factors of their owner.

    ``fill`` is called with name and layer of every owner before its factors are shared.
    """
    layers = {name: spec.empty_layer() for name, spec in specs.items()}
    for name, spec in specs.items():
        if spec.shares is None and fill is not None:
            fill(name, layers[name])
    for name, spec in specs.items():
        if spec.shares is not None:
            layers[name].share_with(layers[spec.shares])
    return layers


def check_version(version: object, where: str) -> None:
    """Raise CheckpointError unless this kflats reads the format version."""
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format_version={version}; this kflats reads {FORMAT_VERSION}: install "
            "the kflats that wrote it, or a newer one."
        )
