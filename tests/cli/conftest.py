"""Tiny models on disk, and the command line run in process through its real entry."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from safetensors.torch import load_file, save_file

import kflats as library
from kflats_command import run

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, 200))]
"""The vocabulary of the tiny models: the id of ``w7`` is 7."""

TABLE = "embeddings.word_embeddings"


@dataclass(frozen=True)
class Result:
    """What one run of the command line gave."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that hold something."""
        return [line for line in self.err.splitlines() if line.strip()]

    @property
    def json(self) -> Any:
        """The document in the last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


Cli = Callable[..., Result]


@pytest.fixture
def kflats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs ``kflats`` with the given words."""

    def call(*words: object) -> Result:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", ["kflats", *map(str, words)])
        capsys.readouterr()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
        handlers = {number: signal.getsignal(number) for number in numbers}
        try:
            with pytest.raises(SystemExit, match=r"^\d+$") as exit_info:
                run()
        finally:  # the process would end here
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return Result(int(str(exit_info.value)), captured.out, captured.err)

    return call


def save_tiny(folder: Path, kind: str, *, tokenizer: bool = True) -> Path:
    """Save a BERT of width 16 with random weights, and a tokenizer of its 200 words."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    torch.manual_seed(0)
    getattr(transformers, kind)(config).save_pretrained(folder)
    if tokenizer:
        vocabulary = {word: index for index, word in enumerate(WORDS)}
        transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertModel with a tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("models") / "bert", "BertModel")


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertForMaskedLM, whose output head is its token table."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tied", "BertForMaskedLM")


@pytest.fixture(scope="session")
def without_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertModel alone."""
    folder = tmp_path_factory.mktemp("models") / "alone"
    return save_tiny(folder, "BertModel", tokenizer=False)


@pytest.fixture
def with_nan(tmp_path: Path) -> Path:
    """A BertModel with a NaN in row 7 of its token table."""
    folder = save_tiny(tmp_path / "nan", "BertModel")
    weights = load_file(folder / "model.safetensors")
    weights[f"{TABLE}.weight"][7, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder to write into."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 20 kB, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def table_of(folder: Path) -> torch.Tensor:
    """Return the token table of a dense tiny model."""
    return load_file(folder / "model.safetensors")[f"{TABLE}.weight"]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def spoken(words: tuple[object, ...]) -> str:
    return " ".join(map(str, words)) or "nothing"


def dense_table(folder: Path) -> torch.Tensor:
    model = library.load(folder)
    weight: torch.Tensor = model.get_input_embeddings().to_embedding().weight.detach()
    return weight
