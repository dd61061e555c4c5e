from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kflats as library
from kflats.cli.console import parse_size
from tests.cli.conftest import TABLE, Cli, dense_table, left_in, spoken, table_of


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
        (("--rank", 4, "--clusters", 2), (2, 4, True)),
        (("--rank", 4, "--clusters", 2, "--linear"), (2, 4, False)),
        (("--rank", 4, "--clusters", 2, "--method", "projective"), (2, 4, False)),
        (("--rank", 4, "--method", "svd"), (1, 4, False)),
        (("--rank", 3, "--clusters", 2, "--affine"), (2, 3, True)),
    ],
    ids=["rank", "linear", "projective", "svd", "affine"],
)
def test_options_set_the_shape(
    kflats: Cli, bert: Path, place: Path, words: tuple[object, ...], expected: tuple[int, int, bool]
) -> None:
    (table,) = kflats("compress", bert, "-o", place / "out", *words, "--json").json["tables"]
    shape = library.FactorShape.from_dict(table["shape"])
    assert (shape.n_clusters, shape.rank, shape.affine) == expected
    assert (table["n_clusters"], table["rank"]) == expected[:2]


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


def test_tied_head_is_compressed_with_its_table(kflats: Cli, tied: Path, place: Path) -> None:
    words = ("-o", place / "out", "--compression", 0.4, "--clusters", 2, "--json")
    result = kflats("compress", tied, *words)
    (table,) = result.json["tables"]
    assert table["readers"] == [f"bert.{TABLE}", "cls.predictions.decoder"]
    assert f"bert.{TABLE} = cls.predictions.decoder: 200 x 16" in result.out
    head = library.load(place / "out").get_output_embeddings()
    assert isinstance(head, library.FactorizedLinear)


def test_base_model_drops_the_head(kflats: Cli, tied: Path, place: Path) -> None:
    words = ("--compression", 0.4, "--base-model", "--json")
    result = kflats("compress", tied, "-o", place / "out", *words)
    assert result.code == 0
    assert result.json["tables"][0]["readers"] == [TABLE]
    assert type(library.load(place / "out")).__name__ == "BertModel"


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
    (("--bits", 0), "bits=0"),
    (("--bits", 2, "--method", "svd"), "method='svd' takes no bits"),
    (("--bits", 2, "--method", "flats"), "method='flats' takes no bits"),
    (("--bits", 2, "--compression", 0.4), "method='codes' takes bits or target_bytes"),
    (("--max-drop", 1), "--max-drop needs --metric"),
    (("--bits", 2, "--metric", "glue"), "sts=FILE"),
    (("--bits", 2, "--metric", "sts=x", "--method", "codes"), "leave out --method"),
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
