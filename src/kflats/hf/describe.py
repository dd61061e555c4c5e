"""Keeping what transformers knows about a model in step with its factorised layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers.core_model_loading import WeightRenaming

from kflats.errors import CheckpointError, InputError
from kflats.hf.config import METHOD, KFlatsConfig
from kflats.hf.names import renamings
from kflats.hf.unpack import is_unpacking
from kflats.layers import StoredTable
from kflats.layers.coded import CodedTable
from kflats.layers.stored import FILE_NAMES
from kflats.storage.manifest import FORMAT_VERSION, Manifest, factor_layers, owner_names

_DENSE_TIES = "_kflats_dense_ties"


def describe_(model: Any) -> None:
    """Write the factorised layers of a transformers model into its config, in place.

    Needed after layers were exchanged by hand; ``compress_`` and ``save_pretrained`` do it.
    """
    share_tensors(model)
    manifest = Manifest.of(model)
    if not manifest.modules:
        forget_(model)
        return
    model.config.quantization_config = KFlatsConfig(manifest.to_dict(), FORMAT_VERSION)
    declare_ties(model)
    model._weight_conversions = [*_foreign_conversions(model), *renamings(manifest)]


def forget_(model: Any) -> None:
    """Take what kflats wrote out of the config of a model that is dense again, in place."""
    if is_described(model):
        del model.config.quantization_config
        model._weight_conversions = _foreign_conversions(model)
    for _, part in _pretrained_parts(model):
        if _DENSE_TIES in vars(part):
            part._tied_weights_keys, part.all_tied_weights_keys = getattr(part, _DENSE_TIES)
            delattr(part, _DENSE_TIES)
            _drop_untied(part)


def is_described(model: Any) -> bool:
    """Return whether the config of a model says that it has factorised tables."""
    block = getattr(model.config, "quantization_config", None)
    if isinstance(block, dict):
        return block.get("quant_method") == METHOD
    return isinstance(block, KFlatsConfig)


def declare_ties(model: Any) -> None:
    """Declare shared factors as tied weights, instead of the dense tables they replace."""
    for prefix, part in _pretrained_parts(model):
        layers = factor_layers(part)
        if not layers:
            continue
        dense = (part._tied_weights_keys or {}, getattr(part, "all_tied_weights_keys", {}) or {})
        if _DENSE_TIES not in vars(part):
            setattr(part, _DENSE_TIES, (part._tied_weights_keys, dict(dense[1])))
        ties = _ties(layers)
        part._tied_weights_keys = _living(part, dense[0]) | ties
        if prefix == "" or hasattr(part, "all_tied_weights_keys"):
            part.all_tied_weights_keys = _living(part, dense[1]) | ties


def index_tables(model: nn.Module) -> None:
    """Find the places of rows and columns again after the labels and pivots were read.

    Packed codes are frozen again: transformers lets every float tensor that it reads train.
    """
    layers = factor_layers(model)
    for layer in layers.values():
        layer.is_loading = False
        for owner in layer._owner:
            layer.share_with(owner)  # what was read has replaced its buffers
    for name in owner_names(layers).values():
        layer = layers[name]
        if isinstance(layer, CodedTable):
            layer.freeze_()
        try:
            layer.index_()
        except InputError as error:
            raise CheckpointError(f"{name} is damaged: {error}") from error
    share_tensors(model)


def share_tensors(model: nn.Module) -> None:
    """Make modules with the same coefficients share all else of their table too."""
    layers = factor_layers(model)
    owners = owner_names(layers)
    for name in owners.values():
        layers[name].own_()  # the former owner may have been replaced
    for layer in layers.values():
        owner = layers[owners[layer.table_id]]
        if owner is not layer:
            layer.share_with(owner)


def _ties(layers: dict[str, StoredTable]) -> dict[str, str]:
    """Return the shared tensors; the labels too where one module has several names."""
    owners = owner_names(layers)
    ties: dict[str, str] = {}
    for name, layer in layers.items():
        owner = owners[layer.table_id]
        keys: Iterable[str] = FILE_NAMES if layers[owner] is layer else layer.FACTORS
        if owner != name:
            present = [key for key in keys if getattr(layer, key, None) is not None]
            ties |= {f"{name}.{key}": f"{owner}.{key}" for key in present}
    return ties


def _living(part: nn.Module, ties: dict[str, str]) -> dict[str, str]:
    """Return the ties whose ends are parameters or modules still; patterns are kept as they are."""
    known = {name for name, _ in part.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in part.named_modules(remove_duplicate=False)}
    layers = factor_layers(part)
    own = layers.keys() | {f"{name}.{key}" for name in layers for key in FILE_NAMES}

    def lives(name: str) -> bool:
        plain = name.replace(".", "").replace("_", "").isalnum()
        return name not in own and (name in known or not plain)

    return {key: value for key, value in ties.items() if lives(key) and lives(value)}


def _drop_untied(part: Any) -> None:
    """Drop ties of parameters that are different tensors, as in T5 with a head of its own."""
    tensors = dict(part.named_parameters(remove_duplicate=False))
    for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
        ties = getattr(part, attribute) or {}
        kept = {k: v for k, v in ties.items() if tensors.get(k) is tensors.get(v)}
        if kept != ties:
            setattr(part, attribute, kept)


def _foreign_conversions(model: Any) -> list[Any]:
    """Return the conversions of weights that are not ours."""
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        # What save_pretrained itself falls back to for a model that was not loaded.
        found = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [item for item in found if type(item).__name__ != "PrefixChange"]
    ends = tuple(f".{key}" for key in FILE_NAMES)
    return [item for item in conversions if not _is_ours(item, ends)]


def _is_ours(item: Any, ends: tuple[str, ...]) -> bool:
    targets = item.target_patterns
    names = [targets] if isinstance(targets, str) else targets
    ours = isinstance(item, WeightRenaming) and all(name.endswith(ends) for name in names)
    return ours or is_unpacking(item)


def _pretrained_parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from transformers import PreTrainedModel

    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            yield name, module
