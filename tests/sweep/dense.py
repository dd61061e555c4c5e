"""The dense model of a class: tiny, seeded, every weight of it with a say in the outputs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.sweep.configs import tiny_config
from tests.sweep.inputs import Inputs, input_sets

TABLE_ROWS = 200
"""An embedding of so many rows may be one of tokens: positions of tiny models have fewer."""
MOST_NUMBERS = 20_000_000


class NoTableError(Exception):
    """The class has no embedding that may hold tokens."""


class CannotError(Exception):
    """The dense model itself cannot do a step."""


def build(model_class: Any) -> Any:
    """Return a tiny model in evaluation mode.

    Zeros and tiny numbers of a fresh model would hide what a wrong table does, so rows of
    embeddings get a size of about 1 (padding rows stay zero) and all other weights some noise.
    """
    config = tiny_config(model_class.config_class, model_class.__name__)
    with torch.device("meta"):
        _check_skeleton(model_class, copy.deepcopy(config))
    torch.manual_seed(0)
    model = model_class(config).eval()
    if not tables_of(model):
        raise NoTableError
    _stir(model)
    return model


def _check_skeleton(model_class: Any, config: Any) -> None:
    try:
        model = model_class(config)
    except Exception:  # noqa: BLE001  not every class can be built without memory
        return
    if not tables_of(model):
        raise NoTableError
    size = sum(each.numel() for each in model.parameters())
    if size > MOST_NUMBERS:
        raise CannotError(f"{size} parameters with the smallest config known here")


def _stir(model: nn.Module) -> None:
    torch.manual_seed(1)
    tables = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.is_floating_point():
                continue
            weight.copy_(torch.nan_to_num(weight, 0.0, 0.0, 0.0))
            noise = torch.randn_like(weight)
            table = tables.get(id(weight))
            if table is None:
                weight.add_(0.02 * noise)
                continue
            kept = weight[table.padding_idx].clone() if table.padding_idx is not None else None
            size = weight.std()
            weight.copy_(weight * (0.5 / size) if size > 0 else 0.5 * noise)
            if kept is not None:
                weight[table.padding_idx] = kept


def tables_of(model: Any) -> list[nn.Embedding | nn.EmbeddingBag]:
    """Return the embeddings that may hold tokens."""
    kinds = nn.Embedding | nn.EmbeddingBag
    found = [m for m in model.modules() if isinstance(m, kinds) and m.num_embeddings >= TABLE_ROWS]
    getter = getattr(model, "get_input_embeddings", None)
    try:
        own = getter() if getter else None
    except (NotImplementedError, AttributeError):
        own = None
    return found + ([own] if isinstance(own, kinds) and own not in found else [])


def outputs(model: Any, inputs: Inputs, *, grad: bool = False) -> dict[str, Tensor]:
    """Return the float outputs of a forward, by the names of their places."""
    torch.manual_seed(2)
    with torch.set_grad_enabled(grad):
        found = model(**copy.deepcopy(inputs))
    flat: dict[str, Tensor] = {}
    _flatten("", found, flat)
    return flat


def _flatten(place: str, value: Any, flat: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            flat[place] = value
    elif isinstance(value, dict):
        for key, each in value.items():
            _flatten(f"{place}.{key}", each, flat)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            _flatten(f"{place}.{number}", each, flat)


def token_rows(model: Any) -> Tensor | None:
    """Return what the input embeddings give for some tokens, None if they are no such thing."""
    try:
        with torch.no_grad():
            found = model.get_input_embeddings()(torch.arange(7, 19))
    except Exception:  # noqa: BLE001  of images, with other arguments, or none at all
        return None
    return found if isinstance(found, Tensor) else None


def usable_inputs(model: Any) -> tuple[Inputs, bool]:
    """Return inputs that the model takes, and whether its tables have a say in the outputs."""
    first: Inputs | None = None
    why: list[str] = []
    for inputs in input_sets(model):
        try:
            found = outputs(model, inputs)
        except Exception as error:  # noqa: BLE001  whatever it is, the next set may do
            why.append(said(error))
            continue
        if not found or not any(bool(each.isfinite().any()) for each in found.values()):
            why.append("no finite outputs")
            continue
        if _heeds_tables(model, inputs, found):
            return inputs, True
        first = inputs if first is None else first
    if first is None:
        raise CannotError("; ".join(list(dict.fromkeys(why))[:3]) or "no inputs known")
    return first, False


def _heeds_tables(model: Any, inputs: Inputs, before: dict[str, Tensor]) -> bool:
    tables = {id(table.weight): table.weight for table in tables_of(model)}
    kept = {key: weight.detach().clone() for key, weight in tables.items()}
    with torch.no_grad():
        for weight in tables.values():
            weight.mul_(-1.3)
    try:
        after = outputs(model, inputs)
    except Exception:  # noqa: BLE001
        return True
    finally:
        with torch.no_grad():
            for key, weight in tables.items():
                weight.copy_(kept[key])
    return any(
        key not in after
        or after[key].shape != value.shape
        or not torch.allclose(after[key], value, rtol=1e-3, atol=1e-5, equal_nan=True)
        for key, value in before.items()
    )


def said(error: BaseException) -> str:
    """Return the kind of an error and the first lines of its message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
