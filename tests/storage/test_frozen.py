"""What trains of a model that was loaded: the same as before it was saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kflats
from kflats import CompressionConfig
from kflats.layers.coded import CodedTable
from kflats.storage.manifest import factor_layers
from tests.conftest import tiny_bert
from tests.hf.models import tiny_gpt2

transformers = pytest.importorskip("transformers")

FORMS: dict[str, dict[str, Any]] = {
    "codes": {"method": "codes", "target_bytes": 4_800},
    "factors": {"compression": 0.4, "n_clusters": 2},
}


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(200, 16), nn.Linear(16, 3))


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return plain()


def sentence_model() -> Any:
    import tempfile

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    from tests.training.test_healing import tokenizer

    with tempfile.TemporaryDirectory() as place:
        tiny_bert().save_pretrained(place)
        tokenizer().save_pretrained(place)
        transformer = Transformer(place)
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")


def static_model() -> Any:
    from tests.hf.static import dense

    return dense()


def by_sentence_transformers(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def by_class(name: str) -> Callable[[Path], Any]:
    return lambda folder: getattr(transformers, name).from_pretrained(folder)


def by_device_map(folder: Path) -> Any:
    pytest.importorskip("accelerate")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")


def bert() -> Any:
    return tiny_bert("BertForMaskedLM")


ROUTES: dict[str, tuple[Callable[[], Any], Callable[[Path], Any]]] = {
    "load": (bert, kflats.load),
    "class": (bert, by_class("BertForMaskedLM")),
    "base class": (bert, by_class("AutoModel")),
    "tied head": (tiny_gpt2, kflats.load),
    "device map": (tiny_gpt2, by_device_map),
    "plain": (plain, lambda folder: kflats.load(folder, model=plain())),
    "plain on meta": (plain, lambda folder: kflats.load(folder, model=on_meta())),
    "sentence-transformers": (sentence_model, by_sentence_transformers),
    "load a sentence model": (sentence_model, kflats.load),
    "static": (static_model, by_sentence_transformers),
    "load a static model": (static_model, kflats.load),
}


def flags(model: nn.Module) -> dict[str, bool]:
    """Return whether each parameter trains, by its name in the base model."""
    found = {name: each.requires_grad for name, each in model.named_parameters()}
    return {name.removeprefix("bert."): each for name, each in found.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("route", ROUTES)
def test_a_loaded_model_trains_what_a_new_one_does(route: str, form: str, tmp_path: Path) -> None:
    make, read = ROUTES[route]
    model = make()
    kflats.compress_(model, CompressionConfig(**FORMS[form]))
    kflats.save(model, tmp_path / "out")
    loaded = read(tmp_path / "out")
    known, found = flags(model), flags(loaded)
    common = known.keys() & found.keys()
    assert len(common) > len(found) / 2
    assert {name: known[name] for name in common} == {name: found[name] for name in common}
    layers = factor_layers(loaded).values()
    packed = [each for each in layers if isinstance(each, CodedTable)]
    assert len(packed) == (len(layers) if form == "codes" else 0)
    for layer in packed:
        tensors = [getattr(layer, name) for name in layer.FACTORS]
        assert not any(each.requires_grad for each in tensors if each is not None)


def test_an_entropy_coded_table_is_frozen_too(tmp_path: Path) -> None:
    pytest.importorskip("constriction")
    model = bert()
    kflats.compress_(model, CompressionConfig(**FORMS["codes"]))
    kflats.save(model, tmp_path / "out", entropy=True)
    loaded = kflats.load(tmp_path / "out")
    assert flags(loaded) == flags(model)
