"""A tiny classifier and made-up data in the form of GLUE, so that a run takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, 300))]

TOML = """
model = "{model}"
data = "{data}"
tasks = ["rte", "stsb"]
compressions = [0.3, 0.6]
n_clusters = [2, 3]
seeds = [0]

[training]
epochs = 1
extra_epochs = 1
batch_size = 16
learning_rate = 1e-3
"""


def write_task(folder: Path, task: str, columns: tuple[str, ...], n: int, **changes: Any) -> None:
    """Write a task whose label is whether (or how much) the first text has small words."""
    from datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    for split, size in (("train", n), ("validation", n // 2)):
        numbers = torch.randint(5, 300, (size, len(columns), 6), generator=generator)
        small = (numbers[:, 0] < 150).float().mean(1)
        labels = (5 * small).tolist() if task == "stsb" else (small > 0.5).long().tolist()
        rows: dict[str, Any] = {
            column: [" ".join(f"w{word}" for word in row) for row in numbers[:, place].tolist()]
            for place, column in enumerate(columns)
        }
        rows |= {"label": labels, "idx": list(range(size))} | changes
        path = folder / task / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows).to_parquet(str(path))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up RTE, STS-B, WNLI and CoLA."""
    folder = tmp_path_factory.mktemp("glue")
    write_task(folder, "rte", ("sentence1", "sentence2"), 60)
    write_task(folder, "stsb", ("sentence1", "sentence2"), 60)
    write_task(folder, "wnli", ("sentence1", "sentence2"), 60)
    write_task(folder, "cola", ("sentence",), 40)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertModel of width 16 with a tokenizer of 300 words."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path, tiny: Path, data: Path) -> Path:
    """A sweep of 14 runs."""
    path = tmp_path / "sweep.toml"
    path.write_text(TOML.format(model=tiny, data=data))
    return path
