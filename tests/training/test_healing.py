"""heal_: short distillation from the dense teacher."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kflats import (
    CompressionConfig,
    HealingReport,
    InputError,
    MissingExtraError,
    UnsupportedModelError,
    compress_,
)
from kflats import heal_ as heal
from kflats.layers import FactorizedEmbedding, QuantizedEmbedding
from kflats.training.distillation import Student
from kflats.training.healing import _learning_rate
from tests.conftest import tiny_bert
from tests.hf.models import tiny_gpt2

pytest.importorskip("accelerate")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, 200))]
CODES: dict[str, Any] = {"bits": 4.75, "n_clusters": 1, "exact_ids": (0, 2)}
FACTORS: dict[str, Any] = {"compression": 0.4, "n_clusters": 2}


def texts(count: int = 80) -> list[str]:
    drawn = torch.randint(5, 200, (count, 7), generator=torch.Generator().manual_seed(2))
    return [" ".join(f"w{i}" for i in row) for row in drawn.tolist()]


def tokenizer() -> Any:
    import transformers

    return transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})


def sentence_model() -> Any:
    import tempfile

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    with tempfile.TemporaryDirectory() as place:
        tiny_bert().save_pretrained(place)
        tokenizer().save_pretrained(place)
        transformer = Transformer(place)
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")


KINDS: dict[str, Callable[[], Any]] = {
    "sentence": sentence_model,
    "encoder": tiny_bert,
    "masked": lambda: tiny_bert("BertForMaskedLM"),
    "causal": tiny_gpt2,
    "score": lambda: tiny_bert("BertForSequenceClassification", num_labels=1),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str = "encoder", **settings: Any) -> tuple[Any, Any]:
    """Return a compressed model, and the dense one."""
    model = KINDS[kind]()
    # Tables drawn by BERT are so small that their errors would not matter.
    teacher = KINDS[kind]()
    with torch.no_grad():
        for each in (model, teacher):
            table = find(each, nn.Embedding)
            table.weight.copy_(torch.randn(200, 16, generator=torch.Generator().manual_seed(5)))
    compress_(model, CompressionConfig(**(settings or CODES)))
    return model, teacher


def find(model: nn.Module, kind: Any) -> Any:
    return next(each for each in model.modules() if isinstance(each, kind))


def healed(model: Any, teacher: Any, **changes: Any) -> HealingReport:
    settings: dict[str, Any] = {
        "max_steps": 40,
        "epochs": 9,
        "batch_size": 32,
        "learning_rate": 5e-3,
    }
    settings["tokenizer"] = tokenizer()
    return heal(model, texts(800), teacher=teacher, **{**settings, **changes})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    now = model.state_dict()
    assert now.keys() == before.keys()
    return {name for name in now if not torch.equal(now[name], before[name])}


@kinds
def test_packed_tables_come_nearer_to_the_teacher(kind: str) -> None:
    model, teacher = pair(kind)
    layer, dense = find(model, QuantizedEmbedding), state(teacher)
    shape, size, before = layer.shape, layer.num_bytes, state(model)
    report = healed(model, teacher)
    assert report.loss_after < 0.97 * report.loss_before
    assert report.steps == 40
    assert report.is_better
    now = find(model, QuantizedEmbedding)
    assert (now.shape, now.num_bytes) == (shape, size)
    moved = changed(model, before)
    assert moved
    assert {name.rpartition(".")[2] for name in moved} <= {
        "coefficients", "bases", "scales", "books"
    }  # fmt: skip
    assert not changed(teacher, dense)


@pytest.mark.parametrize("settings", [CODES, FACTORS], ids=["codes", "factors"])
def test_a_model_that_gets_no_better_is_left_as_it_was(settings: dict[str, Any]) -> None:
    model, teacher = pair(**settings)
    before, layer = state(model), find(model, (QuantizedEmbedding, FactorizedEmbedding))
    origin = dict(layer.origin)
    report = healed(model, teacher, learning_rate=50.0, max_steps=3)
    assert not report.is_better
    assert str(report).endswith("no better, so the model is left as it was")
    assert find(model, type(layer)) is layer
    assert layer.origin == origin
    assert not changed(model, before)


def test_the_learning_rate_follows_the_error_of_the_table() -> None:
    model, teacher = pair()
    layer = find(model, QuantizedEmbedding)
    error = layer.origin["relative_error"]
    assert _learning_rate(model) == pytest.approx(min(0.01, 0.04 * error**2))
    layer.origin["relative_error"] = 0.1
    assert _learning_rate(model) == pytest.approx(4e-4)
    assert healed(model, teacher, learning_rate=None, max_steps=4).is_better
    assert _learning_rate(model) == pytest.approx(4e-4)  # healing once more
    assert healed(model, teacher, max_steps=5).is_better
    assert find(model, QuantizedEmbedding).origin["healing_steps"] == 9
    layer = find(model, QuantizedEmbedding)
    layer.origin = {"error_before_healing": 0.9}
    assert _learning_rate(model) == 0.01
    layer.origin = {}
    assert _learning_rate(model) == 0.01


def test_factors_are_healed_too() -> None:
    model, teacher = pair(**FACTORS)
    before = state(model)
    report = healed(model, teacher, learning_rate=0.2)
    assert report.loss_after < 0.97 * report.loss_before
    names = {name.rpartition(".")[2] for name in changed(model, before)}
    assert names == {"coefficients", "bases", "means"}
    assert isinstance(find(model, FactorizedEmbedding), FactorizedEmbedding)


def test_all_parts_train_if_asked_for() -> None:
    model, teacher = pair()
    before = state(model)
    healed(model, teacher, parts="all", body_learning_rate=1e-3)
    moved = changed(model, before)
    assert any("attention" in name for name in moved)
    assert any("coefficients" in name for name in moved)


def test_it_depends_on_the_seed_only() -> None:
    found: list[dict[str, Tensor]] = []
    for seed in (1, 1, 2):
        model, teacher = pair()
        torch.manual_seed(17 + len(found))  # what came before does not matter
        healed(model, teacher, seed=seed, max_steps=4)
        found.append(state(model))
    first, again, other = found
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_modes_and_flags_stay_as_they_were() -> None:
    model, teacher = pair()
    model.train()
    model.embeddings.position_embeddings.weight.requires_grad_(False)
    flags = {name: each.requires_grad for name, each in model.named_parameters()}
    healed(model, teacher)
    assert all(each.training for each in model.modules())
    assert not any(each.training for each in teacher.modules())
    assert {name: each.requires_grad for name, each in model.named_parameters()} == flags
    assert all(each.requires_grad for each in teacher.parameters())


@pytest.mark.parametrize("parts", ["table", "all"])
@pytest.mark.parametrize("settings", [CODES, FACTORS], ids=["codes", "factors"])
def test_a_diverging_run_leaves_the_model_alone(
    parts: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, teacher = pair(**settings)
    before, layer = state(model), model.get_input_embeddings()
    forward, seen = Student.forward, []

    def breaking(self: Student, features: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(1)
            if len(seen) == 4:
                with torch.no_grad():
                    next(p for p in self.model.parameters() if p.requires_grad).fill_(torch.nan)
        return forward(self, features)

    monkeypatch.setattr(Student, "forward", breaking)
    with pytest.raises(InputError, match="healing diverged"):
        healed(model, teacher, parts=parts)
    assert len(seen) == 4
    assert model.get_input_embeddings() is layer
    assert not changed(model, before)
    assert all(not p.requires_grad for p in layer.parameters()) == (settings is CODES)


def test_the_distance_of_equal_models_is_nothing() -> None:
    teacher = tiny_bert()
    features = {"input_ids": torch.arange(4, 12)[None], "attention_mask": torch.ones(1, 8)}
    loss = Student(tiny_bert(), teacher)(features)["loss"]
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("num_labels", [1, 3])
def test_scores_are_compared_by_their_squares_and_labels_as_distributions(num_labels: int) -> None:
    kind = "BertForSequenceClassification"
    model, teacher = (tiny_bert(kind, num_labels=num_labels) for _ in range(2))
    with torch.no_grad():
        model.classifier.bias += 0.5
    features = {"input_ids": torch.arange(4, 12)[None], "attention_mask": torch.ones(1, 8)}
    loss = float(Student(model, teacher)(features)["loss"].detach())
    if num_labels == 1:
        score = float(teacher(**features).logits.detach())
        assert loss == pytest.approx(0.25 / score**2, rel=1e-4)
    else:
        assert loss == pytest.approx(0, abs=1e-6)  # all logits moved alike


class Fixed(nn.Module):
    """A sentence model that gives the same embeddings for whatever it reads."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def encode(self) -> None:
        """Be a sentence model."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": self.rows}


@pytest.mark.parametrize(
    ("got", "wanted", "expected"),
    [
        ([[2.0, 0.0]], [[0.0, 3.0]], 1.0),  # one sentence has no others
        ([[1.0, 0.0], [0.0, 1.0]], [[5.0, 0.0], [5.0, 0.0]], 0.5 + 30.0),
        ([[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], 1.0),  # all turned alike
        ([[4.0, 3.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]], 0.1 + 30 * 0.04),
    ],
)
def test_sentences_are_compared_with_the_teacher_and_with_each_other(
    got: list[list[float]], wanted: list[list[float]], expected: float
) -> None:
    features = {"attention_mask": torch.ones(len(got), 1)}
    loss = Student(Fixed(got), Fixed(wanted))(features)["loss"]
    assert float(loss.detach()) == pytest.approx(expected)


def test_there_is_no_dropout() -> None:
    student = Student(*pair()).train()
    assert not any(each.training for each in student.modules())


def test_padding_does_not_count() -> None:
    model, teacher = pair()
    ids = torch.tensor([[2, 7, 9, 3]])
    mask = torch.ones_like(ids)
    plain = Student(model, teacher)({"input_ids": ids, "attention_mask": mask})["loss"]
    pad = torch.nn.functional.pad
    padded = {"input_ids": pad(ids, (0, 3)), "attention_mask": pad(mask, (0, 3))}
    torch.testing.assert_close(Student(model, teacher)(padded)["loss"], plain)


def test_long_texts_become_several_pieces() -> None:
    model, teacher = pair()
    one = [" ".join(texts(8))]  # 56 words, 6 to a piece
    report = heal(model, one, teacher=teacher, tokenizer=tokenizer(), max_length=8, max_steps=2)
    assert report.pieces == 9  # 10 less the one held out


@pytest.mark.parametrize("wrong", [[], ["", "  "], ["alien words"]])
def test_texts_without_a_known_token_are_refused(wrong: list[str]) -> None:
    model, teacher = pair()
    with pytest.raises(InputError, match="hold no token that the model knows"):
        heal(model, wrong, teacher=teacher, tokenizer=tokenizer())


@pytest.mark.parametrize(
    "changes",
    [{"parts": "head"}, {"epochs": 0}, {"max_steps": 0}, {"learning_rate": float("nan")},
     {"batch_size": -1}, {"max_length": 0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        healed(*pair(), **changes)


def test_a_compressed_teacher_is_refused() -> None:
    model, _ = pair()
    with pytest.raises(InputError, match="the teacher BertModel has a compressed table itself"):
        healed(model, pair(**FACTORS)[0])


@pytest.mark.parametrize("method", ["factors", "codes"])
def test_static_models_are_refused(method: str) -> None:
    from tests.hf.static import compressed, dense

    with pytest.raises(UnsupportedModelError, match=r"'0\.embedding' is an embedding bag"):
        heal(compressed(method), texts(), teacher=dense(), tokenizer=tokenizer())


def test_without_accelerate_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"'accelerate' .*\.\[train\]"):
        heal(nn.Identity(), [], teacher=nn.Identity())


def test_wrong_models_are_refused() -> None:
    model, teacher = pair()
    with pytest.raises(InputError, match="run compress_ first"):
        healed(teacher, model)
    with pytest.raises(InputError, match="the teacher is the model itself"):
        healed(model, model)
    with pytest.raises(InputError, match="no tokenizer of its own"):
        healed(model, teacher, tokenizer=None)
    with pytest.raises(InputError, match="must be the model before compression"):
        healed(model, tiny_bert(hidden_size=8))
    teacher.config.is_encoder_decoder = True
    with pytest.raises(UnsupportedModelError, match="heal its encoder"):
        healed(model, teacher)
