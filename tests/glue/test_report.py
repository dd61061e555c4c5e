from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kflats.errors import InputError
from kflats.glue.drops import ENSEMBLE, drops
from kflats.glue.figures import task_lines
from kflats.glue.means import mean_drops, over_tasks
from kflats.glue.page import write_page
from kflats.glue.store import check_alike
from kflats.glue.tables import markdown

TABLE = {"bytes_before": 2_000_000, "bytes_after": 1_230_000, "dtype": "float32"}


def result(
    method: str, before: float, after: float, *, task: str = "rte", seed: int = 0, k: int = 1,
    train: float = 0.0, compression: float = 0.4,
) -> dict[str, Any]:  # fmt: skip
    metric = {"rte": "accuracy", "cola": "matthews"}[task]
    cell = {"task": task, "seed": seed, "method": method, "n_clusters": k}
    return {
        "cell": cell | {"compression": 0.0 if method == "dense" else compression},
        "status": "done",
        "model": "some/distilbert-base-uncased",
        "before": {"validation": {metric: before}},
        "after": {"validation": {metric: after}},
        "train_before": {metric: train},
        "train_after": {metric: train},
        "majority": {"validation": {metric: 30.0 if task == "rte" else 0.0}},
        "official_data": True,
        "table": None if method == "dense" else TABLE,
    }


RUNS = [
    result("dense", 80.0, 90.0),
    result("svd", 60.0, 81.0),
    result("projective", 72.0, 90.0, k=3, train=70),
    result("projective", 76.0, 88.2, k=5, train=99),
]


