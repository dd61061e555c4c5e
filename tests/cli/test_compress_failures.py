from __future__ import annotations

from pathlib import Path

import pytest

import kflats as library
from tests.cli.conftest import TABLE, Cli, left_in, spoken

FAILING_JOBS: list[tuple[tuple[object, ...], str]] = [
    (("--target-size", "100B", "--method", "flats"), "100 bytes cannot be met"),
    (("--target-size", "100B"), "100 bytes are too few for every method"),
    (("--bits", 2, "--metric", "sts=absent"), "absent does not exist"),
    (("--compression", 0.999), "compression=0.999 cannot be met"),
    (("--compression", 0.4, "--clusters", 500), "n_clusters=500"),
    (("--rank", 15, "--clusters", 20), "lower the rank"),
    (("--rank", 17, "--clusters", 3), "rank=17 must be between 0 and"),
    (("--compression", 0.4, "--module", "foo"), "'foo' is no dense embedding or head"),
    (("--compression", 0.4, "--device", "foo"), "device='foo'"),
    (("--compression", 0.4, "--weights", "absent.txt"), "absent.txt is not a file"),
]


@pytest.mark.parametrize(
    ("words", "reason"), FAILING_JOBS, ids=[spoken(words) for words, _ in FAILING_JOBS]
)
def test_failed_job_exits_1_and_leaves_nothing(
    kflats: Cli, bert: Path, place: Path, words: tuple[object, ...], reason: str
) -> None:
    result = kflats("compress", bert, "-o", place / "out", *words)
    (line,) = result.errors
    assert result.code == 1
    assert line.startswith("error: ")
    assert reason in line
    assert (result.out, left_in(place)) == ("", [])


def test_error_is_all_that_stderr_holds(kflats: Cli, bert: Path, place: Path) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--target-size", "100B")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


def test_smallest_number_of_clusters_is_not_advised_to_shrink(
    kflats: Cli, bert: Path, place: Path
) -> None:
    words = ("--target-size", "100B", "--method", "flats")
    result = kflats("compress", bert, "-o", place / "out", *words)
    assert "n_clusters=1 " in result.err
    assert "fewer clusters" not in result.err


def test_missing_model_folder_is_named(kflats: Cli, tmp_path: Path, place: Path) -> None:
    missing = tmp_path / "missing"
    result = kflats("compress", missing, "-o", place / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert f"{missing} is no model folder" in line


def test_unreachable_hub_name_is_one_line(kflats: Cli, place: Path) -> None:
    result = kflats("compress", "no-such-model", "-o", place / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert "cannot load 'no-such-model'" in line


def test_truncated_weights_are_one_line(
    kflats: Cli, without_tokenizer: Path, place: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, size in (("config.json", None), ("model.safetensors", 3000)):
        (broken / name).write_bytes((without_tokenizer / name).read_bytes()[:size])
    result = kflats("compress", broken, "-o", place / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert f"cannot load '{broken}'" in line


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_existing_output_is_kept(kflats: Cli, bert: Path, place: Path, kind: str) -> None:
    out = place / "out"
    out.mkdir() if kind == "folder" else out.touch()
    result = kflats("compress", bert, "-o", out, "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert "out exists already" in line
    assert left_in(place) == ["out"]


def test_existing_output_is_noticed_before_the_model_is_loaded(
    kflats: Cli, tmp_path: Path, place: Path
) -> None:
    result = kflats("compress", tmp_path / "missing", "-o", place, "--compression", 0.4)
    (line,) = result.errors
    assert "place exists already" in line


def test_output_below_a_file_is_refused(kflats: Cli, bert: Path, place: Path) -> None:
    (place / "file").write_text("kept")
    result = kflats("compress", bert, "-o", place / "file" / "out", "--rank", 4, "--clusters", 2)
    (line,) = result.errors
    assert result.code == 1
    assert "cannot write to" in line
    assert (place / "file").read_text() == "kept"


def test_nan_in_the_table_names_the_row(kflats: Cli, with_nan: Path, place: Path) -> None:
    result = kflats("compress", with_nan, "-o", place / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert f"'{TABLE}'" in line
    assert "NaN or infinity, first in row 7" in line
    assert left_in(place) == []


def test_compressed_model_is_refused(kflats: Cli, bert: Path, place: Path) -> None:
    kflats("compress", bert, "-o", place / "once", "--rank", 4, "--clusters", 2)
    result = kflats("compress", place / "once", "-o", place / "twice", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert "the token table is already factorised" in line
    assert left_in(place) == ["once"]


def test_full_disk_is_one_line_and_leaves_nothing(
    kflats: Cli, bert: Path, place: Path, small_files: None
) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--rank", 4, "--clusters", 2)
    (line,) = result.errors
    assert result.code == 1
    assert "cannot write" in line
    assert left_in(place) == []


@pytest.mark.parametrize(
    "target",
    ["kflats.clustering.runs.refine", "kflats.storage.folder._write_json"],
    ids=["clustering", "saving"],
)
def test_interrupt_exits_130_and_leaves_nothing(
    kflats: Cli, bert: Path, place: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    seen = []

    def interrupt(*args: object, **options: object) -> None:
        seen.append(left_in(place))
        raise KeyboardInterrupt

    monkeypatch.setattr(target, interrupt)
    result = kflats("compress", bert, "-o", place / "out", "--rank", 4, "--clusters", 2)
    assert (result.code, len(seen), left_in(place)) == (130, 1, [])


def test_interrupt_is_confirmed(
    kflats: Cli, bert: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kflats.clustering.runs.refine", interrupt)
    result = kflats("compress", bert, "-o", place / "out", "--rank", 4, "--clusters", 2)
    assert "interrupted" in result.err


def test_debug_shows_the_error_itself(kflats: Cli, tmp_path: Path) -> None:
    words = ("compress", tmp_path / "missing", "-o", tmp_path / "out", "--compression", 0.4)
    with pytest.raises(library.CheckpointError, match="is no model folder"):
        kflats("--debug", *words)
    assert kflats(*words).code == 1


def test_unusable_place_is_refused_before_any_work(
    kflats: Cli, bert: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").touch()
    monkeypatch.setattr(
        "kflats.models.open_model", lambda *_, **__: pytest.fail("model was loaded")
    )
    result = kflats("compress", bert, "-o", place / "file" / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert line.startswith("error: cannot write to")
