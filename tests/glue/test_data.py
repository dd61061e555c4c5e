from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from kflats.errors import InputError
from kflats.glue.data import load_data
from kflats.glue.tasks import TASKS, find_task
from tests.glue.conftest import write_task

SHARED = Path(os.environ.get("KFLATS_DATA", Path(__file__).parents[3] / "shared" / "data")) / "glue"


def test_folder_gives_splits_and_a_digest(data: Path, tmp_path: Path) -> None:
    found = load_data(TASKS["rte"], str(data))
    assert (len(found.train), len(found.validation["validation"])) == (60, 30)
    assert not found.official  # 60 rows are not those of RTE
    write_task(tmp_path, "rte", TASKS["rte"].columns, 60)
    assert load_data(TASKS["rte"], str(tmp_path)).digest == found.digest
    write_task(tmp_path, "rte", TASKS["rte"].columns, 58)
    assert load_data(TASKS["rte"], str(tmp_path)).digest != found.digest


def test_part_of_a_split_is_not_official(tmp_path: Path) -> None:
    write_task(tmp_path, "rte", TASKS["rte"].columns, 20)
    (tmp_path / "rte/train.parquet").rename(tmp_path / "rte/train_partial.parquet")
    assert not load_data(TASKS["rte"], str(tmp_path)).official


def test_missing_data_says_where_and_how(data: Path) -> None:
    with pytest.raises(InputError, match=r"no data for 'sst2' at .*sst2/train.parquet is missing"):
        load_data(TASKS["sst2"], str(data))
    with pytest.raises(InputError, match=r"--data FOLDER.*nyu-mll/glue"):
        load_data(TASKS["sst2"], str(data / "nowhere"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [-1] * 20}, r"labels \[-1\].*hidden"),
        ({"label": [3] * 20}, r"labels \[3\]; 0 to 1 are allowed"),
    ],
)
def test_wrong_labels_are_refused(
    tmp_path: Path, changes: dict[str, list[int]], message: str
) -> None:
    from datasets import Dataset

    write_task(tmp_path, "rte", TASKS["rte"].columns, 40)
    rows = {"sentence1": ["a"] * 20, "sentence2": ["b"] * 20, **changes}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "rte/validation.parquet"))
    with pytest.raises(InputError, match=message):
        load_data(TASKS["rte"], str(tmp_path))


def test_hidden_scores_of_a_regression_are_refused(tmp_path: Path) -> None:
    from datasets import Dataset

    write_task(tmp_path, "stsb", TASKS["stsb"].columns, 20)
    rows = {"sentence1": ["a"] * 4, "sentence2": ["b"] * 4, "label": [-1.0] * 4}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "stsb/validation.parquet"))
    with pytest.raises(InputError, match=r"labels \[-1.0\]; 0 to 5 are allowed.*hidden"):
        load_data(TASKS["stsb"], str(tmp_path))


def test_damaged_file_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, "rte", TASKS["rte"].columns, 20)
    path = tmp_path / "rte/train.parquet"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"rte/train.parquet cannot be read as parquet"):
        load_data(TASKS["rte"], str(tmp_path))


def test_home_folder_is_found(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(data.parent))
    assert len(load_data(TASKS["rte"], f"~/{data.name}").train) == 60


def test_rows_travel_to_other_machines(data: Path) -> None:
    rows = load_data(TASKS["rte"], str(data)).train
    copy = pickle.loads(pickle.dumps(rows))
    assert rows.cache_files == copy.cache_files == []
    assert copy["sentence1"][:] == rows["sentence1"][:]


def test_wrong_columns_are_refused(tmp_path: Path) -> None:
    write_task(tmp_path, "rte", ("sentence1", "text"), 20)
    with pytest.raises(InputError, match="sentence2"):
        load_data(TASKS["rte"], str(tmp_path))


def test_order_of_label_names_is_checked(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    write_task(tmp_path, "wnli", TASKS["wnli"].columns, 20)
    text = Value("string")
    wrong = Features(
        sentence1=text, sentence2=text, label=ClassLabel(names=["entailment", "not_entailment"])
    )
    rows = {"sentence1": ["a"] * 4, "sentence2": ["b"] * 4, "label": [0, 1, 0, 1]}
    path = tmp_path / "wnli/train.parquet"
    Dataset.from_dict(rows, features=wrong).to_parquet(str(path))
    with pytest.raises(InputError, match="order"):
        load_data(TASKS["wnli"], str(tmp_path))


def test_nearest_task_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'mnli'"):
        find_task("mnil")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no evaluation data at {SHARED}")
@pytest.mark.parametrize("name", TASKS)
def test_real_data_has_the_described_form(name: str) -> None:
    task = TASKS[name]
    found = load_data(task, str(SHARED))
    assert list(found.validation) == list(task.validation)
    assert found.official == (name not in ("mnli", "qnli", "qqp"))
    if found.official:
        assert len(found.train) == task.train_size
