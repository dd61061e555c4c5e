"""Static embedding models of sentence-transformers: a tokenizer and a table, nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import kflats
from kflats import CheckpointError, CompressionConfig, InputError
from kflats.layers import TableBag
from kflats.models import open_model, tokenizer_of
from kflats.storage.info import folder_info
from tests.conftest import spectral_table

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from tests.hf.static import (
    KINDS,
    METHODS,
    TEXTS,
    bag_of,
    compressed,
    dense,
    encode,
    model2vec_folder,
    tokenizer,
)
from tests.promises import assert_same_model, assert_same_outputs, assert_same_tensors, fingerprints

SCRIPT = """
import sys
if sys.argv[3] == "first":
    import sentence_transformers
import kflats
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tests.promises import fingerprints

encoder = SentenceTransformer(sys.argv[1], device="cpu")
found = encoder.encode(sys.argv[4:], convert_to_tensor=True)
save_file({"found": found}, sys.argv[2], metadata=fingerprints(encoder))
print(type(encoder[0].embedding).__name__)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A compressed model on disk."""
    compressed().save_pretrained(str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.mark.parametrize("method", METHODS)
def test_tensors_and_embeddings_are_the_same_after_loading(method: str, tmp_path: Path) -> None:
    model = compressed(method)
    assert type(bag_of(model)) is KINDS[method]
    model.save_pretrained(str(tmp_path / "out"))
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert type(bag_of(loaded)) is KINDS[method]
    assert_same_model(loaded, model, encode)
    assert bool(encode(model)[[0, 1, 3, 4]].any(1).all())
    assert loaded[0].embedding_dim == 24


@pytest.mark.parametrize("method", METHODS)
def test_kflats_saves_and_loads_too(method: str, tmp_path: Path) -> None:
    model = compressed(method)
    kflats.save(model, tmp_path / "out")
    assert_same_model(kflats.load(tmp_path / "out"), model, encode)
    assert "from sentence_transformers import" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("order", ["first", "last"])
def test_fresh_process_loads_it_in_any_order_of_imports(
    folder: Path, tmp_path: Path, order: str
) -> None:
    words = [str(folder), str(tmp_path / "found"), order, *TEXTS]
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", SCRIPT, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout.split()[-1] == "FactorizedEmbeddingBag"
    expected = SentenceTransformer(str(folder), device="cpu")
    with safe_open(tmp_path / "found", framework="pt") as file:
        assert file.metadata() == fingerprints(expected)
        assert_same_outputs(file.get_tensor("found"), encode(expected))


def test_loading_never_builds_the_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: TableBag) -> Tensor:
        raise AssertionError("the dense table was built")

    made = []
    original = torch.nn.EmbeddingBag.__init__

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self.weight.is_meta)

    monkeypatch.setattr(TableBag, "dense_rows", refuse)
    monkeypatch.setattr(torch.nn.EmbeddingBag, "__init__", watched)
    encode(SentenceTransformer(str(folder), device="cpu"))
    assert made == [True]


def test_folder_holds_the_factors_alone(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    assert {"kflats.json", "model.safetensors", "modules.json", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith(".bin")]
    tensors = load_file(folder / "model.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 0.7 * 401 * 24 * 4
    assert all(name.startswith("embedding.") for name in tensors)
    assert tensors["embedding.weight"].ndim == 1


def test_folder_is_described(folder: Path) -> None:
    found = folder_info(folder)
    (table,) = found.tables
    assert (found.architecture, table.name) == ("SentenceTransformer", "embedding")
    assert (table.shape.num_embeddings, table.shape.embedding_dim) == (401, 24)
    assert found.tensor_bytes == table.num_bytes < table.dense_bytes


def test_pickles_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="would write a pickle"):
        compressed().save_pretrained(str(tmp_path / "out"), safe_serialization=False)


def test_dense_models_go_the_usual_way(tmp_path: Path) -> None:
    model = dense()
    model.save_pretrained(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "kflats.json").exists()
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert type(loaded[0].embedding) is torch.nn.EmbeddingBag
    assert torch.equal(encode(loaded), encode(model))


@pytest.mark.parametrize("method", METHODS)
def test_dense_form_replaces_the_compressed_one_on_disk(method: str, tmp_path: Path) -> None:
    model = compressed(method)
    model.save_pretrained(str(tmp_path / "out"))
    expected = encode(model)
    kflats.to_dense_(model)
    model.save_pretrained(str(tmp_path / "out"))
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {"embedding.weight"}
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert type(loaded[0].embedding) is torch.nn.EmbeddingBag
    torch.testing.assert_close(encode(loaded), expected)


def test_table_in_a_subfolder_is_found(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Router

    static = compressed()[0]
    router = Router.for_query_document(query_modules=[static], document_modules=[dense()[0]])
    model = SentenceTransformer(modules=[router], device="cpu")
    kflats.save(model, tmp_path / "out")
    loaded = kflats.load(tmp_path / "out", device="cpu")
    assert_same_tensors(loaded, model)
    for task in ("encode_query", "encode_document"):
        found, expected = (
            getattr(each, task)(TEXTS, convert_to_tensor=True) for each in (loaded, model)
        )
        assert_same_outputs(found, expected)
    assert folder_info(tmp_path / "out").tables[0].name == "embedding"


def test_trainer_trains_the_factors(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    datasets = pytest.importorskip("datasets")
    from sentence_transformers import SentenceTransformerTrainer as Trainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    model = compressed()
    before = {key: value.detach().clone() for key, value in bag_of(model).named_parameters()}
    pairs = {"first": TEXTS[:2], "second": TEXTS[3:], "score": [0.9, 0.1]}
    settings = Arguments(
        str(tmp_path / "run"), max_steps=2, learning_rate=1e-2, use_cpu=True, report_to=[],
        save_strategy="steps", save_steps=2, disable_tqdm=True,
    )  # fmt: skip
    data = datasets.Dataset.from_dict(pairs)
    Trainer(model, settings, train_dataset=data, loss=CosineSimilarityLoss(model)).train()
    assert not any(torch.equal(each, before[key]) for key, each in bag_of(model).named_parameters())
    loaded = SentenceTransformer(str(tmp_path / "run" / "checkpoint-2"), device="cpu")
    assert_same_model(loaded, model.eval(), encode)


def test_model2vec_folder_opens_without_model2vec(tmp_path: Path) -> None:
    model = open_model(str(model2vec_folder(tmp_path / "potion")))
    found = encode(model)
    row = torch.stack([3.0 + torch.arange(8.0)])  # of w7, the tokens 6 and 7 have row 3
    torch.testing.assert_close(found[1:2], torch.nn.functional.normalize(row))


def test_model2vec_function_gives_a_table_to_compress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class StaticModel:
        embedding = spectral_table(401).numpy()

        @classmethod
        def from_pretrained(cls, _: str) -> Any:
            made = cls()
            made.tokenizer = tokenizer()  # type: ignore[attr-defined]
            return made

    module = type(sys)("model2vec")
    module.StaticModel = StaticModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "model2vec", module)
    static = StaticEmbedding.from_model2vec("some/potion")
    model = SentenceTransformer(modules=[static], device="cpu")
    kflats.compress_(model, CompressionConfig(**METHODS["codes"]))
    model.save_pretrained(str(tmp_path / "out"))
    assert_same_model(SentenceTransformer(str(tmp_path / "out")), model, encode)


def test_tokenizer_counts_as_those_of_transformers_do() -> None:
    found = tokenizer_of(dense(), "unused")
    assert found(["w7 unheard"])["input_ids"] == [[7, 0]]
    assert found.all_special_ids == [1]


def test_installing_twice_wraps_once() -> None:
    from sentence_transformers.sentence_transformer.modules import static_embedding

    from kflats.hf.static import install

    before = dict(vars(StaticEmbedding))
    install(static_embedding)
    assert dict(vars(StaticEmbedding)) == before


def test_one_layer_alone_cannot_become_dense() -> None:
    with pytest.raises(InputError, match=r"to_bag\(\)"):
        kflats.to_dense_(bag_of(compressed()))
