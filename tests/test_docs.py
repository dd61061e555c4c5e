from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def all_commands() -> dict[str, Any]:
    """Return every command by the words that call it."""
    from typer.main import get_command

    from kflats.cli.main import app

    found: dict[str, Any] = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= (
            {f"{name} {key}": each for key, each in inner.items()} if inner else {name: command}
        )
    return found


DOCUMENTS = README + "".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
)


@pytest.mark.parametrize("words", all_commands())
def test_every_command_is_documented_with_real_options(words: str) -> None:
    command = all_commands()[words]
    assert f"kflats {words}" in DOCUMENTS
    known = {option for parameter in command.params for option in parameter.opts}
    for line in re.findall(rf"^ *kflats {words}\b(.*)$", DOCUMENTS, flags=re.MULTILINE):
        own = line.split("#")[0]
        if words == "run":  # what follows the script belongs to it
            own = own.split(".py")[0].split(" -m ")[0]
        used = set(re.findall(r"(?<=\s)-{1,2}[a-z][a-z-]*", own))
        assert used <= known, line


def result(name: str) -> Any:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["result"]


def test_figures_of_the_readme_are_those_of_the_results() -> None:
    sts, lookup = result("sts_quality"), result("lookup_speed")
    rows = ("SVD, 40 %", "flats, 40 %", "SVD, 60 %", "flats, 60 %")
    for row in (*rows, "flats, 60 %, token counts", "flats, 80 %, token counts"):
        assert f"{sts[row]['bytes'] / 1e6:.1f} MB | " in README, row
        assert f"{sts[row]['spearman']:.2f}" in README, row
    assert f"| {result('fit_speed')['fit_over_svd']:.1f} |" in README
    assert f"| {result('fit_memory')['262144x640']['extra_over_table']:.2f} times" in README
    assert f"| {result('paper_speed')['paper_over_fit']:.0f} times slower" in README
    times = [lookup[name]["zipf_forward_ms"] for name in ("nn.Embedding", "SVD", "flats")]
    assert f"| {' / '.join(map(str, times))} ms |" in README
    packed = ("int2, fitted levels", "codes of columns", "codes, one rotation")
    floats = ("nn.Embedding", "SVD", "nn.Embedding and nn.Linear")
    for names in (packed, floats):
        times = [lookup[name]["text_forward_ms"] for name in names]
        assert f"| {' / '.join(map(str, times))} ms |" in README
    ratios = [f"{lookup['forward'][name]['over_dense']:.2f}" for name in packed]
    assert f"| {' / '.join(ratios)} times |" in README
    bits = result("bytes_quality")
    for size in ("2.08 bits", "1.088 bits", "0.544 bits"):
        for name in ("codes, one rotation", "PQ, faiss"):
            assert f"{bits[size][name]['spearman']:.2f}" in README, (size, name)
    document = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    for name in ("SVD", "the paper, k = 5", "flats"):
        pair = [f"{bits[size][name]['spearman']:.2f}" for size in ("8 bits", "16 bits")]
        assert " and ".join(pair) in " ".join(document.split()), name
    for size in ("8 bits", "16 bits"):
        coarse = ("SVD", "the paper, k = 5", "flats")
        near = [row["spearman"] for name, row in bits[size].items() if name not in coarse]
        assert max(abs(score - bits["dense"]["spearman"]) for score in near) <= 0.1
    for size, row in result("healing_quality").items():
        scores = f"{row['before']:.2f}, {row['after']:.2f}"
        distances = f"{row['distance_before']:.5f}, {row['distance_after']:.5f}"
        assert f"| {scores} | {distances} |" in document, size
        assert f"{row['after']:.2f}" in README or size.startswith("4")
    for name in ("k = 8", "2 bits, one rotation"):
        head = result("head_speed")[name]["over_dense"]
        assert f"| {' / '.join(map(str, head.values()))} times |" in README
    load = result("load_memory")
    peaks = (load["peak_loading_over_file"], load["peak_after_forward_over_file"])
    assert f"| {peaks[0]:.2f} / {peaks[1]:.2f} times |" in README


