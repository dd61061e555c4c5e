from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kflats.errors import InputError
from kflats.glue.metrics import majority_scores, scores
from kflats.glue.tasks import TASKS

# true positives 3, false positives 1, false negatives 2, true negatives 4
GOLD = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
FOUND = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])


def logits(found: Any, classes: int = 2) -> Any:
    return np.eye(classes)[found]


@pytest.mark.parametrize(
    ("task", "metric", "value"),
    [
        ("sst2", "accuracy", 70.0),  # 7 of 10
        ("mrpc", "f1", 100 * 6 / 9),  # 2 * 3 / (2 * 3 + 1 + 2), of the label 1
        ("mrpc", "accuracy", 70.0),
        ("qqp", "f1", 100 * 6 / 9),
        ("cola", "matthews", 100 * (3 * 4 - 1 * 2) / (4 * 5 * 5 * 6) ** 0.5),
        ("rte", "accuracy", 70.0),
    ],
)
def test_classification_by_hand(task: str, metric: str, value: float) -> None:
    assert scores(TASKS[task], logits(FOUND), GOLD)[metric] == pytest.approx(value)


def test_three_classes() -> None:
    found = scores(TASKS["mnli"], logits([0, 1, 2, 2], 3), np.array([0, 1, 2, 1]))
    assert found == {"accuracy": 75.0}


def test_correlations_by_hand() -> None:
    found = scores(TASKS["stsb"], np.array([[1.0], [2], [3], [4]]), np.array([1.0, 2, 1, 4]))
    # deviations -1.5 -0.5 0.5 1.5 and -1 0 -1 2: products sum to 4, squares to 5 and 6
    assert found["pearson"] == pytest.approx(100 * 4 / 30**0.5)
    # ranks of y with a tie: 1.5 3 1.5 4
    ranks = np.corrcoef([1, 2, 3, 4], [1.5, 3, 1.5, 4])[0, 1]
    assert found["spearman"] == pytest.approx(100 * ranks)


def test_constant_prediction_has_no_correlation() -> None:
    assert scores(TASKS["stsb"], np.ones((4, 1)), np.arange(4.0)) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }
    assert scores(TASKS["cola"], logits(np.ones(10, int)), GOLD) == {"matthews": 0.0}


def test_hidden_labels_are_refused() -> None:
    with pytest.raises(InputError, match=r"2 of 3 labels of rte are -1"):
        scores(TASKS["rte"], logits([0, 1, 0]), np.array([-1, 0, -1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_training_is_named(bad: float) -> None:
    wrong = logits(FOUND)
    wrong[3, 1] = bad
    with pytest.raises(InputError, match="NaN or infinity on sst2"):
        scores(TASKS["sst2"], wrong, GOLD)


def test_majority_is_of_the_training_labels() -> None:
    train = np.array([0, 0, 1])
    assert majority_scores(TASKS["sst2"], train, np.array([1, 1, 0, 0])) == {"accuracy": 50.0}
    found = majority_scores(TASKS["mrpc"], 1 - train, GOLD)
    assert found["f1"] == pytest.approx(100 * 10 / 15)
    assert majority_scores(TASKS["stsb"], np.array([1.0, 3]), np.arange(3.0))["pearson"] == 0.0
