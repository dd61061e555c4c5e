"""Putting factorised layers into a model skeleton before its weights are read."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from kflats.errors import CheckpointError
from kflats.hf.describe import declare_ties
from kflats.hf.names import FileNames
from kflats.layers import StoredTable, TableBag, TableEmbedding, replace_module
from kflats.layers.stored import FILE_NAMES
from kflats.storage.fits import check_module
from kflats.storage.manifest import Manifest, ModuleSpec, TableSpec

_KINDS = {
    "embedding": nn.Embedding | TableEmbedding,
    "bag": nn.EmbeddingBag | TableBag,
    "linear": nn.Linear | StoredTable,
}


def insert_layers(model: Any, manifest: Manifest, names: FileNames) -> dict[str, str]:
    """Replace the embeddings and heads that a checkpoint has factorised, in place.

    A checkpoint of BertModel also loads as BertForX and back. Tables for which the model has no
    module are left out, as the text tower in a class for images only. A head that the class ties
    to a factorised table, and that has no weight of its own in the file, becomes a factorised head
    on that table.

    Parameters
    ----------
    model : PreTrainedModel
        A skeleton, usually on the meta device.
    manifest : Manifest
        What the checkpoint holds.
    names : FileNames
        The names of the tensors in the files.

    Returns
    -------
    dict
        For every table that the model has, the name of the module that owns it here.

    Raises
    ------
    CheckpointError
        If a table was left out, and an embedding or head of its size has nothing in the files, or
        if a module has another size or scales its rows by another factor.
    """
    here, owners = _translated(model, manifest, names)
    here = _with_class_ties(model, here, names)
    for name, spec in here.modules.items():
        shape, module = here.tables[spec.table].shape, model.get_submodule(name)
        check_module(name, spec, shape, module, sealed=manifest.checksums is not None)
    layers = here.build()
    _check_left_out(model, manifest, owners, names, set(layers))
    for name, layer in layers.items():
        layer.is_loading = True
        layer.take_over(model.get_submodule(name))
        replace_module(model, name, layer)
    declare_ties(model)
    return owners


def _translated(
    model: Any, manifest: Manifest, names: FileNames
) -> tuple[Manifest, dict[str, str]]:
    """Return the manifest in the module names of this model, and the owner of every table."""
    located = names.locate(manifest)
    owners: dict[str, str] = {}
    tables: dict[str, TableSpec] = {}
    modules: dict[str, ModuleSpec] = {}
    for table, spec in manifest.tables.items():
        readers = {n: each for n, each in manifest.modules.items() if each.table == table}
        where = {name: names.candidates(name) for name in readers}
        stored = located.get(f"{table}.{FILE_NAMES['coefficients']}")
        if stored is not None:  # what transformers makes of its name in the file comes first
            first = names.candidates(names.rename(stored).rpartition(".")[0])
            where[table] = [*first, *where[table]]
        found = {name: _resolve(model, where[name], each.kind) for name, each in readers.items()}
        present = {new: readers[name] for name, new in found.items() if new is not None}
        owner = found[table] or min(present, key=lambda new: present[new].kind, default=None)
        if owner is not None:
            owners[table] = owner
            tables[owner] = spec
            modules |= {new: replace(each, table=owner) for new, each in present.items()}
    return Manifest(tables=tables, modules=modules), owners


def _check_left_out(
    model: Any, manifest: Manifest, owners: dict[str, str], names: FileNames, inserted: set[str]
) -> None:
    """Raise if a table has no place, and a module that could be it would stay without values."""
    sizes = {
        (spec.shape.num_embeddings, spec.shape.embedding_dim): table
        for table, spec in manifest.tables.items()
        if table not in owners
    }
    if not sizes:
        return
    loaded = names.loaded()
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    filled = loaded | {target for target, source in ties.items() if source in loaded}
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding | nn.Linear) and name not in inserted
        table = sizes.get(tuple(module.weight.shape)) if is_table else None
        if table is not None and f"{name}.weight" not in filled:
            raise CheckpointError(
                f"the checkpoint has a factorised table {table!r}, and {type(model).__name__} has "
                f"{name!r} of the same size, for which there is nothing in the files: load it with "
                "the class it was saved from (see architectures in config.json)."
            )


def _resolve(model: Any, candidates: list[str], kind: str) -> str | None:
    """Return the name in this model, None if it has no such module."""
    kinds = _KINDS[kind]
    for candidate in candidates:
        with suppress(AttributeError):
            if isinstance(model.get_submodule(candidate), kinds):
                return candidate
    return None


def _with_class_ties(model: Any, manifest: Manifest, names: FileNames) -> Manifest:
    """Add the modules that the class ties to a factorised table and the file does not hold."""
    modules = dict(manifest.modules)
    loaded = names.loaded()
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    # Twice, since a module may be tied to one that is only tied itself.
    for target, source in [*ties.items(), *ties.items()]:
        one, other = target.removesuffix(".weight"), source.removesuffix(".weight")
        for name, known in ((one, other), (other, one)):
            if known not in modules or name in modules or not target.endswith(".weight"):
                continue
            if f"{name}.weight" not in loaded:
                modules[name] = _spec_of(model.get_submodule(name), name, modules[known].table)
    return Manifest(tables=manifest.tables, modules=modules)


def _spec_of(module: nn.Module, name: str, table: str) -> ModuleSpec:
    if type(module) is nn.Linear:
        return ModuleSpec(kind="linear", table=table)
    scale = 1.0 if type(module) is nn.Embedding else getattr(module, "embed_scale", None)
    if isinstance(module, nn.Embedding) and type(scale) in (int, float):
        padding_idx, scale = module.padding_idx, float(scale)  # type: ignore[arg-type]
        return ModuleSpec(kind="embedding", table=table, padding_idx=padding_idx, scale=scale)
    raise CheckpointError(
        f"the model ties {name!r}, a {type(module).__name__}, to a factorised table, and the "
        "checkpoint does not say how it reads it: load it with the class it was saved from."
    )