def test_the_tasks_at_equal_bytes_are_those_of_the_results() -> None:
    document = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    tasks = result("bytes_glue")
    assert f"have {tasks['mean score']['dense']:.2f}" in document
    kinds = ["codes of columns", "codes, one rotation", "PQ, faiss", "the paper, k = 5", "SVD"]
    sizes = (("6.5", "2.08", "int2"), ("3.4", "1.088", "int1"), ("1.7", "0.544", ""))
    for part, size, plain in sizes:
        names = [f"{plain}, fitted levels", *kinds] if plain else kinds
        rows = [f"{size} bits: {name}" for name in names]
        cells = [f"{tasks['mean score'][row]:.2f}" for row in rows]
        middle = "" if plain else " |"
        assert f"| {part} |{middle} {' | '.join(cells)} |" in document
        shown = [row for row in rows if not row.endswith((kinds[0], *kinds[3:]))]
        assert all(f"{tasks['stsb'][row]['score']:.2f}" in document for row in shown)
    words = " ".join(document.split())
    for task, row in result("healing_glue").items():
        assert f"{row['before']:.2f}, {row['after']:.2f}" in words, task


def test_the_glue_table_of_the_readme_is_that_of_the_report() -> None:
    report = (ROOT / "benchmarks" / "results" / "glue" / "report.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ([\w =]+) \| (\d+)% \| [\d.]+ \| ([^|]+) \| ([^|]+) \| \d", report, re.MULTILINE
    )
    drops = {(method, size, stage): row[stage] for method, size, *row in rows for stage in (0, 1)}
    for stage, words in enumerate(("without fine-tuning", "two epochs more")):
        for size in ("40", "60", "80"):
            head = f"{size} %, {words}" if size == "40" else f"{size} %"
            methods = ("svd", "projective k = 3", "projective k = 5")
            cells = [drops[method, size, stage] for method in methods]
            assert f"| {head} | {' | '.join(cells)} |" in README


def test_the_integers_of_the_readme_are_those_of_the_report() -> None:
    report = (ROOT / "benchmarks" / "results" / "glue" / "report.md").read_text(encoding="utf-8")
    row = r"^\| int4 \| 87.5% \| ([\d.]+) \| ([^|]+) \| ([^|]+) \| \d"
    ((size, before, after),) = re.findall(row, report, re.MULTILINE)
    words = f"a table of {size} MB loses {before} without and {after} with fine-tuning"
    assert words in README.replace("\n", " ")


def test_the_leads_over_svd_in_the_readme_are_those_of_the_report() -> None:
    report = (ROOT / "benchmarks" / "results" / "glue" / "report.md").read_text(encoding="utf-8")
    text = README.replace("\n", " ")
    for k in (3, 5):
        rows = re.findall(rf"^\| projective k = {k} \| \d+% \|[^|]+\| ([^|]+) \|$", report, re.M)
        first, second, third = rows
        assert re.search(rf"k = {k} [^.]*?by {first}, {second} and {third}", text), k


def test_make_targets_of_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        used = set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, flags=re.MULTILINE))
        assert used
        assert used <= targets


def test_places_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Where things go")[1].split("\n## ")[0]
    picture = section.split("importable by all")[0]
    names = set(re.findall(r"`([a-z_]+)`", picture)) | set(re.findall(r"`([a-z/_]+\.py)`", section))
    assert {"cli", "factors", "layers", "factors/fit.py", "files.py"} <= names
    for name in names:
        places = (ROOT / "src" / "kflats" / name, ROOT / "src" / name)
        found = [each for each in places if each.exists() or each.with_suffix(".py").exists()]
        assert found, name
    packages = {each.name for each in (ROOT / "src" / "kflats").iterdir() if each.is_dir()}
    assert packages - {"__pycache__"} <= names


def test_no_module_makes_temporary_files_on_its_own() -> None:
    files = [path for path in (ROOT / "src").rglob("*.py") if path.name != "files.py"]
    assert [path for path in files if "import tempfile" in path.read_text("utf-8")] == []


def test_files_of_the_readme_tree_exist() -> None:
    tree = README.split("## File tree")[1].split("```")[1]
    paths = re.findall(r"^([\w./-]+)", tree, flags=re.MULTILINE)
    assert len(paths) >= 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("words", all_commands())
def test_help_describes_every_option(words: str) -> None:
    from kflats.cli.main import app

    result = CliRunner().invoke(app, [*words.split(), "--help"])
    assert result.exit_code == 0
    assert all(parameter.help for parameter in all_commands()[words].params)


def integration_sections() -> list[tuple[str, list[str]]]:
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    sections = [part.split("\n", 1) for part in text.split("\n## ")[1:]]
    found = [
        (title, re.findall(r"```python\n(.*?)```", body, re.DOTALL)) for title, body in sections
    ]
    return [(title, blocks) for title, blocks in found if blocks]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "blocks", [pytest.param(blocks, id=title) for title, blocks in integration_sections()]
)
def test_every_integration_example_runs(
    blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "integrations.md", "exec"), {})
