from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import TABLE, WORDS, Cli, left_in, save_tiny

pytest.importorskip("accelerate")


def write_text(path: Path, lines: int) -> Path:
    drawn = torch.randint(5, 200, (lines, 7), generator=torch.Generator().manual_seed(2))
    path.write_text("\n".join(" ".join(f"w{i}" for i in row) for row in drawn.tolist()))
    return path


@pytest.fixture
def text(place: Path) -> Path:
    return write_text(place / "text.txt", 60)


SIZES: dict[str, tuple[object, ...]] = {
    "factors": ("--compression", 0.4, "--clusters", 2),
    "rotation": ("--bits", 7, "--method", "codes", "--clusters", 1),
    "two rotations": ("--bits", 8, "--method", "codes", "--clusters", 2),
    "columns": ("--bits", 6, "--method", "codes"),
    "best": ("--bits", 5),
}
RATES = {"factors": 0.1, "best": 1e-3}
ROTATED = {"rotation": [True], "two rotations": [True, True], "columns": [False]}


def compressed(kflats: Cli, model: Path, out: Path, *words: object) -> Path:
    done = kflats("compress", model, "-o", out, *(words or SIZES["factors"]))
    assert done.code == 0, done.err
    return out


def spread_out(folder: Path, name: str) -> Path:
    """Give a tiny model a table that matters, with columns of several sizes."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    drawn = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(5))
    tensors[name] = drawn * torch.linspace(2, 0.2, drawn.shape[1])
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentenceTransformer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    place = tmp_path_factory.mktemp("encoders")
    inner = spread_out(save_tiny(place / "bert", "BertModel"), f"{TABLE}.weight")
    modules = [Transformer(str(inner)), Pooling(16)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(place / "encoder"))
    return place / "encoder"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 whose output head is its token table."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "qwen"
    config = transformers.Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    return spread_out(folder, "model.embed_tokens.weight")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["encoder", "language_model"])
def test_a_folder_that_was_written_heals(
    kflats: Cli, kind: str, size: str, place: Path, request: pytest.FixtureRequest
) -> None:
    model, text = request.getfixturevalue(kind), write_text(place / "corpus.txt", 800)
    words = (*SIZES[size], "--weights", text, "--keep-special")
    small = compressed(kflats, model, place / "small", *words)
    told = kflats("info", small, "--json").json["tables"]
    assert told[0]["shape"].get("rotated") == ROTATED.get(size, told[0]["shape"].get("rotated"))
    words = ("--teacher", model, "--text", text, "-o", place / "healed")
    words = (*words, "--learning-rate", RATES.get(size, 5e-3))
    result = kflats("heal", small, *words, "--max-steps", 40, "--epochs", 2, "--json")
    assert result.code == 0, result.err
    assert result.json["steps"] == 23
    assert result.json["loss_after"] < result.json["loss_before"]
    after = kflats("info", place / "healed", "--json").json["tables"]
    assert [each["num_bytes"] for each in after] == [each["num_bytes"] for each in told]
    old, new = (load_file(folder / "model.safetensors") for folder in (small, place / "healed"))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved
    assert all("embed" in name for name in moved)


def test_heal_writes_a_new_folder_of_the_same_size(
    kflats: Cli, bert: Path, place: Path, text: Path
) -> None:
    small = compressed(kflats, bert, place / "small")
    words = ("--teacher", bert, "--text", text, "-o", place / "healed", "--learning-rate", 0.2)
    result = kflats("heal", small, *words, "--max-steps", 6, "--batch-size", 8, "--json")
    assert result.code == 0, result.err
    assert "distance from the teacher" in result.out
    assert result.json["steps"] == 6
    assert result.json["loss_after"] < result.json["loss_before"]
    old, new = (load_file(folder / "model.safetensors") for folder in (small, place / "healed"))
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}
    different = {name for name in old if not torch.equal(old[name], new[name])}
    assert different
    assert all("word_embeddings" in name for name in different)
    assert (place / "healed" / "tokenizer.json").exists()
    assert kflats("info", place / "healed").code == 0


def test_what_gets_no_better_is_not_saved(kflats: Cli, bert: Path, place: Path, text: Path) -> None:
    small = compressed(kflats, bert, place / "small")
    before = left_in(place)
    words = ("--teacher", bert, "--text", text, "-o", place / "healed", "--learning-rate", 50)
    result = kflats("heal", small, *words, "--max-steps", 3, "--batch-size", 8)
    assert (result.code, len(result.errors)) == (1, 1)
    assert "no better" in result.err
    assert "--learning-rate" in result.err
    assert left_in(place) == before


def test_text_without_known_tokens_fails_in_one_line(kflats: Cli, bert: Path, place: Path) -> None:
    small = compressed(kflats, bert, place / "small")
    (place / "alien.txt").write_text("nothing known\n")
    words = ("--teacher", bert, "--text", place / "alien.txt", "-o", place / "healed")
    result = kflats("heal", small, *words)
    assert (result.code, len(result.errors)) == (1, 1)
    assert "hold no token" in result.err
    assert left_in(place) == ["alien.txt", "small"]


def test_an_existing_folder_and_a_dense_model_are_refused(
    kflats: Cli, bert: Path, place: Path, text: Path
) -> None:
    words = ("--teacher", bert, "--text", text)
    exists = kflats("heal", bert, *words, "-o", place)
    assert (exists.code, len(exists.errors)) == (1, 1)
    dense = kflats("heal", bert, *words, "-o", place / "new")
    assert dense.code == 1
    assert "run kflats compress first" in dense.err
    assert not (place / "new").exists()


def test_without_accelerate_it_says_so_before_it_loads_anything(
    kflats: Cli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    words = ("--teacher", place / "no model", "--text", place / "no text", "-o", place / "healed")
    result = kflats("heal", place / "neither", *words)
    assert (result.code, len(result.errors)) == (1, 1)
    line = " ".join(result.err.split())
    assert "'accelerate' is needed for this and not installed" in line
    assert "pip install -c constraints.txt -e '.[train]'" in line


@pytest.mark.parametrize("teacher", ["small", "other"])
def test_a_compressed_teacher_is_refused_before_it_is_loaded(
    kflats: Cli, bert: Path, place: Path, text: Path, teacher: str
) -> None:
    small = compressed(kflats, bert, place / "small", *SIZES["columns"])
    compressed(kflats, bert, place / "other")
    for folder in (small, place / "other"):
        (folder / "model.safetensors").write_bytes(b"not read")
    words = ("--teacher", place / teacher, "--text", text, "-o", place / "healed")
    result = kflats("heal", small, *words)
    assert (result.code, len(result.errors)) == (1, 1)
    assert "has a compressed table itself" in result.err
    assert not (place / "healed").exists()


@pytest.mark.parametrize("size", ["factors", "columns"])
def test_static_models_are_refused_before_they_are_loaded(
    kflats: Cli, place: Path, text: Path, size: str
) -> None:
    from tests.hf.static import dense

    dense().save_pretrained(str(place / "dense"))
    small = compressed(kflats, place / "dense", place / "small", *SIZES[size])
    for path in small.rglob("model.safetensors"):
        path.write_bytes(b"not read")
    words = ("--teacher", place / "dense", "--text", text, "-o", place / "healed")
    result = kflats("heal", small, *words)
    assert (result.code, len(result.errors)) == (1, 1)
    line = " ".join(result.err.split())
    assert "'embedding' is an embedding bag" in line
    assert "more bits" in line
    assert not (place / "healed").exists()
