from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import kflats as library
from kflats.cli.console import parse_size
from kflats.evaluation.sts import load_pairs, sts_spearman
from kflats.models import open_sentence_model
from tests.cli.conftest import TABLE, Cli, table_of

PNG = b"\x89PNG\r\n\x1a\n"
COMMANDS = ("inspect", "compress", "evaluate", "demo")

PAIRS = pd.DataFrame(
    [
        ("A man is playing a guitar.", "A man plays the guitar.", 5.0),
        ("A dog runs across the field.", "A puppy is running outside.", 3.5),
        ("She is slicing an onion.", "Someone prepares food.", 2.0),
        ("The train was late again.", "Two cats sleep on a sofa.", 0.0),
    ],
    columns=["sentence1", "sentence2", "score"],
)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def spoken(words: tuple[object, ...]) -> str:
    return " ".join(map(str, words)) or "nothing"


def dense_table(folder: Path) -> torch.Tensor:
    model = library.load(folder)
    weight: torch.Tensor = model.get_input_embeddings().to_embedding().weight.detach()
    return weight


# Help and version


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(kflats: Cli, flag: str) -> None:
    result = kflats(flag)
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(kflats: Cli, command: str) -> None:
    result = kflats(command, "--help")
    assert result.code == 0
    assert f"Usage: kflats {command}" in result.out
    assert "--json" in result.out


def test_version_is_that_of_the_package(kflats: Cli) -> None:
    result = kflats("--version")
    assert (result.code, result.out) == (0, f"kflats {library.__version__}\n")


def test_the_installed_command_starts() -> None:
    script = Path(sys.executable).with_name("kflats")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kflats {library.__version__}\n"


# compress: what it writes


def test_compress_reports_the_error_of_the_table_that_loads(
    kflats: Cli, bert: Path, place: Path
) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--compression", 0.4, "--json")
    (table,) = result.json["tables"]
    error = library.relative_error(table_of(bert), dense_table(place / "out"))
    assert result.code == 0
    assert table["name"] == TABLE
    assert table["compression"] >= 0.4
    assert error == pytest.approx(table["relative_error"], rel=1e-5)


def test_compress_reports_the_bytes_of_the_file(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--target-size", "8KB", "--clusters", 3, "--affine", "--keep-special", "--json")
    result = kflats("compress", bert, "-o", place / "out", *words)
    tensors = load_file(place / "out" / "model.safetensors")
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    of_table = sum(size for name, size in sizes.items() if name.startswith(f"{TABLE}."))
    assert result.json["tables"][0]["bytes_after"] == of_table
    assert result.json["model_bytes_after"] == sum(sizes.values())


def test_report_on_disk_is_the_one_that_was_printed(kflats: Cli, bert: Path, place: Path) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--compression", 0.4, "--json")
    report = json.loads((place / "out" / "kflats_report.json").read_text())
    assert result.json == {"output": str(place / "out"), **report}


def test_folder_holds_the_tokenizer(kflats: Cli, bert: Path, place: Path) -> None:
    from transformers import AutoTokenizer

    kflats("compress", bert, "-o", place / "out", "--compression", 0.4)
    tokenizer = AutoTokenizer.from_pretrained(place / "out")
    assert tokenizer("w9 w123", add_special_tokens=False)["input_ids"] == [9, 123]


def test_model_without_tokenizer_is_saved_without_one(
    kflats: Cli, without_tokenizer: Path, place: Path
) -> None:
    words = ("-o", place / "out", "--compression", 0.4)
    result = kflats("compress", without_tokenizer, *words)
    assert result.code == 0
    assert "no tokenizer" in result.err
    assert not (place / "out" / "tokenizer.json").exists()


def test_target_size_is_met_and_used(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--target-size", "6kB", "--clusters", 2, "--json")
    (table,) = kflats("compress", bert, "-o", place / "out", *words).json["tables"]
    one_rank = 4 * (200 + 2 * 16)
    assert 6000 - one_rank < table["bytes_after"] <= 6000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("123456", 123456),
        ("100B", 100),
        ("800 kB", 800_000),
        ("1.5KB", 1500),
        ("5MB", 5_000_000),
        ("2MiB", 2 * 1024**2),
        ("1GiB", 1024**3),
    ],
)
def test_sizes_are_decimal_unless_they_say_otherwise(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--rank", 4, "--clusters", 2), {"n_clusters": 2, "rank": 4, "affine": False}),
        (("--rank", 4, "--method", "svd"), {"n_clusters": 1, "rank": 4, "affine": False}),
        (("--rank", 3, "--clusters", 2, "--affine"), {"n_clusters": 2, "rank": 3, "affine": True}),
    ],
    ids=["rank", "svd", "affine"],
)
def test_options_set_the_shape(
    kflats: Cli, bert: Path, place: Path, words: tuple[object, ...], expected: dict[str, object]
) -> None:
    result = kflats("compress", bert, "-o", place / "out", *words, "--json")
    assert expected.items() <= result.json["tables"][0]["shape"].items()


