from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kflats import files
from kflats.errors import CheckpointError
from kflats.files import sweep, temporary_folder, whole_file

_KILLED = """
import os, pathlib, signal, sys
from kflats.files import temporary_folder
with temporary_folder(pathlib.Path(sys.argv[1]), "out") as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""

_WAITING = """
import pathlib, sys
from kflats.files import temporary_folder
with temporary_folder(pathlib.Path(sys.argv[1]), "out") as folder:
    (folder / "file").write_text("half")
    print("made", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary files of its own."""
    folder = tmp_path / "usual"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def _names(place: Path) -> list[str]:
    return sorted(each.name for each in place.iterdir())


def _kill_in(place: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(place)], check=False)
    assert done.returncode == -signal.SIGKILL
    (name,) = _names(place)
    assert name.startswith(".out.kflats-")


def test_file_is_whole_or_not_there(place: Path) -> None:
    with whole_file(place / "deep" / "file") as partial:
        partial.write_text("new")
        assert _names(place / "deep") != ["file"]
    assert (place / "deep" / "file").read_text() == "new"
    with pytest.raises(TypeError), whole_file(place / "deep" / "file") as partial:
        partial.write_text(b"half")  # type: ignore[arg-type]
    assert (place / "deep" / "file").read_text() == "new"
    assert _names(place / "deep") == ["file"]
    with pytest.raises(CheckpointError, match="cannot write"), whole_file(place / "none"):
        pass
    assert _names(place) == ["deep"]


@pytest.mark.parametrize("name", ["", "ü" * 250], ids=["no name", "long"])
def test_temporary_folder_is_gone_afterwards(place: Path, usual: Path, name: str) -> None:
    with temporary_folder(name=name) as folder:
        (folder / "file").touch()
        assert folder.is_relative_to(usual)
        assert (_names(folder), len(_names(usual))) == (["file"], 1)
    assert _names(usual) == []


def test_content_can_be_moved_out(place: Path) -> None:
    with temporary_folder(place, "out") as folder:
        (folder / "file").touch()
        folder.rename(place / "out")
    assert (_names(place), _names(place / "out")) == (["out"], ["file"])


@pytest.mark.parametrize("where", ["place", "usual"])
def test_next_one_beside_removes_what_a_kill_left(place: Path, usual: Path, where: str) -> None:
    _kill_in(place if where == "place" else usual)
    with temporary_folder(place, "other"):
        assert (len(_names(place)), _names(usual)) == (1, [])
    assert _names(place) == []


def test_next_file_beside_removes_what_a_kill_left(place: Path) -> None:
    _kill_in(place)
    with whole_file(place / "file") as partial:
        partial.touch()
    assert _names(place) == ["file"]


def test_folder_of_a_living_process_is_kept(place: Path) -> None:
    words = [sys.executable, "-c", _WAITING, str(place)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == b"made\n"
        (name,) = _names(place)
        sweep(place)
        assert _names(place / name) == ["lock", "new"]
        assert _names(place / name / "new") == ["file"]
        living.communicate()
    assert (living.returncode, _names(place)) == (0, [])


def test_own_folder_is_kept(place: Path) -> None:
    with temporary_folder(place, "one") as one, temporary_folder(place, "two") as two:
        sweep(place)
        assert one.is_dir()
        assert two.is_dir()


def test_what_another_host_left_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _kill_in(place)
    mark = files._mark()
    files._mark.cache_clear()
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    try:
        assert files._mark() != mark
        sweep(place)
        assert len(_names(place)) == 1
    finally:
        files._mark.cache_clear()


def test_names_that_only_look_alike_are_kept(place: Path, usual: Path) -> None:
    (usual / "lock").touch()
    (usual / "new").mkdir()
    (place / f"a{files._mark()}link").symlink_to(usual)
    (place / f"a{files._mark()}file").touch()
    (place / f"a{files._mark()}full").mkdir()
    (place / f"a{files._mark()}full" / "file").touch()
    names = _names(place)
    sweep(place)
    assert (_names(place), _names(usual)) == (names, ["lock", "new"])


def test_folder_of_another_user_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _kill_in(place)
    monkeypatch.setattr(os, "getuid", lambda: -1)
    sweep(place)
    assert len(_names(place)) == 1


def test_where_nothing_can_be_locked_nothing_is_swept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with temporary_folder(place, "out") as folder:
            (name,) = _names(place)
            patch.undo()
            sweep(place)
            assert folder.is_dir()
        assert (name.startswith(".out.kflats-unlocked-"), _names(place)) == (True, [])
        _kill_in(place)
        patch.setattr(fcntl, "flock", refuse)
        sweep(place)
        assert len(_names(place)) == 1


def _before(function: Callable[..., int], act: Callable[[], None]) -> Callable[..., int]:
    """Return a function that lets another act once before it does its own work."""
    acts = [act]

    def patched(*words: object) -> int:
        if acts and words[1] & os.O_CREAT:  # type: ignore[operator]
            acts.pop()()
        return function(*words)

    return patched


def test_folder_swept_before_it_is_locked_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def act() -> None:
        seen.extend(_names(place))
        sweep(place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", _before(os.open, act))
        with temporary_folder(place, "out") as folder:
            assert folder.is_dir()
            assert len(seen) == 1
            assert seen != _names(place)


def test_folder_swept_while_it_is_locked_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    take = files._take

    def late(lock: int) -> bool | None:
        if not seen:
            seen.extend(_names(place))
            monkeypatch.setattr(files, "_take", take)
            sweep(place)
        return take(lock)

    monkeypatch.setattr(files, "_take", late)
    with temporary_folder(place, "out") as folder:
        assert folder.is_dir()
        assert len(seen) == 1
        assert seen != _names(place)
    assert _names(place) == []
