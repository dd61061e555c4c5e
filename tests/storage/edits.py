"""Changes of a saved folder, as a stranger or a bad disk makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import kflats
from kflats import CompressionConfig
from tests.conftest import tiny_bert
from tests.storage.test_folder import CONFIG

NAME = "embeddings.word_embeddings"
CODES = CompressionConfig(bits=7, n_clusters=1, exact_ids=(0, 3))
Edit = Callable[[Path], None]


_made: dict[int, Any] = {}


def saved(folder: Path, config: CompressionConfig = CONFIG, **options: Any) -> Any:
    """Save a compressed model; it is made once for each config."""
    if id(config) not in _made:
        _made[id(config)] = tiny_bert()
        kflats.compress_(_made[id(config)], config)
    model = deepcopy(_made[id(config)])
    kflats.save(model, folder, **options)
    return model


def edit_config(change: Callable[[dict[str, Any]], Any]) -> Edit:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        change(data)
        (folder / "config.json").write_text(json.dumps(data))

    return edit


def edit_block(change: Callable[[dict[str, Any]], Any]) -> Edit:
    return edit_config(lambda data: change(data["quantization_config"]))


def edit_shape(change: Callable[[dict[str, Any]], Any]) -> Edit:
    return edit_block(lambda block: change(block["layers"]["tables"][NAME]["shape"]))


def edit_module(**values: Any) -> Edit:
    return edit_block(lambda block: block["layers"]["modules"][NAME].update(values))


def edit_tensor(leaf: str, change: Callable[[Tensor], Tensor]) -> Edit:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{NAME}.{leaf}"] = change(tensors[f"{NAME}.{leaf}"].clone())
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def with_value(value: float, place: int = 0) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[place] = value
        return tensor

    return change


def negative(dtype: torch.dtype) -> Edit:
    return edit_tensor("kflats_labels", lambda t: with_value(-1)(t.to(dtype)))


def one_more_row(shape: dict[str, Any]) -> None:
    shape["num_embeddings"] += 1
    shape["counts"][0] += 1


def huge(shape: dict[str, Any]) -> None:
    shape["counts"] = [2**40] * len(shape["counts"])
    shape["num_embeddings"] = 2**40 * len(shape["counts"])


def other_reader(block: dict[str, Any]) -> None:
    module = dict(block["layers"]["modules"][NAME], kind="embedding")
    block["layers"]["modules"]["embeddings.token_type_embeddings"] = module


def writes(name: str, text: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).write_text(text)

    return edit


def deep(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:-2] + ', "x": ' + "[" * 50_000 + "]" * 50_000 + "}")


def deep_origin(folder: Path) -> None:
    value: Any = []
    for _ in range(200):
        value = [value]
    edit_block(lambda block: block["layers"]["tables"][NAME]["origin"].update(x=value))(folder)


def not_finite(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"scale": 1.0', '"scale": 1e999'))