def test_keep_special_stores_those_rows_exactly(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--rank", 2, "--clusters", 2, "--keep-special")
    kflats("compress", bert, "-o", place / "out", *words)
    before, after = table_of(bert), dense_table(place / "out")
    torch.testing.assert_close(after[:5], before[:5], rtol=0, atol=0)
    assert not torch.equal(after[5:], before[5:])


def test_weights_make_counted_tokens_more_exact(
    kflats: Cli, bert: Path, place: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w11 w12 w13\n" * 3000)
    size = ("--rank", 4, "--clusters", 2)
    kflats("compress", bert, "-o", place / "plain", *size)
    kflats("compress", bert, "-o", place / "weighted", *size, "--weights", text)
    rows = slice(11, 14)
    plain, weighted = (
        library.relative_error(table_of(bert)[rows], dense_table(place / name)[rows])
        for name in ("plain", "weighted")
    )
    assert weighted < 0.5 * plain


def test_weights_without_tokenizer_are_refused(
    kflats: Cli, without_tokenizer: Path, place: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w11 w12 w13\n")
    words = ("-o", place / "out", "--compression", 0.4, "--weights", text)
    result = kflats("compress", without_tokenizer, *words)
    assert result.code == 1
    assert "tokenizer" in result.errors[0]


def test_module_names_another_table(kflats: Cli, bert: Path, place: Path) -> None:
    name = "embeddings.position_embeddings"
    words = ("--compression", 0.4, "--clusters", 2, "--module", name, "--json")
    result = kflats("compress", bert, "-o", place / "out", *words)
    weights = load_file(place / "out" / "model.safetensors")
    assert [table["name"] for table in result.json["tables"]] == [name]
    assert torch.equal(weights[f"{TABLE}.weight"], table_of(bert))


def test_seed_decides_the_result(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--compression", 0.4, "--clusters", 3, "--method", "messi")
    files = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        kflats("compress", bert, "-o", place / name, *words, "--seed", seed)
        files.append((place / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_report_names_the_method(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--compression", 0.4, "--clusters", 2, "--method", "messi", "--json")
    result = kflats("compress", bert, "-o", place / "out", *words)
    assert result.json["tables"][0]["method"] == "messi"
    assert "messi, n_clusters=2" in result.out


def test_output_says_how_to_load(kflats: Cli, bert: Path, place: Path) -> None:
    out = place / "a-folder-name-that-makes-the-line-longer-than-a-terminal-of-80-columns"
    result = kflats("compress", bert, "-o", out, "--rank", 4, "--clusters", 2)
    assert f"kflats.load({str(out)!r})" in result.out


@pytest.mark.parametrize("name", ["small[v2]", "small[/v2]"])
def test_brackets_in_a_path_are_printed_as_they_are(
    kflats: Cli, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = kflats("compress", bert, "-o", name, "--rank", 4, "--clusters", 2)
    assert result.code == 0
    assert f"saved to {name}; load it with kflats.load({name!r})" in result.out


def test_success_writes_nothing_to_stderr(kflats: Cli, bert: Path, place: Path) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--rank", 4, "--clusters", 2)
    assert (result.code, result.err) == (0, "")


# compress: wrong usage


WRONG_USAGE: list[tuple[tuple[object, ...], str]] = [
    (("--compression", 1.5), "compression=1.5"),
    (("--compression", "nan"), "compression=nan"),
    ((), "no size"),
    (("--compression", 0.4, "--target-size", "5KB"), "exactly one"),
    (("--compression", 0.4, "--method", "foo"), "'foo'"),
    (("--compression", 0.4, "--clusters", 0), "n_clusters=0"),
    (("--compression", 0.4, "--method", "svd", "--clusters", 2), "one subspace"),
    (("--compression", 0.4, "--seed", -1), "-1"),
    (("--target-size", "5XB"), "'5XB'"),
    (("--target-size", "small"), "'small'"),
    (("--target-size", 0), "at least 1"),
    (("--rank", 3), "needs n_clusters"),
]


@pytest.mark.parametrize(
    ("words", "reason"), WRONG_USAGE, ids=[spoken(words) for words, _ in WRONG_USAGE]
)
def test_wrong_usage_exits_2(
    kflats: Cli, bert: Path, place: Path, words: tuple[object, ...], reason: str
) -> None:
    result = kflats("compress", bert, "-o", place / "out", *words)
    assert result.code == 2
    (line,) = result.errors
    assert line.startswith("error: ")
    assert reason in result.err
    assert left_in(place) == []


# compress: jobs that fail


FAILING_JOBS: list[tuple[tuple[object, ...], str]] = [
    (("--target-size", "100B"), "100 bytes cannot be met"),
    (("--compression", 0.999), "compression=0.999 cannot be met"),
    (("--compression", 0.4, "--clusters", 500), "n_clusters=500"),
    (("--rank", 15, "--clusters", 3), "lower the rank"),
    (("--rank", 17, "--clusters", 3), "rank=17 must be between 1 and"),
    (("--compression", 0.4, "--module", "foo"), "'foo' is not an embedding"),
    (("--compression", 0.4, "--device", "foo"), "device='foo'"),
    (("--compression", 0.4, "--weights", "absent.txt"), "absent.txt is not a file"),
]


@pytest.mark.parametrize(
    ("words", "reason"), FAILING_JOBS, ids=[spoken(words) for words, _ in FAILING_JOBS]
)
def test_failed_job_exits_1_and_leaves_nothing(
    kflats: Cli, bert: Path, place: Path, words: tuple[object, ...], reason: str
) -> None:
    result = kflats("compress", bert, "-o", place / "out", *words)
    (line,) = result.errors
    assert result.code == 1
    assert line.startswith("error: ")
    assert reason in line
    assert (result.out, left_in(place)) == ("", [])


def test_error_is_all_that_stderr_holds(kflats: Cli, bert: Path, place: Path) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--target-size", "100B")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


def test_smallest_number_of_clusters_is_not_advised_to_shrink(
    kflats: Cli, bert: Path, place: Path
) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--target-size", "100B")
    assert "n_clusters=1 " in result.err
    assert "fewer clusters" not in result.err


def test_missing_model_folder_is_named(kflats: Cli, tmp_path: Path, place: Path) -> None:
    missing = tmp_path / "missing"
    result = kflats("compress", missing, "-o", place / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert f"{missing} is no model folder" in line


def test_unreachable_hub_name_is_one_line(kflats: Cli, place: Path) -> None:
    result = kflats("compress", "no-such-model", "-o", place / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert "cannot load 'no-such-model'" in line


def test_truncated_weights_are_one_line(
    kflats: Cli, without_tokenizer: Path, place: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, size in (("config.json", None), ("model.safetensors", 3000)):
        (broken / name).write_bytes((without_tokenizer / name).read_bytes()[:size])
    result = kflats("compress", broken, "-o", place / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert f"cannot load '{broken}'" in line


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_existing_output_is_kept(kflats: Cli, bert: Path, place: Path, kind: str) -> None:
    out = place / "out"
    out.mkdir() if kind == "folder" else out.touch()
    result = kflats("compress", bert, "-o", out, "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert "out exists already" in line
    assert left_in(place) == ["out"]


def test_existing_output_is_noticed_before_the_model_is_loaded(
    kflats: Cli, tmp_path: Path, place: Path
) -> None:
    result = kflats("compress", tmp_path / "missing", "-o", place, "--compression", 0.4)
    (line,) = result.errors
    assert "place exists already" in line


def test_output_below_a_file_is_refused(kflats: Cli, bert: Path, place: Path) -> None:
    (place / "file").write_text("kept")
    result = kflats("compress", bert, "-o", place / "file" / "out", "--rank", 4, "--clusters", 2)
    (line,) = result.errors
    assert result.code == 1
    assert "cannot write to" in line
    assert (place / "file").read_text() == "kept"


def test_tied_head_names_the_remedy(kflats: Cli, tied: Path, place: Path) -> None:
    result = kflats("compress", tied, "-o", place / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert "tied to the output head" in line
    assert "--base-model" in line
    assert left_in(place) == []


def test_base_model_drops_the_tied_head(kflats: Cli, tied: Path, place: Path) -> None:
    words = ("--compression", 0.4, "--base-model")
    result = kflats("compress", tied, "-o", place / "out", *words)
    assert result.code == 0
    assert type(library.load(place / "out")).__name__ == "BertModel"


def test_nan_in_the_table_names_the_row(kflats: Cli, with_nan: Path, place: Path) -> None:
    result = kflats("compress", with_nan, "-o", place / "out", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert f"'{TABLE}'" in line
    assert "NaN or infinity, first in row 7" in line
    assert left_in(place) == []


def test_compressed_model_is_refused(kflats: Cli, bert: Path, place: Path) -> None:
    kflats("compress", bert, "-o", place / "once", "--rank", 4, "--clusters", 2)
    result = kflats("compress", place / "once", "-o", place / "twice", "--compression", 0.4)
    (line,) = result.errors
    assert result.code == 1
    assert "the token table is already factorised" in line
    assert left_in(place) == ["once"]


def test_full_disk_is_one_line_and_leaves_nothing(
    kflats: Cli, bert: Path, place: Path, small_files: None
) -> None:
    result = kflats("compress", bert, "-o", place / "out", "--rank", 4, "--clusters", 2)
    (line,) = result.errors
    assert result.code == 1
    assert "cannot write" in line
    assert left_in(place) == []


@pytest.mark.parametrize(
    "target",
    ["kflats.clustering.runs.refine", "kflats.storage.folder._write_json"],
    ids=["clustering", "saving"],
)
def test_interrupt_exits_130_and_leaves_nothing(
    kflats: Cli, bert: Path, place: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    seen = []

    def interrupt(*args: object, **options: object) -> None:
        seen.append(left_in(place))
        raise KeyboardInterrupt

    monkeypatch.setattr(target, interrupt)
    result = kflats("compress", bert, "-o", place / "out", "--rank", 4, "--clusters", 2)
    assert (result.code, len(seen), left_in(place)) == (130, 1, [])


def test_interrupt_is_confirmed(
    kflats: Cli, bert: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kflats.clustering.runs.refine", interrupt)
    result = kflats("compress", bert, "-o", place / "out", "--rank", 4, "--clusters", 2)
    assert "interrupted" in result.err


def test_debug_shows_the_error_itself(kflats: Cli, tmp_path: Path) -> None:
    words = ("compress", tmp_path / "missing", "-o", tmp_path / "out", "--compression", 0.4)
    with pytest.raises(library.CheckpointError, match="is no model folder"):
        kflats("--debug", *words)
    assert kflats(*words).code == 1


# inspect


def test_inspect_writes_a_png_and_a_table(kflats: Cli, bert: Path, place: Path) -> None:
    plot = place / "new" / "errors.png"
    result = kflats("inspect", bert, "--clusters", "2,3", "--plot", plot)
    heading = next(line for line in result.out.splitlines() if "removed" in line)
    assert result.code == 0
    assert heading.split() == ["removed", "SVD", "k", "=", "2", "k", "=", "3"]
    assert plot.read_bytes().startswith(PNG)
    assert left_in(plot.parent) == ["errors.png"]


def test_inspect_prints_the_figures_of_its_json(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--clusters", "2", "--compressions", "0.3,0.5", "--json")
    result = kflats("inspect", bert, "--plot", place / "a.png", *words)
    points = result.json["grid"][TABLE]
    printed = [f"{point['relative_error']:.4f} ({point['shape']['rank']})" for point in points]
    assert len(points) == 4
    assert all(cell in result.out for cell in printed)


def test_inspect_lists_every_table(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--clusters", "2", "--compressions", "0.5", "--json")
    tables = kflats("inspect", bert, "--plot", place / "a.png", *words).json["tables"]
    weights = load_file(bert / "model.safetensors")
    total = sum(weight.numel() for weight in weights.values())
    assert [table["shape"] for table in tables] == [[200, 16], [512, 16], [2, 16]]
    assert tables[0]["share"] == pytest.approx(3200 / total)
    assert tables[0]["bytes"] == 12800


def test_inspect_looks_at_the_named_table(kflats: Cli, bert: Path, place: Path) -> None:
    name = "embeddings.position_embeddings"
    words = ("--module", name, "--clusters", "2", "--compressions", "0.5", "--json")
    result = kflats("inspect", bert, "--plot", place / "a.png", *words)
    assert list(result.json["grid"]) == [name]


def test_inspect_needs_no_untied_head(kflats: Cli, tied: Path, place: Path) -> None:
    words = ("--clusters", "2", "--compressions", "0.5")
    result = kflats("inspect", tied, "--plot", place / "a.png", *words)
    assert result.code == 0
    assert "bert.embeddings.word_embeddings" in result.out


@pytest.mark.parametrize(
    "words",
    [
        ("--clusters", "two"),
        ("--clusters", "0"),
        ("--clusters", ""),
        ("--compressions", "1.5"),
        ("--seed", "-1"),
    ],
    ids=" ".join,
)
def test_inspect_refuses_wrong_usage(
    kflats: Cli, bert: Path, place: Path, words: tuple[str, ...]
) -> None:
    result = kflats("inspect", bert, "--plot", place / "a.png", *words)
    assert result.code == 2
    (line,) = result.errors
    assert line.startswith("error: ")
    assert left_in(place) == []


def test_inspect_of_a_table_with_nan_is_one_line(kflats: Cli, with_nan: Path, place: Path) -> None:
    result = kflats("inspect", with_nan, "--plot", place / "a.png")
    (line,) = result.errors
    assert result.code == 1
    assert "NaN or infinity, first in row 7" in line


def test_picture_below_a_file_is_refused(kflats: Cli, bert: Path, place: Path) -> None:
    (place / "file").touch()
    words = ("--clusters", "2", "--compressions", "0.5")
    result = kflats("inspect", bert, "--plot", place / "file" / "a.png", *words)
    (line,) = result.errors
    assert result.code == 1
    assert "cannot write" in line


def test_inspect_says_when_no_size_can_be_met(kflats: Cli, bert: Path, place: Path) -> None:
    words = ("--clusters", "2", "--compressions", "0.99")
    result = kflats("inspect", bert, "--plot", place / "a.png", *words)
    (line,) = result.errors
    assert result.code == 1
    assert line.startswith("error: ")
    assert left_in(place) == []


# evaluate


def test_evaluate_scores_the_packaged_model(kflats: Cli, tmp_path: Path) -> None:
    data = tmp_path / "pairs.parquet"
    PAIRS.to_parquet(data)
    result = kflats("evaluate", "minilm", "--data", data, "--json")
    assert result.code == 0
    assert result.json == {
        "model": "minilm",
        "task": "sts",
        "metric": "cosine_spearman_x100",
        "score": pytest.approx(100.0),
        "pairs": 4,
        "data": str(data),
    }


def test_evaluate_reads_the_split(kflats: Cli, bert: Path, tmp_path: Path) -> None:
    PAIRS.to_parquet(tmp_path / "validation.parquet")
    result = kflats("evaluate", bert, "--data", tmp_path, "--split", "validation", "--json")
    assert result.json["data"] == str(tmp_path / "validation.parquet")


def test_evaluate_scores_the_factors_of_a_compressed_model(
    kflats: Cli, bert: Path, place: Path, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.parquet"
    rows = [(f"w{i} w{i + 20}", f"w{i + 40} w{3 * i}", float(i)) for i in range(20, 40)]
    pd.DataFrame(rows, columns=PAIRS.columns).to_parquet(data)
    kflats("compress", bert, "-o", place / "out", "--rank", 4, "--clusters", 2)
    encoder = open_sentence_model(str(bert))
    dense = library.load(place / "out").get_input_embeddings().to_embedding()
    encoder[0].auto_model.set_input_embeddings(dense)
    result = kflats("evaluate", place / "out", "--data", data, "--json")
    assert result.json["score"] == pytest.approx(sts_spearman(encoder, load_pairs(data)))


def test_evaluate_refuses_an_unknown_task(kflats: Cli, tmp_path: Path) -> None:
    result = kflats("evaluate", "minilm", "--task", "chess", "--data", tmp_path)
    assert result.code == 2
    assert "task='chess' is not known" in result.err


def test_evaluate_names_missing_data(kflats: Cli, tmp_path: Path) -> None:
    result = kflats("evaluate", "minilm", "--data", tmp_path / "absent.parquet")
    (line,) = result.errors
    assert result.code == 1
    assert "absent.parquet does not exist" in line


def test_evaluate_names_a_missing_model(kflats: Cli, tmp_path: Path) -> None:
    data = tmp_path / "pairs.parquet"
    PAIRS.to_parquet(data)
    result = kflats("evaluate", tmp_path / "absent", "--data", data)
    (line,) = result.errors
    assert result.code == 1
    assert "absent is no model folder" in line


# demo


def test_demo_keeps_an_existing_folder(kflats: Cli, place: Path) -> None:
    result = kflats("demo", "-o", place)
    (line,) = result.errors
    assert result.code == 1
    assert "exists already" in line
    assert left_in(place) == []


@pytest.mark.slow
def test_demo_saves_a_model_that_encodes(
    kflats: Cli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kflats.cli.demo.COMPRESSIONS", (0.4,))
    monkeypatch.setattr("kflats.cli.demo.CLUSTERS", (1, 2))
    result = kflats("demo", "-o", place / "demo", "--json")
    vectors = library.load(place / "demo" / "model").encode(["A boat departs early."])
    assert result.code == 0
    assert result.json["saved"]["identical_after_reload"]
    assert (place / "demo" / "errors.png").read_bytes().startswith(PNG)
    assert vectors.shape == (1, 384)
