"""Unpack: entropy-coded tensors of a checkpoint, decoded while transformers loads it."""

from __future__ import annotations

from typing import Any, Self

import torch
from transformers.core_model_loading import ConversionOps

from kflats.errors import KflatsError
from kflats.storage.manifest import TableSpec


class Unpack(ConversionOps):
    """Decodes the coefficients of a table.

    transformers logs what a conversion raises and goes on to an error of its own that names no
    cause. The error is kept for :func:`check_unpacked` instead, which raises it.

    Parameters
    ----------
    spec : TableSpec
        The table.

    Attributes
    ----------
    error : KflatsError or None
        Why the tensor could not be decoded.
    """

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.error: KflatsError | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        # transformers works with copies, and the error must be found in the original.
        return self

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],  # noqa: ARG002
        target_patterns: list[str],  # noqa: ARG002
        *,
        full_layer_name: str,
        **_: Any,
    ) -> dict[str, Any]:
        """Return the packed records under the name of the parameter."""
        (found,) = input_dict.values()
        stored = found[0] if isinstance(found, list) else found
        try:
            records = self.spec.coefficients(stored)
        except KflatsError as error:
            self.error = error
            shape: Any = self.spec.shape
            sizes = zip(shape.counts, shape.record_bytes, strict=True)
            size = sum(count * each for count, each in sizes)
            records = torch.zeros(size, dtype=torch.uint8, device=stored.device)
        return {full_layer_name: records}  # the pattern may have a prefix that this model lacks


def is_unpacking(item: Any) -> bool:
    """Return whether a conversion of weights is one of ours."""
    return any(isinstance(each, Unpack) for each in getattr(item, "operations", ()))


def check_unpacked(model: Any) -> None:
    """Raise what has happened while the tensors of a model were decoded.

    Raises
    ------
    CheckpointError
        If a tensor is damaged.
    MissingExtraError
        If constriction is not installed.
    """
    for item in getattr(model, "_weight_conversions", None) or ():
        for each in getattr(item, "operations", ()):
            if isinstance(each, Unpack) and each.error is not None:
                raise each.error
