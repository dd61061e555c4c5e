"""Buffers of a skeleton without storage that no file holds, such as the position ids of BERT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from kflats.errors import CheckpointError
from kflats.layers import StoredTable
from kflats.tables import transformers_roots


def check_buffers(model: nn.Module) -> None:
    """Raise if a skeleton has buffers without values that neither a file nor the model gives.

    Raises
    ------
    CheckpointError
        Naming the buffers. Those of transformers models are computed by these.
    """
    known = {id(each) for root in transformers_roots(model) for each in root.modules()}
    unknown = [
        name for name, module, _ in _unsaved(model) if id(module) not in known
    ]  # transformers fills its own
    if unknown:
        raise CheckpointError(
            f"the buffers {unknown} of {type(model).__name__} are on the meta device and in no "
            "file, since they are not persistent: build the model on the device where it is to "
            'run, or only its embeddings under torch.device("meta").'
        )


def fill_buffers(model: nn.Module) -> None:
    """Let the transformers models inside compute their buffers that no file holds, in place."""
    for root in transformers_roots(model):
        missing = list(_unsaved(root))
        if not missing:
            continue
        device = next((p.device for p in root.parameters() if not p.is_meta), torch.device("cpu"))
        for name, module, buffer in missing:
            leaf = name.rpartition(".")[2]
            module.register_buffer(leaf, torch.empty_like(buffer, device=device), persistent=False)
        _initialize(root)


def _initialize(model: Any) -> None:
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # what was read must stay
    layers = [each for each in model.modules() if isinstance(each, StoredTable)]
    for layer in layers:
        layer.is_loading = True
    try:
        model.initialize_weights()
    finally:
        for layer in layers:
            layer.is_loading = False


def _unsaved(model: nn.Module) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Yield name, module and buffer where there is no storage and no file would hold it."""
    for prefix, module in model.named_modules():
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_meta and not isinstance(module, StoredTable):
                yield f"{prefix}.{name}" if prefix else name, module, buffer
