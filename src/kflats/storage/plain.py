"""Plain modules on disk: ``model.safetensors`` and ``kflats.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kflats.errors import CheckpointError
from kflats.layers import FactorizedEmbedding, replace_module
from kflats.storage.manifest import FILE_NAMES, FORMAT_VERSION, LayerSpec, build_layers, specs_of

MANIFEST = "kflats.json"
WEIGHTS = "model.safetensors"


def write_plain(model: nn.Module, folder: Path) -> None:
    """Write the tensors, each once, and the description of the factorised layers."""
    specs = specs_of(model)
    tensors, aliases = _distinct(model.state_dict(), specs)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    description = {
        "format_version": FORMAT_VERSION,
        "modules": {name: spec.to_dict() for name, spec in specs.items()},
        "aliases": aliases,
    }
    text = json.dumps(description, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_plain(folder: Path, specs: dict[str, LayerSpec], model: nn.Module) -> nn.Module:
    """Put factorised layers and tensors into the dense ``model``, in place.

    Raises
    ------
    CheckpointError
        If the model and the file do not have the same modules and tensors. The model is
        unchanged then.
    """
    description = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)
    tensors |= {name: tensors[kept] for name, kept in description["aliases"].items()}

    def fill(name: str, layer: FactorizedEmbedding) -> None:
        names = {key: f"{name}.{FILE_NAMES.get(key, key)}" for key in layer.state_dict()}
        layer.load_state_dict({key: tensors[file] for key, file in names.items()}, assign=True)

    layers = build_layers(specs, fill)
    rest = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] not in layers}
    _check_same(folder, model, layers, rest)
    for name, layer in layers.items():
        replace_module(model, name, layer)
    on_meta = any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    model.load_state_dict(rest, strict=False, assign=on_meta)
    return model


def _distinct(
    state: dict[str, Any], specs: dict[str, LayerSpec]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by file name, and for every repeated one the name that is kept."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for key, tensor in state.items():
        name, _, leaf = key.rpartition(".")
        stored = f"{name}.{FILE_NAMES.get(leaf, leaf)}" if name in specs else key
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and place in seen:
            aliases[stored] = seen[place]
        else:
            seen[place] = stored
            tensors[stored] = tensor.contiguous()
    return tensors, aliases


def _check_same(
    folder: Path,
    model: nn.Module,
    layers: dict[str, FactorizedEmbedding],
    rest: dict[str, Tensor],
) -> None:
    for name, layer in layers.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = nn.Identity()
        shape = tuple(module.weight.shape) if isinstance(module, nn.Embedding) else None
        if shape != tuple(layer.weight.shape):
            raise CheckpointError(
                f"{folder} has a factorised table {name!r} of shape {tuple(layer.weight.shape)}, "
                f"{type(model).__name__} has {shape or 'no embedding'} there: pass the model it "
                "was made from."
            )
    expected = {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if key.rpartition(".")[0] not in layers
    }
    found = {key: tuple(value.shape) for key, value in rest.items()}
    different = sorted(
        key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)
    )
    if different:
        key = different[0]
        raise CheckpointError(
            f"{folder / WEIGHTS}: tensor {key!r} has shape {found.get(key)}, "
            f"{type(model).__name__} has {expected.get(key)} (None: missing); "
            f"{len(different)} tensors differ."
        )
