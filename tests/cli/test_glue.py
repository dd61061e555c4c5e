from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.glue.conftest import config, data, tiny  # noqa: F401  fixtures

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_run_and_report(kflats: Cli, config: Path, place: Path) -> None:  # noqa: F811
    words = ("glue", "run", config, "-o", place / "results", "--task", "rte")
    plan = kflats(*words, "--dry-run", "--json")
    assert plan.code == 0
    assert (plan.json["total"], plan.json["open"]) == (7, 7)
    assert plan.json["seconds"] >= 0
    assert not (place / "results").exists()
    done = kflats(*words, "--json")
    assert done.code == 0
    assert done.json["done"] == 7
    report = kflats("glue", "report", place / "results", "-o", place / "report", "--json")
    assert report.code == 0
    written = sorted(path.name for path in (place / "report").iterdir())
    assert written == ["drops_after.png", "drops_before.png", "report.html", "report.md"]
    page = (place / "report" / "report.html").read_text()
    assert "<table>" in page
    assert 'src="http' not in page
    text = (place / "report" / "report.md").read_text()
    for method in ("svd", "projective k = 2", "projective k = 3", "ensemble"):
        assert f"| with fine-tuning | {method} | 60% |" in text
    assert kflats(*words, "--dry-run", "--json").json["open"] == 0


def test_tasks_are_listed(kflats: Cli) -> None:
    result = kflats("glue", "tasks", "--json")
    assert result.code == 0
    assert len(result.json) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "smokey"), "did you mean 'smoke'"),
        (("run", "smoke", "--task", "wnil"), "did you mean 'wnli'"),
        (("run", "smoke", "--data", "/nowhere/at/all"), "--data FOLDER"),
        (("report", "/nowhere"), "holds no results"),
    ],
)
def test_wrong_words_end_in_one_line(kflats: Cli, words: tuple[str, ...], message: str) -> None:
    result = kflats("glue", *words)
    assert (result.code, len(result.errors)) == (1, 1)
    assert message in " ".join(result.err.split())
