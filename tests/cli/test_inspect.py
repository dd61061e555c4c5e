from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from kflats.analysis.steps import STEPS
from tests.cli.conftest import TABLE, Cli, left_in

PNG = b"\x89PNG\r\n\x1a\n"


def test_inspect_writes_a_png_and_a_table(kflats: Cli, bert: Path, place: Path) -> None:
    plot = place / "new" / "errors.png"
    result = kflats("inspect", bert, "--clusters", "2,3", "--plot", plot)
    heading = next(line for line in result.out.splitlines() if "removed" in line)
    assert result.code == 0
    assert heading.split() == ["removed", "SVD", "k", "=", "2", "k", "=", "3", "flats"]
    assert plot.read_bytes().startswith(PNG)
    assert left_in(plot.parent) == ["errors.png"]


def test_inspect_prints_the_figures_of_its_json(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--clusters", "2", "--compressions", "0.3,0.5", "--json")
    result = kflats("inspect", bert, "--plot", place / "a.png", *words)
    points = result.json["grid"][TABLE]
    printed = [f"{point['relative_error']:.4f} ({min(point['shape']['ranks'])}" for point in points]
    assert len(points) == 6
    assert [point["method"] for point in points] == 2 * ["SVD", "k = 2", "flats"]
    assert all(cell in result.out for cell in printed)


def test_inspect_measures_each_extension(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--clusters", "3", "--compressions", "0.5", "--at", 0.3, "--json")
    result = kflats("inspect", bert, "--plot", place / "a.png", *words)
    rows = result.json["extensions"][TABLE]
    allowed = 0.7 * 200 * 16
    assert [row["name"] for row in rows] == ["SVD", *STEPS, "+ number of flats chosen"]
    assert all(row["num_parameters"] <= allowed for row in rows)
    assert rows[-2]["squared_relative_error"] < rows[0]["squared_relative_error"]
    assert all(f"{row['squared_relative_error']:.4f}" in result.out for row in rows)
    none = kflats("inspect", bert, "--plot", place / "a.png", *words, "--at", 0)
    assert none.json["extensions"] == {}


def test_inspect_lists_every_table(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--clusters", "2", "--compressions", "0.5", "--json")
    tables = kflats("inspect", bert, "--plot", place / "a.png", *words).json["tables"]
    weights = load_file(bert / "model.safetensors")
    total = sum(weight.numel() for weight in weights.values())
    assert [table["shape"] for table in tables] == [[200, 16], [512, 16], [2, 16]]
    assert tables[0]["share"] == pytest.approx(3200 / total)
    assert tables[0]["bytes"] == 12800


def test_inspect_looks_at_the_named_table(kflats: Cli, bert: Path, place: Path) -> None:
    name = "embeddings.position_embeddings"
    words = ("--module", name, "--clusters", "2", "--compressions", "0.5", "--json")
    result = kflats("inspect", bert, "--plot", place / "a.png", *words)
    assert list(result.json["grid"]) == [name]


def test_inspect_looks_at_a_table_tied_to_a_head_once(kflats: Cli, tied: Path, place: Path) -> None:
    words = ("--clusters", "2", "--compressions", "0.5", "--json")
    result = kflats("inspect", tied, "--plot", place / "a.png", *words)
    assert result.code == 0
    assert list(result.json["grid"]) == ["bert.embeddings.word_embeddings"]


@pytest.mark.parametrize(
    "words",
    [
        ("--clusters", "two"),
        ("--clusters", "0"),
        ("--clusters", ""),
        ("--compressions", "1.5"),
        ("--seed", "-1"),
    ],
    ids=" ".join,
)
def test_inspect_refuses_wrong_usage(
    kflats: Cli, bert: Path, place: Path, words: tuple[str, ...]
) -> None:
    result = kflats("inspect", bert, "--plot", place / "a.png", *words)
    assert result.code == 2
    (line,) = result.errors
    assert line.startswith("error: ")
    assert left_in(place) == []


def test_inspect_of_a_table_with_nan_is_one_line(kflats: Cli, with_nan: Path, place: Path) -> None:
    result = kflats("inspect", with_nan, "--plot", place / "a.png")
    (line,) = result.errors
    assert result.code == 1
    assert "NaN or infinity, first in row 7" in line


def test_picture_below_a_file_is_refused(kflats: Cli, bert: Path, place: Path) -> None:
    (place / "file").touch()
    words = ("--clusters", "2", "--compressions", "0.5")
    result = kflats("inspect", bert, "--plot", place / "file" / "a.png", *words)
    (line,) = result.errors
    assert result.code == 1
    assert "cannot write" in line


def test_inspect_says_when_no_size_can_be_met(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--clusters", "2", "--compressions", "0.99")
    result = kflats("inspect", bert, "--plot", place / "a.png", *words)
    (line,) = result.errors
    assert result.code == 1
    assert line.startswith("error: ")
    assert left_in(place) == []
