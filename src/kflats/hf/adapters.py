"""What PEFT does with token tables, for tables that are not stored as a matrix.

Prompt tuning finds the token table as the parameter with as many rows as the vocabulary, and
``ensure_weight_tying`` puts the weight of the embedding into a new ``nn.Linear``. Neither has a
hook, so both methods are wrapped; models without compressed layers go straight to the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from kflats.layers import StoredTable
from kflats.layers.weight import TableView
from kflats.storage.manifest import factor_layers

_MARK = "_kflats_wrapped"


def install_prompts(module: ModuleType) -> None:
    """Wrap the search for the token table in ``peft.peft_model``, once."""
    _wrap(module.PeftModel, "_setup_prompt_encoder", _setup_prompt_encoder)


def install_ties(module: ModuleType) -> None:
    """Wrap the tying of saved modules in ``peft.utils.other``, once."""
    _wrap(module.ModulesToSaveWrapper, "update", _update)


def _wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    if not hasattr(original, _MARK):
        wrapped = wrapper(original)
        setattr(wrapped, _MARK, True)
        setattr(owner, name, wrapped)


def _setup_prompt_encoder(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def setup_prompt_encoder(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _tables_as_parameters(self.base_model):
            return original(self, *args, **kwargs)

    return setup_prompt_encoder


@contextmanager
def _tables_as_parameters(model: nn.Module) -> Iterator[None]:
    """Let transformers models among ``model`` and its children list their tables as weights."""
    everything: list[Any] = [model, *model.children()]
    parts = [each for each in everything if hasattr(each, "get_input_embeddings")]
    parts = [each for each in parts if isinstance(each.get_input_embeddings(), StoredTable)]
    for part in parts:
        vars(part)["named_parameters"] = _with_tables(part)
    try:
        yield
    finally:
        for part in parts:
            del vars(part)["named_parameters"]


def _with_tables(part: Any) -> Callable[..., Any]:
    table = part.get_input_embeddings()
    name = next(name for name, each in factor_layers(part).items() if each is table)
    like = table.like.detach()
    shape = like.new_empty(1).expand(tuple(table.weight.shape))  # of one number, for its sizes

    def named_parameters(*args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", shape
        yield from type(part).named_parameters(part, *args, **kwargs)

    return named_parameters


def _update(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def update(self: Any, adapter_name: str, tied_module: Any = None, **kwargs: Any) -> Any:
        view = getattr(tied_module, "weight", None)
        if not isinstance(view, TableView):
            return original(self, adapter_name, tied_module=tied_module, **kwargs)
        result = original(self, adapter_name, **kwargs)  # a copy, with a table of its own
        self.modules_to_save[adapter_name].weight = view
        return result

    return update
