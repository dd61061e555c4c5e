"""``kflats compress --entropy``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kflats as library
from tests.cli.conftest import Cli
from tests.promises import assert_same_model

pytest.importorskip("constriction")
CODES = ("--bits", 6, "--method", "codes")


def test_entropy_tells_both_sizes_and_changes_no_output(
    kflats: Cli, bert: Path, place: Path
) -> None:
    assert kflats("compress", bert, "-o", place / "packed", *CODES).code == 0
    result = kflats("compress", bert, "-o", place / "small", *CODES, "--entropy")
    assert result.code == 0, result.err
    (packed,), (small,) = (
        kflats("info", place / n, "--json").json["tables"] for n in ("packed", "small")
    )
    assert small["num_bytes"] <= packed["num_bytes"]  # frequencies weigh on a table of 200 rows
    assert small["resident_bytes"] == packed["resident_bytes"]
    both = f"{small['num_bytes']:,} bytes on disk, {small['resident_bytes']:,} in memory"
    assert both in " ".join(result.out.split())
    ids = torch.arange(20)[None]
    one, other = (library.load(place / name) for name in ("packed", "small"))
    assert_same_model(one, other, lambda each: each(ids)[0])


def test_entropy_of_factors_is_wrong_usage(kflats: Cli, bert: Path, place: Path) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--compression", 0.4, "--entropy")
    assert result.code == 2
    assert "--entropy is for packed codes, not for method flats" in result.err
    assert not (place / "out").exists()
