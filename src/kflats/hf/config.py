"""KFlatsConfig: the ``quantization_config`` of transformers for factorised tables."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from kflats.config import CompressionConfig
from kflats.errors import InputError
from kflats.storage.manifest import FORMAT_VERSION, Manifest, check_version

METHOD = "kflats"


class KFlatsConfig(QuantizationConfigMixin):
    """Compress while loading, or describe a compressed checkpoint.

    With settings it goes into ``from_pretrained(dense, quantization_config=...)``, which then
    returns the compressed model. Without, it is the block in the ``config.json`` of a compressed
    checkpoint; kflats writes that itself.

    Parameters
    ----------
    layers : dict, optional
        The :class:`kflats.storage.manifest.Manifest` of a compressed model as a JSON object.
    format_version : int
        Version of ``layers``; one that this kflats does not read is refused.
    quant_method : str
        Always 'kflats'.
    **settings
        Those of :class:`kflats.CompressionConfig`, for instance ``compression=0.4``.

    Raises
    ------
    InputError
        If a setting is unknown or out of range.
    CheckpointError
        If the format version is not the one of this kflats.

    Examples
    --------
    >>> KFlatsConfig(compression=0.4, n_clusters=5).settings.budget
    Budget(compression=0.4, num_bytes=None, rank=None)
    """

    def __init__(
        self,
        layers: dict[str, Any] | None = None,
        format_version: int = FORMAT_VERSION,
        quant_method: str = METHOD,
        **settings: Any,
    ) -> None:
        check_version(format_version, "the quantization_config of config.json")
        known = {field.name for field in fields(CompressionConfig)}
        if set(settings) - known or (layers is not None and settings):
            raise InputError(
                f"quantization_config has the unknown fields {sorted(settings)}; format version "
                f"{FORMAT_VERSION} has layers, format_version and quant_method, or the settings "
                f"of CompressionConfig: {sorted(known)}."
            )
        self.quant_method = quant_method
        self.format_version = format_version
        self.manifest = None if layers is None else Manifest.from_dict(layers)
        self.settings = CompressionConfig(**settings) if settings else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object; row weights of the settings are left out."""
        data: dict[str, Any] = {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
        }
        if self.manifest is not None:
            return {**data, "layers": self.manifest.to_dict()}
        if self.settings is not None:
            for field in fields(self.settings):
                value = getattr(self.settings, field.name)
                if field.name != "sample_weight" and value is not None:
                    data[field.name] = list(value) if isinstance(value, tuple) else value
        return data

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the same as :meth:`to_dict`: nothing in it is a default."""
        return self.to_dict()
