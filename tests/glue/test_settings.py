from __future__ import annotations

from pathlib import Path

import pytest

from kflats.errors import InputError
from kflats.glue.settings import Cell, Sweep
from kflats.glue.tasks import TASKS

SHIPPED = ("smoke", "minilm-small", "paper-distilbert", "paper-roberta")


def sweep(tmp_path: Path, text: str) -> Sweep:
    path = tmp_path / "my.toml"
    path.write_text('model = "m"\ntasks = ["rte", "cola"]\n' + text)
    return Sweep.from_toml(path)


def test_file_holds_only_what_differs(tmp_path: Path) -> None:
    found = sweep(tmp_path, "[training]\nepochs = 9\n[training.cola]\nepochs = 4\n")
    assert found.compressions == (0.4, 0.6, 0.8)
    assert found.training_of("rte").epochs == 9
    assert found.training_of("cola").epochs == 4
    assert found.training_of("cola").batch_size == found.training_of("rte").batch_size == 32


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_valid(name: str) -> None:
    found = Sweep.from_toml(name)
    assert set(found.tasks) <= set(TASKS)
    assert len({cell.name for cell in found.cells()}) == len(found.cells())


def test_paper_sweeps_all_tasks_after_two_epochs() -> None:
    for name in ("paper-distilbert", "paper-roberta"):
        found = Sweep.from_toml(name)
        assert set(found.tasks) == set(TASKS)
        assert found.training.extra_epochs == 2
        assert 0.4 in found.compressions


def test_cells_are_the_product_with_dense_first(tmp_path: Path) -> None:
    found = sweep(tmp_path, "compressions = [0.5]\nn_clusters = [2, 4]\nseeds = [0, 7]\n")
    names = [cell.name for cell in found.cells()]
    assert names[:4] == [
        "rte-seed0-dense",
        "rte-seed0-svd-k1-c50",
        "rte-seed0-projective-k2-c50",
        "rte-seed0-projective-k4-c50",
    ]
    assert len(names) == 2 * 2 * 4
    assert all(cell.dense in found.cells() for cell in found.cells())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seedz = [1]", "unknown key 'seedz' in the file; did you mean 'seeds'"),
        ("[training]\nepoch = 1", "unknown key 'epoch' in training; did you mean 'epochs'"),
        ("[training.rte]\nlearning_rat = 1", "in training.rte; did you mean 'learning_rate'"),
        ("[training.rtee]\nepochs = 1", "no task 'rtee'; did you mean 'rte'"),
        ('[training]\nmixed_precision = "bf61"', "mixed_precision='bf61' is unknown; did you"),
        ('methods = ["svdd"]', "no method 'svdd'; did you mean 'svd'"),
        ("compressions = [1.0]", "between 0 and 1"),
        ("n_clusters = [0]", "at least 1"),
        ("n_clusters = [2.5]", "n_clusters=2.5 must be a whole number"),
        ("seeds = [-1]", "seeds=-1 must be a whole number of at least 0"),
        ("seeds = [0, 1, 0]", r"seeds=\[0, 1, 0\] has an entry twice"),
        ("training = 5", r"training=5 must be a table: \[training\]"),
        ('[training]\nepochs = "3"', "epochs='3' must be a number of at least 0"),
        ("[training]\nbatch_size = 0", "batch_size=0 must be a whole number of at least 1"),
        ("[training]\nlearning_rate = nan", "learning_rate=nan must be a number"),
        ("[training]\nmax_length = true", "max_length=True must be a whole number"),
        ("[training.cola]\ntrain_limit = 0", "train_limit=0 must be a whole number"),
        ('methods = "svd"', r"methods='svd' must be a list: \['svd'\]"),
        ("model", "cannot be read as TOML"),
        (
            "bits = [4]",
            r"bits are the sizes of the methods 'int' and 'codes'; give both or neither",
        ),
        ('methods = ["svd", "int"]', r"with bits=\[\]: bits are the sizes"),
        (
            'methods = ["int"]\nbits = [7]',
            r"bits=7: method 'int' has one of \(1, 2, 3",
        ),
        ('methods = ["codes"]\nbits = [0]', "bits=0 must be above 0 and below 32"),
        ('methods = ["codes"]\nbits = ["4"]', "bits='4' must be a number"),
        ("seeds = 3", r"seeds=3 must be a list: \[3\]"),
    ],
)
def test_wrong_settings_name_the_nearest(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep(tmp_path, text)


def test_runs_of_near_compressions_have_files_of_their_own(tmp_path: Path) -> None:
    found = sweep(tmp_path, "compressions = [0.42, 0.425, 0.05]\nn_clusters = [3]\nseeds = [0]\n")
    names = [cell.name for cell in found.cells() if cell.method == "svd" and cell.task == "rte"]
    assert [name.rsplit("-", 1)[1] for name in names] == ["c42", "c42.5", "c5"]


def test_integers_and_codes_have_the_sizes_of_bits(tmp_path: Path) -> None:
    text = 'methods = ["svd", "int", "codes"]\nbits = [4, 1]\ncompressions = [0.4]\nseeds = [0]\n'
    cells = [cell for cell in sweep(tmp_path, text).cells() if cell.task == "rte"][1:]
    assert [cell.name.removeprefix("rte-seed0-") for cell in cells] == [
        "svd-k1-c40", "int-b4", "int-b1", "codes-b4", "codes-b1"
    ]  # fmt: skip
    assert [cell.label for cell in cells][1:] == [
        "int4",
        "int1",
        "codes of 4 bits",
        "codes of 1 bit",
    ]
    assert [cell.compression for cell in cells] == [0.4, 0.875, 0.96875, 0.875, 0.96875]
    fine = sweep(tmp_path, 'methods = ["codes"]\nbits = [1.088]\n').cells()[1]
    assert (fine.bits, fine.name) == (1.088, "rte-seed0-codes-b1.088")


def test_shipped_config_is_not_taken_for_a_mistyped_path(tmp_path: Path) -> None:
    assert Sweep.from_toml("smoke.toml") == Sweep.from_toml("smoke")
    with pytest.raises(InputError, match="is no file, and no config of kflats"):
        Sweep.from_toml(tmp_path / "smoke.toml")


def test_model_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    path.write_text('tasks = ["rte"]')
    with pytest.raises(InputError, match="has no 'model'"):
        Sweep.from_toml(path)


def test_digest_changes_with_what_the_numbers_depend_on(tmp_path: Path) -> None:
    one = sweep(tmp_path, "")
    other = sweep(tmp_path, "[training.rte]\nepochs = 8")
    grown = sweep(tmp_path, "seeds = [0, 1, 2, 3]\ncompressions = [0.1, 0.4]")
    cell, untouched = Cell(task="rte", seed=0), Cell(task="cola", seed=0)
    assert one.digest(cell, "d") == grown.digest(cell, "d")
    assert one.digest(cell, "d") != other.digest(cell, "d")
    assert one.digest(untouched, "d") == other.digest(untouched, "d")
    assert one.digest(cell, "d") != one.digest(cell, "e")
