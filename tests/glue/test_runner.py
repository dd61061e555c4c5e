from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kflats.errors import InputError
from kflats.glue import compressed, protocol
from kflats.glue.runner import run_sweep
from kflats.glue.settings import Cell, Sweep
from kflats.glue.store import read_results
from kflats.glue.tables import markdown

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def names(results: Path) -> list[str]:
    return sorted(path.stem for path in (results / "runs").glob("*.json"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path, data: Path) -> tuple[Path, Path]:
    """The config and the results of an uninterrupted sweep."""
    from tests.glue.conftest import TOML

    folder = tmp_path_factory.mktemp("finished")
    (folder / "sweep.toml").write_text(TOML.format(model=tiny, data=data))
    run_sweep(Sweep.from_toml(folder / "sweep.toml"), folder / "results")
    return folder / "sweep.toml", folder / "results"


def test_every_run_leaves_scores_and_provenance(finished: tuple[Path, Path]) -> None:
    sweep = Sweep.from_toml(finished[0])
    assert names(finished[1]) == sorted(cell.name for cell in sweep.cells())
    for each in read_results(finished[1]):
        assert each["status"] == "done", each
        metric = {"rte": "accuracy", "stsb": "pearson"}[each["cell"]["task"]]
        for stage in ("before", "after"):
            assert -100 <= each[stage]["validation"][metric] <= 100
            assert metric in each[f"train_{stage}"]
        assert each["provenance"]["transformers"]
        assert len(each["data"]["sha256"]) == 64
        if each["cell"]["method"] != "dense":
            wanted = each["cell"]["compression"]
            assert each["table"]["compression"] == pytest.approx(wanted, abs=0.07)
            assert each["table"]["n_clusters"] == each["cell"]["n_clusters"]


@pytest.mark.usefixtures("minilm_path")
def test_shipped_smoke_config_runs(data: Path, tmp_path: Path) -> None:
    sweep = Sweep.from_toml("smoke", data=str(data))
    outcome = run_sweep(sweep, tmp_path / "results")
    assert (outcome.done, outcome.failed) == (len(sweep.cells()), 0)
    for each in read_results(tmp_path / "results"):
        assert (each["model"], each["cell"]["task"], each["train_rows"]) == ("minilm", "wnli", 60)


def test_dense_model_is_trained_once(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def counted(experiment: protocol.Experiment, cell: Cell) -> Any:
        trained.append(cell)
        return right(experiment, cell)

    right = protocol.new_model
    monkeypatch.setattr(protocol, "new_model", counted)
    for compressions in ([0.3], [0.3, 0.6]):
        sweep = Sweep.from_toml(config, tasks=["rte"], methods=["svd"], compressions=compressions)
        run_sweep(sweep, tmp_path / "results")
    assert trained == [Cell(task="rte", seed=0)]


def test_dense_models_are_kept_and_train_on(finished: tuple[Path, Path]) -> None:
    folders = sorted(path.name for path in (finished[1] / "dense").iterdir())
    assert folders == ["rte-seed0-dense", "stsb-seed0-dense"]
    runs = {each["cell"]["task"]: each for each in read_results(finished[1])
            if each["cell"]["method"] == "dense"}  # fmt: skip
    assert runs["stsb"]["train_after"]["pearson"] > runs["stsb"]["train_before"]["pearson"] - 20


def test_precision_of_the_settings_is_used_and_recorded(
    finished: tuple[Path, Path], tiny: Path, data: Path, tmp_path: Path
) -> None:
    text = finished[0].read_text() + 'mixed_precision = "bf16"\n'
    (tmp_path / "half.toml").write_text(text)
    sweep = Sweep.from_toml(tmp_path / "half.toml", tasks=["stsb"], compressions=[0.3], methods=[])
    run_sweep(sweep, tmp_path / "results")
    (half,) = read_results(tmp_path / "results")
    (full,) = (each for each in read_results(finished[1])
               if each["cell"] == half["cell"])  # fmt: skip
    assert (full["mixed_precision"], half["mixed_precision"]) == ("no", "bf16")
    assert half["before"] != full["before"]


def test_precision_of_the_settings_is_not_that_of_the_launcher(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = finished[0].read_text()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for setting, found in (('mixed_precision = "no"\n', "no"), ("", "bf16")):
        path = tmp_path / f"{found}.toml"
        path.write_text(text + setting)
        sweep = Sweep.from_toml(path, tasks=["stsb"], compressions=[0.3], methods=[])
        run_sweep(sweep, tmp_path / found)
        (result,) = read_results(tmp_path / found)
        assert (result["mixed_precision"], result["devices"]) == (found, 1)


def test_batch_is_the_same_on_any_number_of_devices() -> None:
    assert [protocol.per_device(32, devices) for devices in (1, 2, 8)] == [32, 16, 4]
    with pytest.raises(InputError, match="batch_size=32 cannot be divided among 3 devices"):
        protocol.per_device(32, 3)


def test_killed_sweep_goes_on_and_ends_with_the_same_table(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    config, reference = finished
    results = tmp_path / "results"
    words = [sys.executable, "-m", "kflats.cli", "glue", "run", str(config), "-o", str(results)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and len(names(results)) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = names(results)
    assert 3 <= len(before) < 14
    times = {name: (results / "runs" / f"{name}.json").stat().st_mtime_ns for name in before}
    outcome = run_sweep(Sweep.from_toml(config), results)
    assert (outcome.done, outcome.skipped, outcome.failed) == (14 - len(before), len(before), 0)
    for name, written in times.items():
        assert (results / "runs" / f"{name}.json").stat().st_mtime_ns == written
    assert markdown(read_results(results)) == markdown(read_results(reference))
    assert not [path for path in results.rglob(".*") if path.is_file()]


def test_nothing_runs_twice(finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kflats.glue.attempt.run_cell", lambda *_: pytest.fail("ran again"))
    outcome = run_sweep(Sweep.from_toml(finished[0]), finished[1])
    assert (outcome.done, outcome.skipped) == (0, 14)


def test_failed_run_is_recorded_and_tried_again(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kflats.compress import compress_ as right

    def out_of_memory(model: Any, settings: Any) -> Any:
        if settings.n_clusters == 3 and settings.compression == 0.6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(model, settings)

    sweep = Sweep.from_toml(config, tasks=["rte"])
    monkeypatch.setattr(compressed, "compress_", out_of_memory)
    outcome = run_sweep(sweep, tmp_path / "results")
    assert (outcome.done, outcome.failed) == (6, 1)
    path = tmp_path / "results/runs/rte-seed0-projective-k3-c60.json"
    assert "OutOfMemoryError: CUDA out of memory" in json.loads(path.read_text())["error"]
    assert "CUDA out of memory" in markdown(read_results(tmp_path / "results"))
    monkeypatch.setattr(compressed, "compress_", right)
    again = run_sweep(sweep, tmp_path / "results")
    assert (again.done, again.skipped, again.failed) == (1, 6, 0)


def test_results_of_other_settings_are_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(finished[0].read_text().replace("1e-3", "1e-4"))
    with pytest.raises(InputError, match="made with other settings"):
        run_sweep(Sweep.from_toml(path), finished[1])


def test_compressed_model_is_refused(config: Path, tiny: Path, tmp_path: Path) -> None:
    import transformers

    import kflats

    model = transformers.AutoModel.from_pretrained(tiny)
    kflats.compress_(model, kflats.CompressionConfig(compression=0.3, n_clusters=2))
    kflats.save(model, tmp_path / "small")
    sweep = Sweep.from_toml(config, tasks=["rte"], model=str(tmp_path / "small"))
    with pytest.raises(InputError, match="is compressed already"):
        run_sweep(sweep, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_model_without_a_classification_head_is_refused(config: Path, tmp_path: Path) -> None:
    import transformers

    transformers.VitsConfig().save_pretrained(tmp_path / "speech")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "odd"}')
    for name, message in (("speech", "no such head for VitsConfig"), ("odd", "cannot be loaded")):
        sweep = Sweep.from_toml(config, model=str(tmp_path / name))
        with pytest.raises(InputError, match=message):
            run_sweep(sweep, tmp_path / "results")


def test_failed_dense_run_fails_what_starts_from_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(protocol, "new_model", out_of_memory)
    outcome = run_sweep(Sweep.from_toml(config, tasks=["rte"]), tmp_path / "results")
    assert (outcome.done, outcome.failed) == (0, 7)
    text = markdown(read_results(tmp_path / "results"))
    assert "- rte-seed0-dense: OutOfMemoryError: CUDA out of memory" in text
    assert re.search(r"and 5 more: .*dense run of this task and seed did not finish", text)


def test_dense_model_that_was_cleared_away_comes_back_and_its_result_stays(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    shutil.copytree(finished[1] / "runs", results / "runs")
    (results / "dense" / ".rte-seed0-dense-killed").mkdir(parents=True)
    reference = (results / "runs" / "rte-seed0-dense.json").read_bytes()
    sweep = Sweep.from_toml(finished[0], tasks=["rte"], compressions=[0.3, 0.5], n_clusters=[2])
    right = protocol.new_model
    for new_model, expected in ((None, (0, 3)), (right, (3, 0))):
        monkeypatch.setattr(protocol, "new_model", new_model)
        outcome = run_sweep(sweep, results)
        assert (outcome.done, outcome.failed) == expected
        assert (results / "runs" / "rte-seed0-dense.json").read_bytes() == reference
    assert [path.name for path in (results / "dense").iterdir()] == ["rte-seed0-dense"]


def test_results_of_other_runs_are_not_mixed(finished: tuple[Path, Path], data: Path) -> None:
    text = finished[0].read_text()
    for old, new in (("1e-3", "1e-4"), ("epochs = 1\nextra", "epochs = 2\nextra")):
        other = finished[0].with_name("other.toml")
        other.write_text(text.replace(old, new))
        with pytest.raises(InputError, match="made with other settings"):
            run_sweep(Sweep.from_toml(other, seeds=[5]), finished[1])
    with pytest.raises(InputError, match="made with other settings"):
        run_sweep(Sweep.from_toml(finished[0], seeds=[5], model="minilm"), finished[1])


@pytest.mark.slow
def test_ray_gives_the_same_table(finished: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    outcome = run_sweep(Sweep.from_toml(finished[0]), tmp_path / "results", ray_address="local")
    assert (outcome.done, outcome.failed) == (14, 0)
    reference = markdown(read_results(finished[1]))
    assert markdown(read_results(tmp_path / "results")) == reference
