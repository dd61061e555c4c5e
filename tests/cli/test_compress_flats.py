"""What the command line offers for flats: effort, row errors, counts and calibration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kflats as library
from tests.cli.conftest import Cli, dense_table, left_in, table_of


def test_default_gives_every_flat_its_own_rank(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--compression", 0.4, "--clusters", 3, "--json")
    (table,) = kflats("compress", bert, "-o", place / "out", *words).json["tables"]
    shape = library.FactorShape.from_dict(table["shape"])
    assert (table["method"], shape.echelon, shape.affine) == ("flats", True, True)
    assert len(table["ranks"]) == shape.n_clusters <= 3
    assert 0.4 <= shape.compression < 0.42
    plain = kflats("compress", bert, "-o", place / "svd", *words[:2], "--method", "svd", "--json")
    assert table["relative_error"] < plain.json["tables"][0]["relative_error"]


@pytest.mark.parametrize("option", ["--effort fast", "--relative 1", "--linear"])
def test_options_change_the_factors_within_the_size(
    kflats: Cli, bert: Path, place: Path, option: str
) -> None:
    words = ("--compression", 0.5)
    kflats("compress", bert, "-o", place / "plain", *words)
    changed = kflats("compress", bert, "-o", place / "new", *words, *option.split(), "--json")
    assert changed.code == 0
    assert 0.5 <= changed.json["tables"][0]["compression"] < 0.53
    assert not torch.equal(dense_table(place / "new"), dense_table(place / "plain"))


def test_size_in_bytes_is_met_to_the_byte_of_the_file(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--target-size", "7kB", "--method", "flats", "--keep-special", "--json")
    (table,) = kflats("compress", bert, "-o", place / "out", *words).json["tables"]
    assert 6500 < table["bytes_after"] <= 7000


def test_counts_come_from_a_parquet_column_with_smoothing_and_power(
    kflats: Cli, bert: Path, place: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    parquet.write_table(table({"story": ["w11 w12 w13"] * 3000}), tmp_path / "a.parquet")
    size = ("--rank", 4, "--clusters", 2, "--relative", 0)
    counts = ("--weights", tmp_path / "a.parquet", "--column", "story")
    kflats("compress", bert, "-o", place / "plain", *size)
    kflats("compress", bert, "-o", place / "soft", *size, *counts, "--smoothing", 1e9)
    kflats("compress", bert, "-o", place / "hard", *size, *counts, "--power", 1)
    rows = slice(11, 14)
    plain, soft, hard = (
        library.relative_error(table_of(bert)[rows], dense_table(place / name)[rows])
        for name in ("plain", "soft", "hard")
    )
    assert hard < 0.1 * plain
    assert soft == pytest.approx(plain, rel=0.05)
    missing = kflats("compress", bert, "-o", place / "no", *size, *counts[:2])
    assert (missing.code, left_in(place / "no") if (place / "no").exists() else []) == (1, [])
    assert "has no column 'text'; it has story" in missing.errors[0]


def test_calibration_uses_the_text(kflats: Cli, bert: Path, place: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w11 w12 w13\nw20 w30 w40 w50\n" * 10)
    words = ("--compression", 0.5, "--clusters", 2)
    kflats("compress", bert, "-o", place / "plain", *words)
    result = kflats("compress", bert, "-o", place / "new", *words, "--calibrate", text)
    assert result.code == 0
    assert not torch.equal(dense_table(place / "new"), dense_table(place / "plain"))


@pytest.mark.parametrize(
    ("words", "reason", "code"),
    [
        (("--effort", "huge"), "effort='huge' must be one of", 2),
        (("--relative", 2), "relative=2.0 must be between 0 and 1", 2),
        (("--calibrate", "absent.txt"), "absent.txt is not a file", 1),
        (("--calibrate", __file__, "--method", "svd"), "metric needs method='flats'", 1),
    ],
)
def test_wrong_options_leave_nothing(
    kflats: Cli, bert: Path, place: Path, words: tuple[object, ...], reason: str, code: int
) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--compression", 0.4, *words)
    (line,) = result.errors
    assert (result.code, left_in(place)) == (code, [])
    assert reason in line