def percents(runs: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    return {(d.method, d.stage): d.percent for d in drops(runs)}


def test_drop_is_relative_to_the_dense_model_of_the_same_stage() -> None:
    found = percents(RUNS)
    assert found["svd", "before"] == pytest.approx(25.0)
    assert found["svd", "after"] == pytest.approx(10.0)
    assert found["projective k = 3", "after"] == pytest.approx(0.0)


def test_ensemble_takes_k_by_training_score() -> None:
    found = percents(RUNS)
    assert found[ENSEMBLE, "after"] == found["projective k = 5", "after"] == pytest.approx(2.0)
    same = percents([*RUNS[:3], result("projective", 76.0, 80.0, k=5, train=70)])
    assert same[ENSEMBLE, "after"] == same["projective k = 3", "after"]


def test_mean_is_over_tasks_and_spread_over_seeds() -> None:
    runs = []
    for seed, loss in ((0, 2.0), (1, 4.0)):
        for task in ("rte", "cola"):
            runs.append(result("dense", 100.0, 100.0, task=task, seed=seed))
            extra = 2.0 if task == "cola" else 0.0
            runs.append(result("svd", 50.0, 100 - loss - extra, task=task, seed=seed))
    (after,) = [each for each in mean_drops(drops(runs)) if each.stage == "after"]
    assert after.mean == pytest.approx(4.0)
    assert after.spread == pytest.approx(math.sqrt(2 + 2) / 2)
    assert after.tasks == {"cola": 2, "rte": 2}


def test_spread_of_the_mean_is_that_of_tasks_with_seeds_of_their_own() -> None:
    values = np.random.default_rng(0).normal(scale=[[1.0], [4.0]], size=(2, 4000))
    mean, spread = over_tasks([list(values[0]), list(values[1, :3000])])
    assert mean == pytest.approx((values[0].mean() + values[1, :3000].mean()) / 2)
    assert spread == pytest.approx(values[:, :3000].mean(0).std(), rel=0.03)


def test_task_with_more_seeds_does_not_bend_the_mean() -> None:
    runs = [
        result("dense", 100.0, 100.0), result("svd", 90.0, 90.0),
        result("dense", 100.0, 100.0, task="cola"), result("svd", 50.0, 50.0, task="cola"),
        result("dense", 100.0, 100.0, seed=1), result("svd", 90.0, 90.0, seed=1),
    ]  # fmt: skip
    (after,) = [each for each in mean_drops(drops(runs)) if each.stage == "after"]
    assert after.mean == pytest.approx(30.0)
    assert (after.tasks, after.spread) == ({"cola": 1, "rte": 2}, None)
    assert "| svd | 40% | 1.23 | 30.00 | 30.00 | 2 x 1 to 2 |" in markdown(runs)


def test_task_where_the_dense_model_scores_nothing_is_left_out() -> None:
    runs = [*RUNS, result("dense", 0.0, 0.0, task="cola"), result("svd", 0.0, 5.0, task="cola")]
    assert all(each.tasks == {"rte": 1} for each in mean_drops(drops(runs)))


def learnt_by(*scores: tuple[float, float]) -> tuple[str, ...]:
    """Return the tasks in the means where RTE's dense models, one a seed, score as given."""
    runs = []
    for seed, (before, after) in enumerate(scores):
        runs += [result("dense", before, after, seed=seed), result("svd", 1.0, 1.0, seed=seed)]
        runs.append(result("dense", 90.0, 90.0, task="cola", seed=seed))
        runs.append(result("svd", 45.0, 45.0, task="cola", seed=seed))
    found = drops(runs)
    assert {drop.task for drop in found} == {"cola", "rte"}
    first, second = mean_drops(found)
    assert first.tasks == second.tasks
    assert set(first.tasks.values()) == {len(scores)}
    return tuple(first.tasks)


def test_task_that_the_dense_models_have_not_learnt_is_shown_but_not_in_the_mean() -> None:
    assert learnt_by((29.0, 90.0)) == learnt_by((90.0, 30.0)) == ("cola",)
    assert learnt_by((29.0, 29.0), (30.0, 30.0)) == ("cola",)


def test_one_seed_below_the_majority_does_not_take_its_task_or_itself_out() -> None:
    assert learnt_by((29.0, 90.0), (40.0, 29.0)) == ("cola", "rte")


def test_lead_over_svd_is_counted_seed_by_seed() -> None:
    runs = []
    for seed, (svd, other) in enumerate([(80.0, 90.0), (50.0, 64.0)]):
        runs += [
            result("dense", 100.0, 100.0, seed=seed), result("svd", svd, svd, seed=seed),
            result("projective", other, other, k=3, seed=seed),
        ]  # fmt: skip
    means = {(each.method, each.stage): each for each in mean_drops(drops(runs))}
    lead = means["projective k = 3", "after"].lead
    assert lead is not None
    assert lead == pytest.approx((12.0, math.sqrt(8)))
    assert means["svd", "after"].lead is None
    assert "| projective k = 3 | 40% | 12.00 ± 2.83 | 12.00 ± 2.83 |" in markdown(runs)


def test_there_is_no_lead_over_an_svd_of_other_tasks() -> None:
    runs = [*RUNS, result("dense", 100.0, 100.0, task="cola")]
    runs.append(result("projective", 90.0, 90.0, k=3, task="cola"))
    leads = {(each.method, each.stage): each.lead for each in mean_drops(drops(runs))}
    assert leads["projective k = 3", "after"] is None
    lead = leads["projective k = 5", "after"]
    assert lead is not None
    assert lead == pytest.approx((8.0, None))


def test_compressed_run_without_its_dense_one_is_named_and_left_out() -> None:
    failed = {"cell": RUNS[0]["cell"] | {"seed": 7}, "status": "failed", "error": "out of memory"}
    text = markdown([*RUNS, failed, result("svd", 1.0, 1.0, seed=7)])
    assert "no finished dense run, so no drop: rte, seed 7." in text
    assert "| svd | 40% | 1.23 | 25.00 | 10.00 | 1 x 1 |" in text
    assert "no drop" not in markdown(RUNS)


def test_methods_have_ensembles_of_their_own() -> None:
    others = [result("messi", 40.0, 45.0, k=3, train=1), result("messi", 8.0, 9.0, k=5)]
    means = {(each.method, each.stage): each.mean for each in mean_drops(drops([*RUNS, *others]))}
    assert means["ensemble of projective", "after"] == pytest.approx(2.0)
    assert means["ensemble of messi", "after"] == pytest.approx(50.0)


def test_integers_stand_last_with_their_bytes_and_are_in_no_ensemble() -> None:
    plain = result("int", 80.0, 90.0, compression=0.875)
    plain["table"] = {**TABLE, "bytes_after": 250_000}
    text = markdown([*RUNS, plain, result("codes", 8.0, 9.0, compression=0.4)])
    assert "| int4 | 87.5% | 0.25 | 0.00 | 0.00 | 1 x 1 |" in text
    assert "The dense table takes 2.00 MB" in text
    assert ("compare the MB" in text, "compare the MB" in markdown(RUNS)) == (True, False)
    lines = re.findall(r"^\| ([^|]+) \| [\d.]+% \|.* x 1 \|$", text, flags=re.MULTILINE)
    assert lines[-3:] == [ENSEMBLE, "codes of 19.2 bits", "int4"]
    assert "ensemble of" not in text


def test_integers_of_a_model_in_half_precision_remove_less() -> None:
    plain = result("int", 80.0, 90.0, compression=0.875)
    plain["table"] = {**TABLE, "dtype": "bfloat16"}
    assert "| int4 | 75% |" in markdown([RUNS[0], plain])


def test_widths_of_integers_are_one_line_of_the_figures() -> None:
    sizes = [1 - bits / 32 for bits in (12, 2, 4)]
    runs = [RUNS[0], *(result("codes", 80.0, 90.0, compression=each) for each in sizes)]
    lines = task_lines(drops([*runs, result("int", 40.0, 45.0, compression=0.875)]), "rte", "after")
    assert list(lines) == ["codes", "int"]
    assert lines["codes"].sizes == [62.5, 87.5, 93.75]
    assert lines["int"].means == [50.0]


def test_lead_of_each_task_is_counted_seed_by_seed() -> None:
    runs = [
        *RUNS, result("dense", 80.0, 90.0, seed=1), result("svd", 40.0, 81.0, seed=1),
        result("projective", 60.0, 90.0, k=3, seed=1),
    ]  # fmt: skip
    text = markdown(runs)
    assert "| without fine-tuning | projective k = 3 | 40% | 20.00 ± 7.07 |" in text


def test_failed_runs_are_in_the_report_and_not_in_the_means() -> None:
    failed = {"cell": RUNS[1]["cell"] | {"seed": 9}, "status": "failed", "error": "out of memory"}
    text = markdown([*RUNS, failed])
    assert "out of memory" in text
    assert "| svd | 40% | 1.23 | 25.00 | 10.00 | 1 x 1 |" in text


def test_paper_is_beside_its_own_models_only() -> None:
    assert "| messi | 40% | 0.5 |" in markdown(RUNS)
    assert "The paper" not in markdown([{**each, "model": "minilm"} for each in RUNS])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "minilm"}, "model is once 'some/distilbert-base-uncased' and once 'minilm'"),
        ({"training": {"epochs": 9}}, "training of rte is once"),
        ({"data": {"sha256": "b"}}, "data of rte is once 'a' and once 'b'"),
        ({"mixed_precision": "bf16"}, "mixed_precision of rte is once 'no' and once 'bf16'"),
    ],
)
def test_results_of_several_kinds_are_not_put_in_one_table(
    changes: dict[str, Any], message: str
) -> None:
    common = {"training": {"epochs": 3}, "data": {"sha256": "a"}, "mixed_precision": "no"}
    runs = [{**each, **common} for each in RUNS]
    cola = {**result("dense", 1.0, 1.0, task="cola"), **common, "training": {"epochs": 5}}
    check_alike([*runs, cola])
    with pytest.raises(InputError, match=message):
        check_alike([*runs[:-1], cola, runs[-1] | changes])


