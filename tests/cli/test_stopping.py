from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import kflats as library
from kflats import files
from kflats.storage.info import folder_info
from tests.cli.conftest import WORDS, Cli, Result, left_in
from tests.cli.stopping import Stopped, run_for, run_until
from tests.glue.conftest import config, data, tiny  # noqa: F401  fixtures

SIZES = ("--rank", 4, "--clusters", 2)
CODES = ("--method", "codes", "--target-size", "2KB")
MOMENTS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
JOBS: dict[str, tuple[object, ...]] = {
    "compress": ("compress", "BERT", "-o", "OUT", *SIZES),
    "bits": ("compress", "BERT", "-o", "OUT", "--target-size", "2KB"),
    "entropy": ("compress", "BERT", "-o", "OUT", *CODES, "--entropy"),
    "heal": ("heal", "SMALL", "--teacher", "BERT", "--text", "TEXT", "-o", "OUT"),
    "restore": ("restore", "SMALL", "-o", "OUT"),
    "export": ("export", "SMALL", "-o", "OUT"),
    "glue": ("glue", "run", "CONFIG", "-o", "OUT", "--task", "rte"),
}


@pytest.fixture(autouse=True)
def _usual_signals() -> Iterator[None]:
    """The tests may run where signals are ignored, as in the background of a shell."""
    usual = {signal.SIGINT: signal.default_int_handler}
    usual |= dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)  # type: ignore[arg-type]
    kept = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, of this process too."""
    folder = tmp_path / "usual"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def words(request: pytest.FixtureRequest, kflats: Cli, bert: Path, tmp_path: Path) -> list[object]:
    """The words of the job whose name is the parameter."""
    job = JOBS[request.param]
    known = {"BERT": bert, "OUT": tmp_path / "place" / "out"}
    known |= {"SMALL": tmp_path / "small", "TEXT": tmp_path / "text.txt"}
    if "SMALL" in job:
        kflats("compress", bert, "-o", known["SMALL"], *SIZES)
    if "TEXT" in job:
        lines = (" ".join(WORDS[5 + (i * j) % 190] for j in range(9)) for i in range(200))
        known["TEXT"].write_text("\n".join(lines))
        job += ("--max-steps", 3)
    if "CONFIG" in job:
        known["CONFIG"] = request.getfixturevalue("config")
    return [known.get(str(word), word) for word in job]


def _check_line(result: Stopped | Result, number: int) -> None:
    assert result.code == 128 + number, result.err
    (line,) = result.err.splitlines()
    assert line.endswith("; nothing half-written is left behind.")


@pytest.mark.parametrize("count", [1, 60, 700])
def test_interrupt_while_importing_is_one_line(
    bert: Path, place: Path, usual: Path, count: int
) -> None:
    words = ("compress", bert, "-o", place / "out", *SIZES)
    result = run_until("import", count, signal.SIGINT, *words, usual=usual)
    _check_line(result, signal.SIGINT)
    assert result.err.startswith("interrupted; ")


SAVING = "kflats.storage.folder._write_json"
Raiser = Callable[[int], None]


def _plainly(number: int) -> None:
    signal.raise_signal(number)


def _as_another_error(number: int) -> None:
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        raise RuntimeError("from native code") from None


def _as_an_error_of_ours(number: int) -> None:
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        raise library.CheckpointError("cannot be read") from None


def _where_nothing_can_be_raised(number: int) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(number)

    dying = [Dying()]
    dying.clear()
    time.sleep(10)


def _swallowed(number: int) -> None:
    with suppress(KeyboardInterrupt):
        signal.raise_signal(number)


@pytest.mark.parametrize(
    "act", [_plainly, _as_another_error, _as_an_error_of_ours, _where_nothing_can_be_raised]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_in_one_line_and_leaves_nothing(
    kflats: Cli,
    bert: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Raiser,
    number: signal.Signals,
) -> None:
    monkeypatch.setattr(SAVING, lambda *_: act(number))
    _check_line(kflats("compress", bert, "-o", place / "out", *SIZES), number)
    assert left_in(place) == []


def test_second_signal_does_not_disturb_what_cleans_up(
    kflats: Cli, bert: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = files._remove

    def disturbed(folder: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(folder)

    monkeypatch.setattr(SAVING, lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(files, "_remove", disturbed)
    _check_line(kflats("compress", bert, "-o", place / "out", *SIZES), signal.SIGINT)
    assert left_in(place) == []


def test_swallowed_interrupt_is_told(
    kflats: Cli, bert: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SAVING, lambda *_: _swallowed(signal.SIGINT))
    _check_line(kflats("compress", bert, "-o", place / "out", *SIZES), signal.SIGINT)
    assert left_in(place) == ["out"]


def test_ignored_signal_stays_ignored(
    kflats: Cli, bert: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(SAVING, lambda *_: signal.raise_signal(signal.SIGHUP))
        assert kflats("compress", bert, "-o", place / "out", *SIZES).code == 0
    finally:
        signal.signal(signal.SIGHUP, kept)


def test_program_of_the_user_has_the_usual_signals(kflats: Cli, place: Path) -> None:
    program = place / "program.py"
    program.write_text(
        "import signal\n"
        "assert signal.getsignal(signal.SIGINT) == signal.default_int_handler\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
    )
    assert kflats("run", program).code == 0


_KILLED = """
import os, signal, sys
import torch, kflats
model = torch.nn.Sequential(torch.nn.Embedding(200, 16))
kflats.compress_(model, kflats.CompressionConfig(rank=4, n_clusters=2))
kflats.save(model, sys.argv[1], extras=lambda _: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_next_run_removes_what_a_kill_left(
    kflats: Cli, bert: Path, place: Path, usual: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(place / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = left_in(place)
    assert left.startswith(".out.kflats-")
    assert kflats("compress", bert, "-o", place / "out", *SIZES).code == 0
    assert left_in(place) == ["out"]


def test_reader_that_goes_away_is_no_traceback(bert: Path) -> None:
    words = [sys.executable, "-m", "kflats.cli", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.close()
        _, err = running.communicate()
    assert (running.returncode, err) == (1, b"")


def _temporary(usual: Path) -> list[str]:
    """Return what is left, without the one file that importing onnxruntime leaves in any case."""
    return [name for name in left_in(usual) if name != ".ses"]


@pytest.mark.slow
@pytest.mark.parametrize("count", MOMENTS)
@pytest.mark.parametrize("words", JOBS, indirect=True)
def test_sweep_of_kills(
    kflats: Cli, bert: Path, place: Path, usual: Path, words: list[object], count: int
) -> None:
    result = run_until("writing", count, signal.SIGKILL, *words, usual=usual)
    assert result.code in (0, -signal.SIGKILL), result.err
    assert kflats("compress", bert, "-o", place / "next", *SIZES).code == 0
    assert _temporary(usual) == []
    if words[0] == "glue":
        # Started again, it goes on, and cleans the folders that it writes into.
        assert kflats(*words).code == 0
        hidden = [path for path in place.rglob(".*") if ".kflats-" in path.name]
        assert hidden == []
        return
    assert left_in(place) in (["next"], ["next", "out"])
    if words[0] in ("compress", "heal") and (place / "out").exists():
        assert folder_info(place / "out").tables


@pytest.mark.slow
@pytest.mark.parametrize("count", MOMENTS)
@pytest.mark.parametrize("words", JOBS, indirect=True)
def test_sweep_of_interrupts_while_writing(
    place: Path, usual: Path, words: list[object], count: int
) -> None:
    result = run_until("writing", count, signal.SIGINT, *words, usual=usual)
    if result.code:
        _check_line(result, signal.SIGINT)
    assert _temporary(usual) == []
    assert [path for path in place.rglob(".*") if ".kflats-" in path.name] == []


@pytest.mark.slow
@pytest.mark.parametrize("tenths", range(1, 81, 4))
@pytest.mark.parametrize("words", ["entropy", "export"], indirect=True)
def test_sweep_of_interrupts_by_the_clock(
    place: Path, usual: Path, words: list[object], tenths: int
) -> None:
    result = run_for(0.3 + tenths / 10, signal.SIGINT, *words, usual=usual)
    if result.code:
        _check_line(result, signal.SIGINT)
        assert left_in(place) in ([], ["out"])
    assert _temporary(usual) == []
