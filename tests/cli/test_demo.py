from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kflats as library
from kflats import CheckpointError
from kflats.cli.demo import ROUNDING, _check
from tests.cli.conftest import Cli, left_in

PNG = b"\x89PNG\r\n\x1a\n"


def test_demo_keeps_an_existing_folder(kflats: Cli, place: Path) -> None:
    result = kflats("demo", "-o", place)
    (line,) = result.errors
    assert result.code == 1
    assert "exists already" in line
    assert left_in(place) == []


class Encoder(nn.Linear):
    """Answers what its weight says, times a factor that is no tensor."""

    def __init__(self, factor: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(2, 3, bias=False, dtype=dtype)
        self.factor = factor
        nn.init.ones_(self.weight)

    def encode(self, texts: list[str], convert_to_tensor: bool) -> Tensor:
        assert convert_to_tensor
        return self.factor * self.weight.detach()[:1].expand(len(texts), 2)


def test_reloaded_model_may_differ_by_rounding_only() -> None:
    assert _check(Encoder(), Encoder(), Path("out")) == 0
    assert 0 < _check(Encoder(1 + 3e-7), Encoder(), Path("out")) <= ROUNDING
    for factor in (1 + 3 * ROUNDING, float("nan")):
        with pytest.raises(CheckpointError, match="out gives other embeddings"):
            _check(Encoder(factor), Encoder(), Path("out"))


def test_reloaded_model_has_the_same_tensors() -> None:
    changed, more = Encoder(), Encoder()
    nn.init.constant_(changed.weight[2], 1 + 1e-7)
    more.register_buffer("extra", torch.zeros(1))
    for other, name in (
        (changed, "weight"),
        (Encoder(dtype=torch.float16), "weight"),
        (more, "extra"),
    ):
        for pair in ((other, Encoder()), (Encoder(), other)):
            with pytest.raises(CheckpointError, match=f"another tensor '{name}'"):
                _check(*pair, Path("out"))


@pytest.mark.slow
def test_demo_saves_a_model_that_encodes(
    kflats: Cli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kflats.cli.demo.COMPRESSIONS", (0.4,))
    monkeypatch.setattr("kflats.cli.demo.CLUSTERS", (1, 2))
    result = kflats("demo", "-o", place / "demo", "--json")
    vectors = library.load(place / "demo" / "model").encode(["A boat departs early."])
    assert result.code == 0
    assert result.json["saved"]["identical_after_reload"]
    assert result.json["saved"]["embedding_difference"] <= ROUNDING
    assert (place / "demo" / "errors.png").read_bytes().startswith(PNG)
    assert vectors.shape == (1, 384)
