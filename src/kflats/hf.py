"""The transformers plug-in: factorised tables in ordinary checkpoints.

:func:`register` makes ``quant_method: kflats`` known to transformers. From then on
``from_pretrained`` puts :class:`FactorizedEmbedding` layers into the model skeleton before any
weight is read, so a dense table never exists, and ``save_pretrained`` writes the factors.

In the file the coefficients have the name of the table they replace, ``<module>.weight``. Plain
transformers, which does not know ``kflats``, then meets a wrong shape and stops, instead of going
on with a random table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kflats.errors import CheckpointError, InputError
from kflats.layers import FactorizedEmbedding, replace_module
from kflats.storage.manifest import FORMAT_VERSION, LayerSpec, build_layers, check_version, specs_of

METHOD = "kflats"


class KFlatsConfig(QuantizationConfigMixin):
    """The ``quantization_config`` block of a checkpoint with factorised tables.

    Parameters
    ----------
    modules : dict
        For every factorised module name its :class:`LayerSpec` as a JSON object.
    format_version : int
        Version of this block; a newer one is refused.
    """

    def __init__(
        self,
        modules: dict[str, dict[str, Any]] | None = None,
        format_version: int = FORMAT_VERSION,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        check_version(format_version, "config.json")
        if unknown:
            raise InputError(
                f"quantization_config has the unknown fields {sorted(unknown)}; format version "
                f"{FORMAT_VERSION} has modules, format_version and quant_method."
            )
        self.quant_method = quant_method
        self.format_version = format_version
        self.modules = modules or {}
        for spec in self.modules.values():
            LayerSpec.from_dict(spec)


class KFlatsQuantizer(HfQuantizer):
    """Swaps factorised layers into a model skeleton; transformers calls it while loading."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:  # noqa: ARG002
        insert_layers(model, self.quantization_config.modules)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:  # noqa: ARG002
        _share_buffers(model)
        # The factors train, cast and save like any parameters, and transformers restricts what it
        # believes to be quantised (Trainer, .half(), save_pretrained(state_dict=...)).
        model.is_quantized = False  # type: ignore[assignment]
        for owner, name in (
            (model, "hf_quantizer"),
            (model, "quantization_method"),
            (model.config, "_is_quantized"),
        ):
            if name in vars(owner):
                delattr(owner, name)
        return model

    def get_weight_conversions(self) -> list[WeightRenaming]:
        """Return the renamings from file names to parameter names."""
        return _renamings(self.quantization_config.modules)

    def is_serializable(self) -> bool:
        """Factors are saved like any parameters."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Factors train."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Factors train."""
        return True


def register() -> None:
    """Make transformers load and save checkpoints with factorised tables; may be repeated."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(KFlatsConfig)
        register_quantizer(METHOD)(KFlatsQuantizer)


def describe_(model: Any) -> None:
    """Write the factorised layers of a transformers model into its config, in place."""
    register()
    specs = specs_of(model)
    model.config.quantization_config = KFlatsConfig(
        {name: spec.to_dict() for name, spec in specs.items()}
    )
    _declare_ties(model, specs)
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        # What save_pretrained itself falls back to for a model that was not loaded.
        found = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [item for item in found if type(item).__name__ != "PrefixChange"]
    known = {str(item.target_patterns) for item in conversions}
    fresh = [
        item
        for item in _renamings(model.config.quantization_config.modules)
        if str(item.target_patterns) not in known
    ]
    model._weight_conversions = [*conversions, *fresh]


def insert_layers(model: Any, modules: dict[str, dict[str, Any]]) -> None:
    """Replace the named embeddings of a skeleton by empty factorised layers, in place.

    Raises
    ------
    CheckpointError
        If the model has no embedding of that name.
    """
    specs = {}
    for name, data in modules.items():
        spec = LayerSpec.from_dict(data)
        owner = None if spec.shares is None else _resolve(model, spec.shares)
        specs[_resolve(model, name)] = replace(spec, shares=owner)
    layers = build_layers(specs)
    for name, layer in layers.items():
        replace_module(model, name, layer)
    _declare_ties(model, specs)


def _resolve(model: Any, name: str) -> str:
    """Return the name in this model: a checkpoint of BertModel also loads as BertForX."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        try:
            module = model.get_submodule(candidate)
        except AttributeError:
            continue
        if isinstance(module, nn.Embedding | FactorizedEmbedding):
            return candidate
    raise CheckpointError(
        f"the checkpoint has a factorised table {name!r}, but {type(model).__name__} has no "
        "embedding there: load it with the class it was saved from (see architectures in "
        "config.json)."
    )


def _renamings(modules: dict[str, dict[str, Any]]) -> list[WeightRenaming]:
    return [
        WeightRenaming(f"{name}.weight", f"{name}.coefficients")
        for name, spec in modules.items()
        if spec["shares"] is None
    ]


def _declare_ties(model: Any, specs: dict[str, LayerSpec]) -> None:
    """Declare shared factors as tied weights, instead of the dense tables they replace."""
    stale = {f"{name}.weight" for name in specs}
    ties = {
        f"{name}.{key}": f"{_resolve(model, spec.shares)}.{key}"
        for name, spec in specs.items()
        if spec.shares is not None
        for key, _ in model.get_submodule(name).named_parameters(recurse=False)
    }
    for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
        old = getattr(model, attribute, None) or {}
        kept = {key: value for key, value in old.items() if not {key, value} & stale}
        setattr(model, attribute, kept | ties)


def _share_buffers(model: nn.Module) -> None:
    """Give layers that share parameters the same buffers too."""
    first: dict[int, FactorizedEmbedding] = {}
    for layer in model.modules():
        if isinstance(layer, FactorizedEmbedding):
            owner = first.setdefault(id(layer.coefficients), layer)
            if owner is not layer:
                layer.share_with(owner)
