"""Finding the embedding tables of a model, and what else holds on to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kflats.errors import InputError, UnsupportedModelError
from kflats.layers import FactorizedEmbedding
from kflats.layers.embedding import check_options


@dataclass(frozen=True, eq=False)
class Table:
    """One table and every embedding module that reads it.

    Attributes
    ----------
    weight : Tensor of shape (num_embeddings, embedding_dim)
        The table.
    modules : tuple of nn.Embedding
        The distinct modules whose weight it is.
    names : tuple of tuple of str
        For each module, every name it has in the model.
    """

    weight: Tensor
    modules: tuple[nn.Embedding, ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        """The first name of the first module."""
        return self.names[0][0]

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every name under which the table is read."""
        return tuple(name for group in self.names for name in group)


def embedding_tables(model: nn.Module) -> list[Table]:
    """Return every dense embedding table of the model, each once, in the order of the modules."""
    by_weight: dict[int, dict[int, list[str]]] = {}
    modules: dict[int, nn.Embedding] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding):
            modules[id(module)] = module
            by_weight.setdefault(id(module.weight), {}).setdefault(id(module), []).append(name)
    return [
        Table(
            modules[next(iter(group))].weight,
            tuple(modules[key] for key in group),
            tuple(tuple(names) for names in group.values()),
        )
        for group in by_weight.values()
    ]


def find_tables(model: nn.Module, names: Iterable[str] | None = None) -> list[Table]:
    """Return the tables to compress.

    Parameters
    ----------
    model : nn.Module
        Any model. A transformers model says itself which table holds the tokens; in other
        models the only embedding is taken.
    names : iterable of str, optional
        Names of embedding modules to take instead.

    Raises
    ------
    InputError
        If a name is no dense embedding, or the choice is not clear without names.
    """
    tables = embedding_tables(model)
    if names is not None:
        return _named(tables, tuple(names))
    token_modules = {id(module) for module in _token_embeddings(model)}
    chosen = [t for t in tables if token_modules & {id(module) for module in t.modules}]
    if not chosen and not token_modules and len(tables) == 1:
        chosen = tables
    if not chosen:
        done = any(isinstance(module, FactorizedEmbedding) for module in model.modules())
        hint = "the token table is already factorised" if done else "no token table was found"
        raise InputError(
            f"{hint} in {type(model).__name__}; embeddings that can be named with modules=[...]: "
            f"{[table.name for table in tables] or 'none'}."
        )
    return chosen


def _named(tables: list[Table], names: tuple[str, ...]) -> list[Table]:
    chosen: list[Table] = []
    for name in names:
        found = [table for table in tables if name in table.all_names]
        if not found:
            raise InputError(
                f"{name!r} is not an embedding of the model; allowed are "
                f"{[n for table in tables for n in table.all_names]}."
            )
        if found[0] not in chosen:
            chosen.append(found[0])
    return chosen


def _token_embeddings(model: nn.Module) -> Iterator[nn.Module]:
    """Yield what ``get_input_embeddings`` of the model, or of its outermost parts, returns."""
    getter = getattr(model, "get_input_embeddings", None)
    if callable(getter):
        try:
            yield getter()
        except NotImplementedError:
            return
        return
    for child in model.children():
        yield from _token_embeddings(child)


def check_replaceable(model: nn.Module, table: Table) -> None:
    """Raise unless all that reads the table can read factors instead.

    Raises
    ------
    UnsupportedModelError
        If a module that is no embedding holds the table too (a tied output head), or an
        embedding computes something else than ``scale * weight[ids]``.
    InputError
        If an embedding uses ``max_norm``, ``scale_grad_by_freq`` or ``sparse``.
    """
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter is table.weight:
                head = f"{name}.{key}"
                raise UnsupportedModelError(
                    f"{table.name!r} is tied to the output head {head!r}, and factorised heads "
                    "are not supported yet. Load the model without its head (AutoModel, or "
                    "--base-model on the command line), or untie it first: head.weight = "
                    "nn.Parameter(head.weight.detach().clone()) and "
                    "model.config.tie_word_embeddings = False."
                )
    for module in table.modules:
        check_options(module)
        scale_of(module)


def scale_of(embedding: nn.Embedding) -> float:
    """Return the factor that a (sub-class of an) embedding puts on its rows.

    The factor is read from ``embed_scale`` and tried on a few rows. Some models round a factor
    that is a tensor to the dtype of the table first, others do not.

    Raises
    ------
    UnsupportedModelError
        If the module computes anything else.
    """
    if type(embedding).forward is nn.Embedding.forward:
        return 1.0
    scale = torch.as_tensor(getattr(embedding, "embed_scale", torch.nan))
    ids = torch.linspace(0, embedding.num_embeddings - 1, 5).long().to(embedding.weight.device)
    with torch.no_grad():
        rows, plain = embedding(ids), embedding.weight[ids]
        for factor in {float(scale), float(scale.to(plain.dtype))} if scale.numel() == 1 else ():
            if torch.equal(rows, plain * factor):
                return factor
    raise UnsupportedModelError(
        f"{type(embedding).__name__} does more than look up (and scale) rows; kflats replaces "
        "nn.Embedding and sub-classes with an embed_scale."
    )
