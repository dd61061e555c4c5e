from __future__ import annotations

from pathlib import Path

import pytest

import kflats as library
from tests.cli.conftest import Cli, left_in

PNG = b"\x89PNG\r\n\x1a\n"


def test_demo_keeps_an_existing_folder(kflats: Cli, place: Path) -> None:
    result = kflats("demo", "-o", place)
    (line,) = result.errors
    assert result.code == 1
    assert "exists already" in line
    assert left_in(place) == []


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
    assert (place / "demo" / "errors.png").read_bytes().startswith(PNG)
    assert vectors.shape == (1, 384)
