"""sentence-transformers: compressed encoders are saved, loaded and trained as usual."""

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
from kflats import CompressionConfig, CompressionReport, FactorizedEmbedding
from kflats.hf import KFlatsConfig
from kflats.storage.manifest import factor_layers
from tests.conftest import tiny_bert
from tests.promises import assert_same_model, assert_same_outputs, fingerprints

pytest.importorskip("sentence_transformers")

from sentence_transformers import CrossEncoder, SentenceTransformer

TEXTS = ["The ferry leaves at seven.", "A boat departs early.", "Nobody eats the bread."]
SCRIPT = """
import sys
import kflats
from sentence_transformers import SentenceTransformer
from safetensors.torch import save_file
from tests.promises import fingerprints

encoder = SentenceTransformer(sys.argv[1], device="cpu")
found = encoder.encode(sys.argv[3:], convert_to_tensor=True)
save_file({"found": found}, sys.argv[2], metadata=fingerprints(encoder))
print(type(encoder[0].auto_model.get_input_embeddings()).__name__)
"""
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a ferry boat leaves at early seven bread eats"


@pytest.fixture(scope="module")
def minilm(
    minilm_path: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SentenceTransformer, CompressionReport, Path]:
    """Give compressed MiniLM, the report, and the folder with it and the dense one."""
    folder = tmp_path_factory.mktemp("minilm")
    encoder = SentenceTransformer(minilm_path, device="cpu")
    encoder.save_pretrained(str(folder / "dense"))
    config = CompressionConfig(compression=0.4, n_clusters=2, options={"max_iter": 3})
    report = kflats.compress_(encoder, config)
    encoder.save_pretrained(str(folder / "compressed"))
    return encoder, report, folder


def encode(encoder: SentenceTransformer) -> Tensor:
    found: Tensor = encoder.encode(TEXTS, convert_to_tensor=True)
    return found


def tensor_bytes(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())


def test_fresh_process_gives_the_same_tensors_and_embeddings(
    minilm: tuple[SentenceTransformer, CompressionReport, Path], tmp_path: Path
) -> None:
    encoder, _, folder = minilm
    places = [str(folder / "compressed"), str(tmp_path / "found")]
    command = [sys.executable, "-c", SCRIPT, *places, *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout.split()[-1] == "FactorizedEmbedding"
    with safe_open(tmp_path / "found", framework="pt") as file:
        assert file.metadata() == fingerprints(encoder)
        assert_same_outputs(file.get_tensor("found"), encode(encoder))


def test_folder_is_smaller_by_what_the_report_says(
    minilm: tuple[SentenceTransformer, CompressionReport, Path],
) -> None:
    _, report, folder = minilm
    (table,) = report.tables
    saved = tensor_bytes(folder / "dense") - tensor_bytes(folder / "compressed")
    assert saved == table.bytes_before - table.bytes_after > 15_000_000


def test_dense_form_is_an_ordinary_encoder(
    minilm: tuple[SentenceTransformer, CompressionReport, Path], tmp_path: Path
) -> None:
    encoder, _, folder = minilm
    loaded = SentenceTransformer(str(folder / "compressed"), device="cpu")
    kflats.to_dense_(loaded)
    loaded.save_pretrained(str(tmp_path / "out"))
    assert "kflats" not in (tmp_path / "out" / "config.json").read_text()
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(folder / "dense")
    found = encode(SentenceTransformer(str(tmp_path / "out"), device="cpu"))
    torch.testing.assert_close(found, encode(encoder), rtol=1e-4, atol=1e-5)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Give a folder with a dense tiny BERT and a tokenizer of a few words."""
    from transformers import BertTokenizer

    folder = tmp_path / "tiny"
    tiny_bert().save_pretrained(folder)
    (tmp_path / "vocab.txt").write_text(WORDS.replace(" ", "\n"))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    return folder


def pairs() -> Any:
    pytest.importorskip("accelerate")
    datasets = pytest.importorskip("datasets")
    left = ["the ferry leaves", "a boat leaves early", "bread eats the boat", "at seven"]
    return datasets.Dataset.from_dict(
        {"first": left, "second": left[::-1], "score": [0.9, 0.1, 0.5, 0.3]}
    )


def factors_of(model: torch.nn.Module) -> dict[str, Tensor]:
    (layer,) = factor_layers(model).values()
    return {key: value.detach().clone() for key, value in layer.named_parameters()}


def test_trainer_trains_the_factors_of_an_encoder(tiny: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformerTrainer as Trainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    data = pairs()
    encoder = SentenceTransformer(str(tiny), device="cpu")
    kflats.compress_(encoder, CompressionConfig(compression=0.4, n_clusters=2))
    before = factors_of(encoder)
    settings = Arguments(
        str(tmp_path / "run"), max_steps=2, learning_rate=1e-2, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    loss = CosineSimilarityLoss(encoder)
    Trainer(encoder, settings, train_dataset=data, loss=loss).train()
    after = factors_of(encoder)
    assert {key for key in after if not torch.equal(after[key], before[key])} == {
        "coefficients",
        "bases",
        "means",
    }
    encoder.save_pretrained(str(tmp_path / "out"))
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert_same_model(loaded, encoder, encode)


def test_encoder_is_compressed_while_it_loads(tiny: Path) -> None:
    settings: dict[str, Any] = {"compression": 0.4, "n_clusters": 2}
    found = SentenceTransformer(
        str(tiny), device="cpu", model_kwargs={"quantization_config": KFlatsConfig(**settings)}
    )
    expected = SentenceTransformer(str(tiny), device="cpu")
    kflats.compress_(expected, CompressionConfig(**settings))
    assert type(found[0].auto_model.get_input_embeddings()) is FactorizedEmbedding
    assert_same_model(found, expected, encode)


def test_cross_encoder_trains_and_round_trips(tiny: Path, tmp_path: Path) -> None:
    encoder = CrossEncoder(str(tiny), num_labels=1, device="cpu")
    kflats.compress_(encoder, CompressionConfig(compression=0.4, n_clusters=2))
    before = factors_of(encoder)
    batch = encoder.tokenizer(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    encoder.model(**batch).logits.square().sum().backward()
    optimizer.step()
    after = factors_of(encoder)
    assert not any(torch.equal(after[key], before[key]) for key in before)
    encoder.save_pretrained(str(tmp_path / "out"))
    loaded = CrossEncoder(str(tmp_path / "out"), device="cpu")
    texts = list(zip(TEXTS, TEXTS[::-1], strict=True))
    assert_same_model(
        loaded, encoder.eval(), lambda each: each.predict(texts, convert_to_tensor=True)
    )
