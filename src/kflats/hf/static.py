"""Static embedding models of sentence-transformers: a compressed table in their ordinary folders.

``StaticEmbedding`` reads and writes the one tensor ``embedding.weight`` and has no hook for
another form of it. Its ``save`` and ``load`` are wrapped: a compressed one is written as plain
modules are, as factors or codes beside the same ``kflats.json``, and read back without the dense
table. What is not compressed goes straight to the original.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from kflats.errors import CheckpointError
from kflats.storage.check import check_files, read_manifest
from kflats.storage.manifest import factor_layers
from kflats.storage.plain import MANIFEST, WEIGHTS, read_plain, write_plain

TABLE = "embedding"
_MARK = "_kflats_wrapped"
_HUB = ("subfolder", "token", "cache_folder", "revision", "local_files_only")


def install(module: Any) -> None:
    """Wrap the methods of ``StaticEmbedding`` in the module that defines it, once."""
    static = module.StaticEmbedding
    if not hasattr(static, _MARK):
        static.save = _save(static.save)
        static.load = classmethod(_load(static.load.__func__))
        setattr(static, _MARK, True)


def _save(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def save(
        self: Any, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        folder = Path(output_path)
        if factor_layers(self) and not safe_serialization:
            raise CheckpointError(
                "safe_serialization=False would write a pickle: kflats writes safetensors only."
            )
        original(self, output_path, *args, safe_serialization=safe_serialization, **kwargs)
        if factor_layers(self):
            write_plain(self, folder)
        else:
            (folder / MANIFEST).unlink(missing_ok=True)  # of what was saved there before

    return save


def _load(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def load(cls: Any, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Any:
        options = {"subfolder": subfolder, **kwargs}
        hub = {name: options[name] for name in _HUB if name in options}

        def find(name: str) -> Path | None:
            path = cls.load_file_path(model_name_or_path, filename=name, **hub)
            return None if path is None else Path(path)

        weights, described = find(WEIGHTS), find(MANIFEST)
        tokenizer = find("tokenizer.json")
        if described is None:
            _refuse_factors(weights)
            if tokenizer is None:
                place = "/".join(filter(None, (str(model_name_or_path), subfolder)))
                raise CheckpointError(f"{place} has no tokenizer.json: no static embedding model.")
            return original(cls, model_name_or_path, **options)
        for name, path in ((WEIGHTS, weights), ("tokenizer.json", tokenizer)):
            if path is None:
                raise CheckpointError(f"{described.parent} has no {name} beside {MANIFEST}.")
        return _read(cls, described.parent, str(tokenizer))

    return load


def _read(static: Any, folder: Path, tokenizer_file: str) -> nn.Module:
    """Return a ``StaticEmbedding`` with the compressed table in a local folder."""
    from tokenizers import Tokenizer

    manifest, where = read_manifest(folder)
    check_files(manifest, [folder / WEIGHTS], folder, where.name)
    if TABLE not in manifest.tables:
        raise CheckpointError(
            f"{where} describes the tables {sorted(manifest.tables)}; a static embedding model "
            f"has one of the name {TABLE!r}."
        )
    shape = manifest.tables[TABLE].shape
    empty = torch.empty(shape.num_embeddings, shape.embedding_dim, device="meta")
    try:
        tokenizer = Tokenizer.from_file(tokenizer_file)
    except Exception as error:  # tokenizers raises nothing more precise
        raise CheckpointError(f"{tokenizer_file} is no tokenizer: {error}") from error
    module: nn.Module = static(tokenizer, embedding_weights=empty)
    return read_plain(folder, manifest, module)


def _refuse_factors(weights: Path | None) -> None:
    """Raise if a file holds a compressed table; called where its description is missing."""
    names: list[str] = []
    with suppress(SafetensorError, OSError):  # what cannot be read is for the original to say
        if weights is not None:
            with safe_open(weights, framework="pt") as file:
                names = list(file.keys())
    if any(".kflats_" in name for name in names):
        raise CheckpointError(
            f"{weights} holds a compressed table, and {MANIFEST}, which describes it, is missing: "
            "copy the whole folder that kflats wrote."
        )
