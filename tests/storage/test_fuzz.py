"""A short run of the fuzzer; ``python -m tests.storage.fuzz`` makes long ones."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.storage import fuzz
from tests.storage.fuzzing.forms import Form, all_forms, plain_forms
from tests.storage.fuzzing.mutants import Mutant, mutate

pytest.importorskip("sentence_transformers")


def bad(forms: tuple[Form, ...], count: int, seed: int) -> list[str]:
    """Return what a run reports besides its progress."""
    found: list[str] = []
    counts = fuzz.run(forms, range(count), seed, found.append)
    assert sum(row.total() for row in counts.values()) == count
    assert sum(row["refused"] for row in counts.values()) > count / 2
    return [text for text in found if not text.endswith("done")]


def test_changed_plain_folders_are_refused_or_the_same() -> None:
    assert bad(tuple(plain_forms()[::3]), 300, 1) == []


@pytest.mark.slow
def test_changed_folders_of_every_form_are_refused_or_the_same() -> None:
    assert bad(all_forms(), 5000, 2) == []


def test_mutants_follow_from_their_number(tmp_path: Path) -> None:
    plain_forms()[0].write(tmp_path / "out")
    files = fuzz.read_folder(tmp_path / "out")
    assert mutate(Random("1:2"), files) == mutate(Random("1:2"), files)
    assert len({str(mutate(Random(f"1:{n}"), files)) for n in range(20)}) > 15


def test_the_fuzzer_tells_what_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fuzz.Original(plain_forms()[0], tmp_path / "out")
    mutant = Mutant(original.files, "values", "")

    def say(error: Exception | None) -> str:
        def ask(way: int, folder: Path) -> object:
            if error is not None:
                raise error
            return [*original.said[0][0], "more"], original.said[0][1]

        monkeypatch.setattr(original, "ask", ask)
        return fuzz.outcome(original, mutant, 0, tmp_path / "out", old=False)

    assert say(None) == "SILENT"
    assert say(IndexError("out of range")) == "CRASH"
    assert say(RuntimeError("can't allocate memory: 1 byte")) == "LARGE"
    monkeypatch.undo()
    assert fuzz.outcome(original, mutant, 0, tmp_path / "out", old=False) == "same"


def test_memory_is_limited() -> None:
    import torch

    with pytest.raises(RuntimeError, match="memory"), fuzz.limited(1 << 20):
        torch.empty(1 << 30, dtype=torch.uint8)
    torch.empty(1 << 26, dtype=torch.uint8)