def test_lines_of_the_figures_have_the_spread_over_seeds() -> None:
    other = [{**each, "cell": each["cell"] | {"seed": 1}} for each in RUNS[:1]]
    other += [result("svd", 64.0, 81.0, seed=1), result("projective", 72.0, 90.0, k=3, seed=1)]
    lines = task_lines(drops([*RUNS, *other]), "rte", "before")
    assert list(lines) == ["SVD", "projective k = 3", "projective k = 5", ENSEMBLE]
    assert lines["SVD"].means == pytest.approx([22.5])
    assert lines["SVD"].spreads == pytest.approx([5 / math.sqrt(2)])
    assert lines["projective k = 5"].spreads == lines[ENSEMBLE].spreads == [0.0]


def test_tables_are_in_the_order_of_the_paper() -> None:
    text = markdown([*RUNS, result("svd", 10.0, 10.0, compression=0.8)])
    lines = re.findall(r"^\| ([^|]+) \| (\d+%) \|.* x 1 \|$", text, flags=re.MULTILINE)
    k3, k5 = (f"projective k = {k}" for k in (3, 5))
    assert lines == [("svd", "40%"), (k3, "40%"), (k5, "40%"), (ENSEMBLE, "40%"), ("svd", "80%")]


def test_a_method_looks_the_same_in_every_panel_of_the_page(tmp_path: Path) -> None:
    others = [copy.deepcopy(run) for run in RUNS]
    for run in others:
        run["cell"]["task"] = "cola"
        for stage in ("before", "after"):
            run[stage]["validation"] = {"matthews": run[stage]["validation"]["accuracy"]}
        run["majority"]["validation"] = {"matthews": 0.0}
        run["train_before"] = run["train_after"] = {"matthews": 1.0}
    runs = RUNS + others
    write_page(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    pattern = r'"legendgroup":"([^"]+)","(?:line|marker)":{"color":"([^"]+)"'
    looks: dict[str, set[str]] = {}
    for line, colour in re.findall(pattern, page):
        looks.setdefault(line, set()).add(colour)
    assert {line: len(colours) for line, colours in looks.items()} == {
        "SVD": 1, "projective k = 3": 1, "projective k = 5": 1, "ensemble": 1
    }  # fmt: skip
    assert len(set.union(*looks.values())) == 4
