"""Putting factorised layers into a model skeleton before its weights are read."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from kflats.errors import CheckpointError
from kflats.hf.describe import declare_ties
from kflats.layers import StoredTable, TableBag, TableEmbedding, replace_module
from kflats.storage.fits import check_module
from kflats.storage.manifest import Manifest, ModuleSpec, TableSpec

_KINDS = {
    "embedding": nn.Embedding | TableEmbedding,
    "bag": nn.EmbeddingBag | TableBag,
    "linear": nn.Linear | StoredTable,
}


def insert_layers(
    model: Any, manifest: Manifest, file_keys: set[str] | None = None
) -> dict[str, str]:
    """Replace the embeddings and heads that a checkpoint has factorised, in place.

    A checkpoint of BertModel also loads as BertForX and back. An output head that the model does
    not have is left out. A head that the class ties to a factorised table, and that has no weight
    of its own in the file, becomes a factorised head on that table.

    Parameters
    ----------
    model : PreTrainedModel
        A skeleton, usually on the meta device.
    manifest : Manifest
        What the checkpoint holds.
    file_keys : set of str, optional
        Names of the tensors in the files.

    Returns
    -------
    dict
        For tables whose first reader this model does not have, the name of the module that owns
        them here, as in a decoder alone of an encoder-decoder.

    Raises
    ------
    CheckpointError
        If the model has no embedding where the checkpoint has a table, or one of another size or
        that scales its rows by another factor.
    """
    here, owners = _translated(model, manifest)
    here = _with_class_ties(model, here, file_keys or set())
    for name, spec in here.modules.items():
        shape, module = here.tables[spec.table].shape, model.get_submodule(name)
        check_module(name, spec, shape, module, sealed=manifest.checksums is not None)
    for name, layer in here.build().items():
        layer.take_over(model.get_submodule(name))
        replace_module(model, name, layer)
    declare_ties(model)
    return owners


def _translated(model: Any, manifest: Manifest) -> tuple[Manifest, dict[str, str]]:
    """Return the manifest in the module names of this model, and the owners that changed."""
    owners: dict[str, str] = {}
    tables: dict[str, TableSpec] = {}
    modules: dict[str, ModuleSpec] = {}
    for table, spec in manifest.tables.items():
        readers = {n: each for n, each in manifest.modules.items() if each.table == table}
        found = {name: _resolve(model, name, each.kind) for name, each in readers.items()}
        present = {new: readers[name] for name, new in found.items() if new is not None}
        owner = found[table] or min(present, key=lambda new: present[new].kind, default=None)
        if owner is not None:
            if found[table] is None:
                owners[table] = owner
            tables[owner] = spec
            modules |= {new: replace(each, table=owner) for new, each in present.items()}
        elif any(each.kind != "linear" for each in readers.values()):
            raise CheckpointError(
                f"the checkpoint has a factorised table {table!r}, but {type(model).__name__} has "
                "no embedding there: load it with the class it was saved from (see architectures "
                "in config.json)."
            )
    return Manifest(tables=tables, modules=modules), owners


def _candidates(model: Any, name: str) -> list[str]:
    prefix = f"{model.base_model_prefix}."
    return [name, prefix + name, name.removeprefix(prefix)]


def _resolve(model: Any, name: str, kind: str) -> str | None:
    """Return the name in this model, None if it has no such module."""
    kinds = _KINDS[kind]
    for candidate in _candidates(model, name):
        with suppress(AttributeError):
            if isinstance(model.get_submodule(candidate), kinds):
                return candidate
    return None


def _with_class_ties(model: Any, manifest: Manifest, file_keys: set[str]) -> Manifest:
    """Add the modules that the class ties to a factorised table and the file does not hold."""
    modules = dict(manifest.modules)
    for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        one, other = target.removesuffix(".weight"), source.removesuffix(".weight")
        for name, known in ((one, other), (other, one)):
            if known not in modules or name in modules or not target.endswith(".weight"):
                continue
            if not file_keys & set(_candidates(model, f"{name}.weight")):
                modules[name] = _spec_of(model.get_submodule(name), name, modules[known].table)
    return Manifest(tables=manifest.tables, modules=modules)


def _spec_of(module: nn.Module, name: str, table: str) -> ModuleSpec:
    if type(module) is nn.Linear:
        return ModuleSpec(kind="linear", table=table)
    if type(module) is nn.Embedding:
        return ModuleSpec(kind="embedding", table=table, padding_idx=module.padding_idx)
    raise CheckpointError(
        f"the model ties {name!r}, a {type(module).__name__}, to a factorised table, and the "
        "checkpoint does not say how it reads it: load it with the class it was saved from."
    )
