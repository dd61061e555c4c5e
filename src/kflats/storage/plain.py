"""Plain modules on disk: ``model.safetensors`` and ``kflats.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kflats.errors import CheckpointError, InputError
from kflats.layers import StoredTable, TableBag, TableLinear, replace_module
from kflats.layers.stored import FILE_NAMES
from kflats.storage.buffers import check_buffers, fill_buffers
from kflats.storage.files import WEIGHTS
from kflats.storage.fits import check_module
from kflats.storage.json_files import read_json
from kflats.storage.manifest import FORMAT_VERSION, MANIFEST, Manifest, factor_layers
from kflats.storage.seal import check_config, seal

__all__ = ["MANIFEST", "WEIGHTS", "read_plain", "write_plain"]


def write_plain(model: nn.Module, folder: Path) -> None:
    """Write the tensors, each once, and the description of the factorised layers."""
    tensors, aliases = _distinct(model.state_dict(), factor_layers(model))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    description = {
        "format_version": FORMAT_VERSION,
        "layers": Manifest.of(model).to_dict(),
        "aliases": aliases,
    }
    text = json.dumps(description, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    seal(folder)


def read_plain(folder: Path, manifest: Manifest, model: nn.Module) -> nn.Module:
    """Put factorised layers and tensors into the dense ``model``, in place.

    Raises
    ------
    CheckpointError
        If the model and the file do not have the same modules and tensors. The model is
        unchanged then.
    """
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS} beside {MANIFEST}.")
    tensors = load_file(folder / WEIGHTS)
    tensors |= _aliased(folder, tensors)
    check_config(manifest, folder / MANIFEST)

    def fill(name: str, layer: StoredTable) -> None:
        names = {key: f"{name}.{FILE_NAMES.get(key, key)}" for key in layer.state_dict()}
        missing = sorted(set(names.values()) - tensors.keys())
        if missing:
            raise CheckpointError(f"{folder / WEIGHTS} has no tensor {missing[0]!r}.")
        try:
            state = {key: tensors[file] for key, file in names.items()}
            state["coefficients"] = manifest.tables[name].coefficients(state["coefficients"])
            layer.load_state_dict(state, assign=True)
        except (InputError, CheckpointError) as error:
            raise CheckpointError(f"{folder / WEIGHTS}: {name}: {error}") from error

    check_buffers(model)
    layers = manifest.build(fill)
    rest = {key: value for key, value in tensors.items() if not _is_factor(key, layers)}
    _check_same(folder, model, layers, rest)
    for name, spec in manifest.modules.items():
        shape, module = manifest.tables[spec.table].shape, model.get_submodule(name)
        check_module(name, spec, shape, module, sealed=manifest.checksums is not None)
    for name, layer in layers.items():
        layer.take_over(model.get_submodule(name))
        replace_module(model, name, layer)
    on_meta = any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    model.load_state_dict(rest, strict=False, assign=on_meta)
    fill_buffers(model)
    return model


def _aliased(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that have a second name in the model, by that name."""
    aliases = read_json(folder / MANIFEST).get("aliases")
    if not isinstance(aliases, dict):
        raise CheckpointError(f"{folder / MANIFEST}: aliases must be an object, got {aliases!r}.")
    for name, kept in aliases.items():
        if not isinstance(kept, str) or kept not in tensors or name in tensors:
            raise CheckpointError(
                f"{folder / MANIFEST}: aliases says that {name!r} is the tensor {kept!r}; the "
                f"second must be one of {WEIGHTS}, the first must not."
            )
    return {name: tensors[kept] for name, kept in aliases.items()}


def _distinct(
    state: dict[str, Any], layers: dict[str, StoredTable]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by file name, and for every repeated one the name that is kept."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}

    def is_shared(key: str) -> bool:
        layer = layers.get(key.rpartition(".")[0])
        return layer is not None and layer.is_shared

    for key in sorted(state, key=is_shared):  # the owner of a table names its tensors
        tensor = state[key]
        name, _, leaf = key.rpartition(".")
        stored = f"{name}.{FILE_NAMES.get(leaf, leaf)}" if name in layers else key
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and place in seen:
            aliases[stored] = seen[place]
        else:
            seen[place] = stored
            tensors[stored] = tensor.contiguous()
    return tensors, aliases


def _is_factor(key: str, layers: dict[str, StoredTable]) -> bool:
    """Return whether a tensor belongs to a factorised table; biases of heads do not."""
    name, _, leaf = key.rpartition(".")
    return name in layers and leaf != "bias"


def _dense_kind(layer: StoredTable) -> type[nn.Linear | nn.EmbeddingBag | nn.Embedding]:
    if isinstance(layer, TableLinear):
        return nn.Linear
    return nn.EmbeddingBag if isinstance(layer, TableBag) else nn.Embedding


def _check_same(
    folder: Path,
    model: nn.Module,
    layers: dict[str, StoredTable],
    rest: dict[str, Tensor],
) -> None:
    for name, layer in layers.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = nn.Identity()
        kind = _dense_kind(layer)
        shape = tuple(module.weight.shape) if isinstance(module, kind) else None
        if shape != tuple(layer.weight.shape):
            raise CheckpointError(
                f"{folder} has a factorised table {name!r} of shape {tuple(layer.weight.shape)}, "
                f"{type(model).__name__} has {shape or f'no nn.{kind.__name__}'} there: pass the "
                "model it was made from."
            )
    expected = {
        key: _sizes(value)
        for key, value in model.state_dict().items()
        if not _is_factor(key, layers)
    }
    found = {key: _sizes(value) for key, value in rest.items()}
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


def _sizes(tensor: Tensor) -> tuple[int, ...] | tuple[tuple[int, ...], str]:
    """Return the shape, and for whole numbers, which no module casts, the dtype."""
    shape = tuple(tensor.shape)
    return shape if tensor.is_floating_point() else (shape, str(tensor.dtype))
