"""Finding the embedding tables of a model, and what else holds on to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from kflats.errors import InputError, UnsupportedModelError
from kflats.layers import StoredTable
from kflats.layers.bag import check_bag
from kflats.layers.embedding import check_options
from kflats.linalg import row_blocks

Reader: TypeAlias = nn.Embedding | nn.EmbeddingBag | nn.Linear


@dataclass(frozen=True, eq=False)
class Table:
    """One table and every module that reads it.

    Attributes
    ----------
    weight : Tensor of shape (num_embeddings, embedding_dim)
        The table.
    modules : tuple of nn.Embedding, nn.EmbeddingBag and nn.Linear
        The distinct modules whose weight it is; output heads, the linear ones, come last.
    names : tuple of tuple of str
        For each module, every name it has in the model.
    """

    weight: Tensor
    modules: tuple[Reader, ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        """The first name of the first module."""
        return self.names[0][0]

    @property
    def embedding(self) -> nn.Embedding:
        """The first embedding that reads it; InputError if only heads or bags do."""
        for module in self.modules:
            if isinstance(module, nn.Embedding):
                return module
        kind = "an output head" if self.is_head else "an nn.EmbeddingBag"
        raise InputError(f"{self.name!r} is read by {kind} only, not an embedding.")

    @property
    def is_head(self) -> bool:
        """Whether only output heads read it."""
        return isinstance(self.modules[0], nn.Linear)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every name under which the table is read."""
        return tuple(name for group in self.names for name in group)

    @property
    def zero_ids(self) -> tuple[int, ...]:
        """Ids of the padding whose rows are zero, so that padding adds nothing to a sum."""
        ids = {getattr(module, "padding_idx", None) for module in self.modules}
        return tuple(sorted(i for i in ids if i is not None and not bool(self.weight[i].any())))


def embedding_tables(model: nn.Module) -> list[Table]:
    """Return every dense table that an embedding or bag reads, each once, in their order.

    Output heads that are tied to such a table belong to it.
    """
    return [table for table in _all_tables(model) if not table.is_head]


def _all_tables(model: nn.Module) -> list[Table]:
    """Return the weights of all embeddings, bags and linear layers with their readers."""
    by_weight: dict[int, dict[int, list[str]]] = {}
    modules: dict[int, Reader] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Reader):
            modules[id(module)] = module
            by_weight.setdefault(id(module.weight), {}).setdefault(id(module), []).append(name)
    return [_table(modules, group) for group in by_weight.values()]


def _table(modules: dict[int, Reader], group: dict[int, list[str]]) -> Table:
    keys = sorted(group, key=lambda key: isinstance(modules[key], nn.Linear))
    return Table(
        modules[keys[0]].weight,
        tuple(modules[key] for key in keys),
        tuple(tuple(group[key]) for key in keys),
    )


def find_tables(model: nn.Module, names: Iterable[str] | None = None) -> list[Table]:
    """Return the tables to compress.

    Parameters
    ----------
    model : nn.Module
        Any model. A transformers model says itself which tables hold the tokens: those of its
        input embeddings, and of an output head that is not tied to them; where it names none,
        the only embedding with a row for every id of the vocabulary is taken. In other models the
        only embedding, or embedding bag, is taken.
    names : iterable of str, optional
        Names of embeddings, embedding bags and linear heads to take instead.

    Raises
    ------
    InputError
        If a name is no dense embedding or head, or the choice is not clear without names.
    """
    everything = _all_tables(model)
    if names is not None:
        return _named(everything, tuple(names))
    tables = [table for table in everything if not table.is_head]
    inputs = list(_token_modules(model, "get_input_embeddings"))
    chosen = _reading(tables, inputs)
    if not chosen:
        chosen = _of_vocabulary(model, tables)
    if not chosen and not inputs and len(tables) == 1:
        chosen = tables
    if not chosen:
        done = any(isinstance(module, StoredTable) for module in model.modules())
        hint = "the token table is already factorised" if done else "no token table was found"
        raise InputError(
            f"{hint} in {type(model).__name__}; embeddings that can be named with modules=[...]: "
            f"{[table.name for table in tables] or 'none'}."
        )
    heads = _reading(everything, list(_token_modules(model, "get_output_embeddings")))
    # Some models name another layer as their output embeddings.
    sizes = {len(table.weight) for table in chosen}
    own = [head for head in heads if head not in chosen and len(head.weight) in sizes]
    return chosen + own


def _of_vocabulary(model: nn.Module, tables: list[Table]) -> list[Table]:
    """Return the one table of a transformers model that has the size of a vocabulary, if any."""
    config = getattr(model, "config", None)
    parts = [config, *vars(config).values()] if hasattr(config, "to_dict") else []
    sizes = {getattr(part, "vocab_size", None) for part in parts}
    found = [table for table in tables if len(table.weight) in sizes]
    return found if len(found) == 1 else []


