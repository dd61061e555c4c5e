"""KFlatsConfig: the ``quantization_config`` of transformers for factorised tables."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from kflats.config import CompressionConfig
from kflats.errors import InputError
from kflats.storage.manifest import FORMAT_VERSION, Manifest, manifest_of_block

METHOD = "kflats"
_WHERE = "the quantization_config of config.json"


class KFlatsConfig(QuantizationConfigMixin):
    """Compress while loading, or describe a compressed checkpoint.

    With settings it goes into ``from_pretrained(dense, quantization_config=...)``, which then
    returns the compressed model. Without, it is the block in the ``config.json`` of a compressed
    checkpoint; kflats writes that itself.

    Parameters
    ----------
    layers : dict, optional
        The :class:`kflats.storage.manifest.Manifest` of a compressed model as a JSON object.
    format_version : int, optional
        Version of ``layers``, needed with it; one that this kflats does not read is refused.
    quant_method : str
        Always 'kflats'.
    **settings
        Those of :class:`kflats.CompressionConfig`, for instance ``compression=0.4``.

    Raises
    ------
    InputError
        If a setting is unknown or out of range.
    CheckpointError
        If ``layers`` is damaged or of a format version that this kflats does not read.

    Examples
    --------
    >>> KFlatsConfig(compression=0.4, n_clusters=5).settings.n_clusters
    5
    """

    def __init__(
        self,
        layers: dict[str, Any] | None = None,
        format_version: int | None = None,
        quant_method: str = METHOD,
        **settings: Any,
    ) -> None:
        known = {field.name for field in fields(CompressionConfig)}
        self.quant_method = quant_method
        self.format_version = FORMAT_VERSION
        self.manifest: Manifest | None = None
        self.settings: CompressionConfig | None = None
        if layers is not None or format_version is not None:
            block = {"quant_method": quant_method, "layers": layers, **settings}
            self.manifest = manifest_of_block(block | {"format_version": format_version}, _WHERE)
        elif set(settings) - known:
            raise InputError(
                f"KFlatsConfig has no settings {sorted(set(settings) - known)}; it has those of "
                f"CompressionConfig: {sorted(known)}."
            )
        elif settings:
            self.settings = CompressionConfig(**settings)

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
