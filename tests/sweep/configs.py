"""The smallest config of a class that still has everything in it."""

from __future__ import annotations

import inspect
from typing import Any

from tests.sweep.overrides import MODELS, OVERRIDES
from tests.sweep.rules import HEADS, TokenIds, image_sizes, is_token, sized


def tiny_config(config_class: Any, model_name: str = "") -> Any:
    """Return a tiny config of a class; ``model_name`` is the model that it is for."""
    return _tiny(config_class, {}, TokenIds(), MODELS.get(model_name, {}))


def _tiny(
    config_class: Any, given: dict[str, Any], tokens: TokenIds, forced: dict[str, Any]
) -> Any:
    fields = {**_defaults(config_class), **given}
    chosen = {key: _value(key, value, tokens) for key, value in fields.items()}
    if "kv_lora_rank" in chosen and "num_key_value_heads" in fields:
        chosen["num_key_value_heads"] = HEADS  # latent attention has no groups
    chosen |= {key: value for key, value in image_sizes(fields).items() if key in fields}
    for key, spec in _parts(config_class).items():
        if spec.optional and fields.get(key) is None:
            continue
        chosen[key] = _part(spec, tokens)
    kind = config_class.model_type or config_class.__name__
    own = {**OVERRIDES.get(kind, {}), **OVERRIDES.get(config_class.__name__, {}), **forced}
    for key, value in own.items():
        old = chosen.get(key)
        if isinstance(value, dict) and hasattr(old, "to_dict"):
            value = _tiny(type(old), {}, tokens, {**_of(type(old)), **value})
        chosen[key] = value
    chosen = {key: value for key, value in chosen.items() if value is not inspect.Parameter.empty}
    return config_class(**chosen)


def _of(config_class: Any) -> dict[str, Any]:
    return OVERRIDES.get(config_class.model_type, {})


def _part(spec: Any, tokens: TokenIds) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found = spec.config_class
    if found is AutoConfig:
        found = CONFIG_MAPPING[spec.model_type]
    return _tiny(found, dict(spec.init_kwargs), tokens, {})


def _parts(config_class: Any) -> dict[str, Any]:
    return dict(config_class.sub_configs_defaults or {})


def _defaults(config_class: Any) -> dict[str, Any]:
    """Return the parameters of a config class whose default is a number to shrink."""
    parameters = inspect.signature(config_class.__init__).parameters
    found = {name: each.default for name, each in parameters.items()}
    return {name: value for name, value in found.items() if type(value) is int or _ids(name, value)}


def _ids(name: str, value: Any) -> bool:
    return is_token(name) and isinstance(value, list | tuple) and bool(value)


def _value(name: str, value: Any, tokens: TokenIds) -> Any:
    if type(value) is int:
        shrunk = sized(name, value)
        return tokens.of(name, shrunk)
    if _ids(name, value):
        return [tokens.of(name, each) if type(each) is int else each for each in value]
    return value
