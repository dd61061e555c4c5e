"""A trial before tables are replaced: whether the model needs them as matrices.

Some models do more with a table than to look up rows and to multiply with it: MobileBERT joins its
head with another matrix, SEW-D normalises its relative positions. What they do stands in their
code, not in their modules, so a copy of the model is run on a few ids, with the dense table and
with one that holds the same values behind the interface of compressed layers.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kflats.errors import UnsupportedModelError
from kflats.layers import StoredTable, TableEmbedding, TableLinear, replace_module
from kflats.layers.embedding import dense_class_of
from kflats.tables import Table, scale_of, transformers_roots

_IDS = 10
_SAMPLES = 4000
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Of the largest output; a head may sum in another order. Narrower dtypes have 0.05."""


def check_trial(model: nn.Module, tables: list[Table]) -> None:
    """Raise unless the transformers models inside compute the same from compressed layers.

    Tried on token ids, or sound, with the outermost part around each table that runs on these
    alone. What does not run on them, or has no storage, is not tried. The model is left as it is.

    Raises
    ------
    UnsupportedModelError
        Naming the table, if the output differs or the model fails.
    """
    for root in transformers_roots(model):
        read = {id(each): _names(root, each) for each in tables}
        own = [each for each in tables if read[id(each)]]
        if not own or any(_is_elsewhere(each) for each in root.parameters()):
            continue
        dense = _copy(root)
        for table in own if dense is not None else ():
            _check(dense, table, read[id(table)])


def _names(root: nn.Module, table: Table) -> list[str]:
    """Return the names of what reads a table; none if a bag does: those are not tried."""
    modules = {id(each) for each in table.modules}
    if any(isinstance(each, nn.EmbeddingBag) for each in table.modules):
        return []
    found = root.named_modules(remove_duplicate=False)
    return [name for name, module in found if id(module) in modules]


def _is_elsewhere(parameter: Tensor) -> bool:
    """Return whether a parameter has no storage here, or is spread over devices."""
    return parameter.is_meta or hasattr(parameter, "device_mesh")


def _check(dense: Any, table: Table, where: list[str]) -> None:
    stand_in = copy.deepcopy(dense, _shared(dense))
    for name in where:
        replace_module(stand_in, name, _as_is(dense.get_submodule(name)))
    for part in _parts_around(dense, where[0]):
        inputs = _inputs(dense.get_submodule(part), table.weight)
        try:
            expected = _outputs(dense.get_submodule(part), inputs)
        except Exception:  # noqa: BLE001  what the dense model cannot do is not ours to judge
            continue
        try:
            found = _outputs(stand_in.get_submodule(part), inputs)
        except Exception as error:
            raise _refusal(dense, table, "does not run") from error
        if _same(expected, found) or not _same(
            expected, _outputs(dense.get_submodule(part), inputs)
        ):
            return
        raise _refusal(dense, table, "gives another output")


def _refusal(model: nn.Module, table: Table, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} {what} when {table.name!r} is not stored as a matrix: it does "
        "more with the table than look up rows and multiply by it, so kflats cannot replace it. "
        "Load the model without its head (AutoModel, or --base-model), or name other tables with "
        "modules=[...]."
    )


def _copy(model: nn.Module) -> Any:
    """Return a copy in evaluation mode that shares the parameters; None if there is none."""
    try:
        found = copy.deepcopy(model, _shared(model))
    except Exception:  # noqa: BLE001  a module may hold what cannot be copied
        return None
    for module in found.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    return found.eval()


def _shared(model: nn.Module) -> dict[int, Any]:
    return {id(each): each for each in model.parameters()}


def _parts_around(model: nn.Module, name: str) -> Iterator[str]:
    """Yield the names of the transformers models around a module, the outermost first."""
    parents = name.split(".")[:-1]
    for depth in range(len(parents) + 1):
        part = ".".join(parents[:depth])
        if hasattr(model.get_submodule(part), "base_model_prefix"):
            yield part


def _inputs(part: Any, weight: Tensor) -> dict[str, Tensor]:
    if part.main_input_name == "input_values":
        sound = torch.linspace(-1, 1, _SAMPLES, device=weight.device, dtype=weight.dtype).sin()
        return {"input_values": sound[None]}
    special = set(_special_ids(part.config.to_dict()))
    ordinary = [each for each in range(len(weight)) if each not in special] or [0]
    step = max(1, len(ordinary) // _IDS)
    ids = torch.tensor([(ordinary * _IDS)[: step * _IDS : step]], device=weight.device)
    takes = inspect.signature(part.forward).parameters
    inputs = {"input_ids": ids}
    if "attention_mask" in takes:
        inputs["attention_mask"] = torch.ones_like(ids)
    if "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = ids
    return inputs


def _special_ids(config: Any) -> Iterator[int]:
    """Yield the ids with a meaning of their own, such as that of an image."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _special_ids(value)
        elif str(key).endswith(("token_id", "token_index")) and isinstance(value, int):
            yield value


def _outputs(part: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    devices = [each.device for each in inputs.values() if each.is_cuda]
    with torch.random.fork_rng(devices[:1]), torch.no_grad(), _quiet():
        torch.manual_seed(0)
        return list(_tensors(part(**inputs)))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _tensors(each)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and _close(a, b) for a, b in zip(one, other, strict=True)
    )


def _close(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    largest = one.nan_to_num().abs().max() if one.numel() else 0.0
    slack = float(largest) * _TOLERANCE.get(one.dtype, 0.05)
    return torch.allclose(one, other, rtol=0.0, atol=slack, equal_nan=True)


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


class _AsIs(StoredTable):
    """A table that is a matrix, behind the interface of those that are not."""

    FACTORS = ("coefficients",)
    SAVED_BUFFERS = ()
    DERIVED_BUFFERS = ()

    def __init__(self, shape: Any, *, dtype: Any = None, device: Any = None) -> None:  # noqa: ARG002
        super().__init__(shape)

    @property
    def like(self) -> Tensor:
        return self.coefficients

    def index_(self) -> _AsIs:
        return self

    def rows(self, ids: Tensor, padding_idx: int | None = None) -> Tensor:  # noqa: ARG002
        return nn.functional.embedding(ids, self.coefficients)

    def product(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.coefficients)


class _Embedding(TableEmbedding, _AsIs):
    pass


class _Linear(TableLinear, _AsIs):
    pass


def _as_is(module: Any) -> StoredTable:
    """Return what reads the weight of a dense module as it is."""
    shape = SimpleNamespace(num_embeddings=len(module.weight), embedding_dim=module.weight.shape[1])
    layer: Any
    if isinstance(module, nn.Linear):
        layer = _Linear(shape)
        layer.take_over(module)
    else:
        layer = _Embedding(shape, padding_idx=module.padding_idx, scale=scale_of(module))
        layer.dense_class = dense_class_of(module)
    layer.coefficients = module.weight
    result: StoredTable = layer
    return result
