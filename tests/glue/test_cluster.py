from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kflats.glue.cluster import in_ray
from kflats.glue.protocol import Experiment
from kflats.glue.runner import prepare
from kflats.glue.settings import Cell, Sweep, Training
from kflats.glue.store import read_results
from tests.glue.conftest import TOML

pytestmark = pytest.mark.slow


def test_two_processes_of_torchrun_train_together(tmp_path: Path, tiny: Path, data: Path) -> None:
    codes = 'methods = ["svd", "projective", "int"]\nbits = [4]\n'
    (tmp_path / "sweep.toml").write_text(codes + TOML.format(model=tiny, data=data))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "kflats.cli", "glue", "run", str(tmp_path / "sweep.toml"), "--task", "rte"]
    words += ["-o", str(tmp_path / "results")]
    for counts in ("8 runs done, 0 were done before", "0 runs done, 8 were done before"):
        ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert counts in ended.stdout, ended.stdout + ended.stderr
    results = read_results(tmp_path / "results")
    assert [(each["status"], each["devices"]) for each in results] == [("done", 2)] * 8


@pytest.fixture
def two_gpus() -> Iterator[None]:
    """A Ray cluster that believes it has two GPUs."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, num_gpus=2)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("two_gpus")
def test_each_run_has_a_gpu_and_dies_alone(tmp_path: Path, tiny: Path, data: Path) -> None:
    class Deadly(Experiment):
        def checkpoint(self, cell: Cell) -> Path:
            if cell.compression == 0.4:
                os._exit(1)  # as a process ends that the system kills for its memory
            return super().checkpoint(cell)

        @property
        def training(self) -> Training:
            raise ValueError(f"on GPU {os.environ['CUDA_VISIBLE_DEVICES']}")

    (tmp_path / "sweep.toml").write_text(TOML.format(model=tiny, data=data))
    sweep = Sweep.from_toml(tmp_path / "sweep.toml", tasks=["rte"])
    experiments, _ = prepare(sweep, tmp_path / "results")
    deadly = {name: Deadly(**vars(each)) for name, each in experiments.items()}
    cells = [
        (Cell(task="rte", seed=0, method="svd", compression=each), "") for each in (0.4, 0.5, 0.6)
    ]
    results = list(in_ray("local")(deadly, cells, None, 0, len(cells)))
    errors = {cell.compression: result["error"] for cell, _, result in results}
    assert errors.pop(0.4).startswith("WorkerCrashedError")
    assert set(errors) == {0.5, 0.6}
    assert {"ValueError: on GPU 0", "ValueError: on GPU 1"} >= set(errors.values())
