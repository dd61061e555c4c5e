"""The methods of transformers that only know dense tables, wrapped.

transformers has no hook for these, and each would fail or write a wrong description:
resizing raises for anything but ``nn.Embedding`` and ``nn.Linear``, ``dequantize`` needs a
quantizer that would in turn forbid training, ``save_pretrained`` writes the config before it looks
at the layers, ``push_to_hub`` writes a card that says nothing, and the config of a tower, such as
that of the text model of CLIP, is read without the description of the whole. A model without
factorised layers goes straight to the original.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from kflats.errors import UnsupportedModelError
from kflats.hf.config import METHOD
from kflats.hf.describe import describe_, is_described
from kflats.hf.names import FileNames
from kflats.layers import FactorTable, StoredTable
from kflats.layers.resize import new_rows, resize_
from kflats.storage.manifest import factor_layers, owner_names
from kflats.storage.seal import seal

_MARK = "_kflats_wrapped"


def install() -> None:
    """Wrap the methods once."""
    for name, wrapper in _WRAPPERS.items():
        original = getattr(PreTrainedModel, name)
        if not hasattr(original, _MARK):
            wrapped = wrapper(original)
            setattr(wrapped, _MARK, True)
            setattr(PreTrainedModel, name, wrapped)
    found = PreTrainedConfig.__dict__["get_config_dict"].__func__
    if not hasattr(found, _MARK):
        wrapped = _get_config_dict(found)
        setattr(wrapped, _MARK, True)
        PreTrainedConfig.get_config_dict = classmethod(wrapped)


def _get_config_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def get_config_dict(cls: Any, *args: Any, **kwargs: Any) -> Any:
        config, rest = original(cls, *args, **kwargs)
        block = config.get("quantization_config")
        is_ours = isinstance(block, dict) and block.get("quant_method") == METHOD
        # The whole has another type than the part whose config is asked for.
        if is_ours and cls.model_type and cls.model_type != config.get("model_type"):
            for part in config.values():
                if isinstance(part, dict) and part.get("model_type") == cls.model_type:
                    part.setdefault("quantization_config", block)
        return config, rest

    return get_config_dict


def _save_pretrained(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_described(self) or factor_layers(self):
            describe_(self)
        result = original(self, *args, **kwargs)
        if is_described(self) and kwargs.get("is_main_process", True):
            folder = Path(args[0] if args else kwargs["save_directory"])
            seal(folder, lambda manifest, found: FileNames(self, found).locate(manifest))
        return result

    return save_pretrained


def _push_to_hub(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def push_to_hub(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not factor_layers(self):
            return original(self, *args, **kwargs)
        from kflats.hub import push_to_hub as push

        return push(self, *args, **kwargs)

    return push_to_hub


def _dequantize(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def dequantize(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not factor_layers(self):
            return original(self, *args, **kwargs)
        from kflats.restore import to_dense_

        return to_dense_(self)

    return dequantize


def _get_resized_embeddings(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def get_resized_embeddings(
        self: Any,
        old_embeddings: Any,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> Any:
        if not isinstance(old_embeddings, StoredTable):
            return original(self, old_embeddings, new_num_tokens, pad_to_multiple_of, mean_resizing)
        size = new_num_tokens or old_embeddings.shape.num_embeddings
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        return _resized(self, old_embeddings, size, mean_resizing)

    return get_resized_embeddings


def _get_resized_lm_head(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def get_resized_lm_head(
        self: Any,
        old_lm_head: Any,
        new_num_tokens: int | None = None,
        transposed: bool = False,
        mean_resizing: bool = True,
    ) -> Any:
        if not isinstance(old_lm_head, StoredTable):
            return original(self, old_lm_head, new_num_tokens, transposed, mean_resizing)
        size = new_num_tokens or old_lm_head.shape.num_embeddings
        return _resized(self, old_lm_head, size, mean_resizing)

    return get_resized_lm_head


def _resized(model: Any, layer: StoredTable, size: int, mean_resizing: bool) -> StoredTable:
    """Resize the table of a layer together with all modules of the model that read it."""
    added = size - layer.shape.num_embeddings
    if not added:
        return layer
    if not isinstance(layer, FactorTable):
        raise UnsupportedModelError(
            f"a table in packed codes has {layer.shape.num_embeddings} rows and cannot be resized "
            f"to {size}: call kflats.to_dense_(model), resize, and compress again."
        )
    layers = factor_layers(model)
    owner = layers[owner_names(layers)[layer.table_id]]
    others = (each for each in layers.values() if each.table_id == layer.table_id)
    readers = [e for e in dict.fromkeys([owner, *others]) if isinstance(e, FactorTable)]
    init = None if mean_resizing else model._init_weights
    resize_(readers, size, new_rows(layer, added, init) if added > 0 else None)
    describe_(model)
    return layer


_WRAPPERS = {
    "save_pretrained": _save_pretrained,
    "push_to_hub": _push_to_hub,
    "dequantize": _dequantize,
    "_get_resized_embeddings": _get_resized_embeddings,
    "_get_resized_lm_head": _get_resized_lm_head,
}