def _reading(tables: list[Table], modules: list[nn.Module]) -> list[Table]:
    wanted = {id(module) for module in modules}
    return [table for table in tables if wanted & {id(module) for module in table.modules}]


def _named(tables: list[Table], names: tuple[str, ...]) -> list[Table]:
    chosen: list[Table] = []
    for name in names:
        found = [table for table in tables if name in table.all_names]
        if not found:
            raise InputError(
                f"{name!r} is no dense embedding or head of the model; embeddings are "
                f"{_embedding_names(tables)}, heads any nn.Linear."
            )
        if found[0] not in chosen:
            chosen.append(found[0])
    return chosen


def _embedding_names(tables: list[Table]) -> list[str]:
    return [name for table in tables if not table.is_head for name in table.all_names]


def _token_modules(model: nn.Module, getter_name: str) -> Iterator[nn.Module]:
    """Yield what ``getter_name()`` of the model, or of its outermost parts, returns.

    The decoder of an encoder-decoder may have a vocabulary of its own.
    """
    getter = getattr(model, getter_name, None)
    if not callable(getter):
        for child in model.children():
            yield from _token_modules(child, getter_name)
        return
    for owner in (model, _decoder(model)):
        with suppress(NotImplementedError, AttributeError):
            found = getattr(owner, getter_name)()
            if isinstance(found, nn.Module):
                yield found


def _decoder(model: Any) -> Any:
    get_decoder = getattr(model, "get_decoder", None)
    with suppress(NotImplementedError, AttributeError, TypeError):
        return get_decoder() if callable(get_decoder) else None
    return None


def transformers_roots(module: nn.Module) -> Iterator[Any]:
    """Yield the outermost transformers models in a module."""
    if hasattr(module, "save_pretrained") and hasattr(module, "base_model_prefix"):
        yield module
        return
    for child in module.children():
        yield from transformers_roots(child)


def check_replaceable(model: nn.Module, table: Table) -> None:
    """Raise unless all that reads the table can read factors instead.

    Raises
    ------
    UnsupportedModelError
        If a module that is no embedding, bag or linear layer holds the table too, or a module
        computes something else than ``scale * weight[ids]``, bags of rows, or
        ``x @ weight.T + bias``.
    InputError
        If an embedding or bag uses ``max_norm``, ``scale_grad_by_freq`` or ``sparse``.
    """
    for name, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module.named_parameters(recurse=False):
            known = isinstance(module, Reader) and key == "weight"
            if parameter is table.weight and not known:
                raise UnsupportedModelError(
                    f"{table.name!r} is also the parameter {name}.{key} of a "
                    f"{type(module).__name__}; kflats replaces embeddings, bags and linear heads. "
                    "Untie it first, or name other tables with modules=[...]."
                )
    for module in table.modules:
        if isinstance(module, nn.Embedding):
            check_options(module)
            scale_of(module)
        elif isinstance(module, nn.EmbeddingBag):
            check_bag(module)
        elif type(module).forward is not nn.Linear.forward:
            raise UnsupportedModelError(
                f"{type(module).__name__} reads {table.name!r} and is no plain nn.Linear; kflats "
                "cannot replace it. Load the model without its head (AutoModel, or --base-model)."
            )


def scale_of(embedding: nn.Embedding) -> float:
    """Return the factor that a (sub-class of an) embedding puts on its rows.

    The factor is read from ``embed_scale`` and tried on all rows. Some models round a factor
    that is a tensor to the dtype of the table first, others do not.

    Raises
    ------
    UnsupportedModelError
        If the module computes anything else.
    """
    if type(embedding).forward is nn.Embedding.forward:
        return 1.0
    scale = getattr(embedding, "embed_scale", torch.nan)
    scale = scale if isinstance(scale, torch.Tensor) else torch.tensor(scale, dtype=torch.float64)
    more = [name for name, _ in embedding.named_parameters() if name != "weight"]
    if scale.numel() == 1 and not more:
        for factor in {float(scale), float(scale.to(embedding.weight.dtype))}:
            if _only_scales(embedding, factor):
                return factor
    own = f" (it has {', '.join(more)} too)" if more else ""
    raise UnsupportedModelError(
        f"{type(embedding).__name__} does more than look up (and scale) rows{own}; kflats replaces "
        "nn.Embedding and sub-classes with an embed_scale. Name other tables with modules=[...]."
    )


def _only_scales(embedding: nn.Embedding, factor: float) -> bool:
    weight = embedding.weight.detach()
    with torch.no_grad():
        return all(
            torch.equal(
                embedding(torch.arange(block.start, block.stop, device=weight.device)),
                weight[block] * factor,
            )
            for block in row_blocks(*weight.shape)
        )
