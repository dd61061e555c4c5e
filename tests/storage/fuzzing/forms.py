"""Small folders of every form that kflats writes, and every way to load and ask them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kflats
from kflats import CompressionConfig
from kflats.storage.info import folder_info
from kflats.storage.manifest import factor_layers
from tests.conftest import spectral_table, tiny_bert

FLATS: dict[str, Any] = {"compression": 0.4, "n_clusters": 2, "effort": "fast"}
METHODS: dict[str, dict[str, Any]] = {
    "flats": {**FLATS, "exact_ids": (0, 3)},
    "projective": {"compression": 0.4, "n_clusters": 3, "method": "projective"},
    "affine": {"compression": 0.3, "n_clusters": 2, "method": "projective", "affine": True},
    "svd": {"compression": 0.4, "method": "svd"},
    "codes": {"bits": 7.0, "n_clusters": 1, "exact_ids": (0, 3)},
    "one width": {"bits": 7.0, "n_clusters": 1, "options": {"max_rungs": 1}},
    "columns": {"bits": 7.0, "options": {"rotated": False}},
    "two bases": {"bits": 7.0, "n_clusters": 2, "options": {"basis_bits": 16}},
}
IDS = torch.tensor([[3, 0, 17, 199], [5, 5, 101, 64]])
TEXTS = ["w1 w2 w3", "w7", "w9 w9 unheard w39 w1"]
Load = Callable[[Path], Any]


@dataclass(frozen=True)
class Form:
    """A folder to mutate.

    Attributes
    ----------
    name : str
        For the table of counts.
    write : callable
        Writes it.
    ways : tuple of callable
        The ways in; the first is ``kflats.load``.
    answer : callable
        What a loaded model says.
    weight : int
        How often it comes up.
    """

    name: str
    write: Callable[[Path], None]
    ways: tuple[Load, ...]
    answer: Callable[[Any], list[Tensor]]
    weight: int = 1


def signature(model: nn.Module) -> list[Any]:
    """Return the class of a model and what its compressed layers are."""
    layers = factor_layers(model)
    kept = ("shape", "padding_idx", "scale", "mode", "include_last_offset", "is_shared")
    found = [
        (name, type(layer).__name__, *(getattr(layer, key, None) for key in kept))
        for name, layer in layers.items()
    ]
    return [type(model).__name__, *found]


def transformers_answer(model: Any) -> list[Tensor]:
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return [model.eval()(input_ids=IDS, **more)[0]]


def plain_answer(model: Any) -> list[Tensor]:
    with torch.no_grad():
        return [model(IDS.flatten()[:, None])]


def sentence_answer(model: Any) -> list[Tensor]:
    return [model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)]


def static_answer(module: Any) -> list[Tensor]:
    with torch.no_grad():
        return [module(module.tokenize(TEXTS))["sentence_embedding"]]


def _transformers(model: Any, method: str, **options: Any) -> Form:
    def write(folder: Path) -> None:
        fresh = deepcopy(model)
        kflats.compress_(fresh, CompressionConfig(**METHODS[method]))
        kflats.save(fresh, folder, **options)

    way: Load = type(model).from_pretrained
    name = f"{type(model).__name__}, {method}" + "".join(f", {option}" for option in options)
    return Form(name, write, (kflats.load, way), transformers_answer)


class Pair(nn.Module):
    """Two tables of one size, one of them tied to a head with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.others = nn.Embedding(200, 24), nn.Embedding(200, 24)
        self.head = nn.Linear(24, 200)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.words(ids) + self.others(ids))
        return logits


class Bag(nn.Module):
    """A bag whose settings all count."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(200, 24, mode="sum", padding_idx=5)

    def forward(self, ids: Tensor) -> Tensor:
        sums: Tensor = self.words(ids.view(-1, 4))
        return sums


def _plain(make: Callable[[], Any], method: str, **options: Any) -> Form:
    def fresh() -> Any:
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            model.words.weight.copy_(spectral_table(200))
        return model

    def write(folder: Path) -> None:
        model = fresh()
        kflats.compress_(model, CompressionConfig(**METHODS[method], modules=("words",)))
        kflats.save(model, folder, **options)

    def load(folder: Path) -> Any:
        return kflats.load(folder, model=make())

    name = f"{make.__name__}, {method}" + "".join(f", {option}" for option in options)
    return Form(name, write, (load,), plain_answer, weight=14)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = ["[UNK]", "[PAD]", *(f"w{i}" for i in range(198))]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = WhitespaceSplit()
    return made


def _static(method: str) -> Form:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    def write(folder: Path) -> None:
        static = StaticEmbedding(_tokenizer(), embedding_weights=spectral_table(200).numpy())
        model = SentenceTransformer(modules=[static, Normalize()], device="cpu")
        kflats.compress_(model, CompressionConfig(**METHODS[method]))
        kflats.save(model, folder)

    def load(folder: Path) -> Any:
        return kflats.load(folder)

    def library(folder: Path) -> Any:
        return SentenceTransformer(str(folder), device="cpu")

    return Form(f"static, {method}", write, (load, library), sentence_answer)


def _static_module(method: str) -> Form:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    def write(folder: Path) -> None:
        static = StaticEmbedding(_tokenizer(), embedding_weights=spectral_table(200).numpy())
        kflats.compress_(static, CompressionConfig(**METHODS[method]))
        folder.mkdir()
        static.save(str(folder))

    def load(folder: Path) -> Any:
        return StaticEmbedding.load(str(folder))

    return Form(f"static module, {method}", write, (load,), static_answer, weight=3)


def _sentence(method: str) -> Form:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import PreTrainedTokenizerFast

    def write(folder: Path) -> None:
        source = folder.with_name(f"{folder.name}-dense")
        tiny_bert().save_pretrained(source)
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
        PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), **special).save_pretrained(source)
        model = SentenceTransformer(modules=[Transformer(str(source)), Pooling(16)], device="cpu")
        kflats.compress_(model, CompressionConfig(**METHODS[method]))
        kflats.save(model, folder)

    def load(folder: Path) -> Any:
        return kflats.load(folder)

    def library(folder: Path) -> Any:
        return SentenceTransformer(str(folder), device="cpu")

    return Form(f"sentence, {method}", write, (load, library), sentence_answer)


def _model(kind: str, **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    return model_class(model_class.config_class(vocab_size=200, **settings)).eval()


def _gemma() -> Any:
    return _model(
        "Gemma3TextModel", hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, intermediate_size=32,
    )  # fmt: skip


def _t5(kind: str) -> Any:
    return _model(kind, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)


def _llama() -> Any:
    return _model(
        "LlamaForCausalLM", hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, tie_word_embeddings=False,
    )  # fmt: skip


def _gpt() -> Any:
    return _model("GPT2LMHeadModel", n_embd=16, n_layer=1, n_head=2)


def plain_forms() -> list[Form]:
    """Return the forms that need neither transformers nor sentence-transformers."""
    found = [_plain(Pair, method) for method in METHODS]
    found += [_plain(Bag, "flats"), _plain(Bag, "codes"), _plain(Pair, "codes", entropy=True)]
    return found


@cache
def all_forms() -> tuple[Form, ...]:
    """Return every form; the folders are written by :meth:`Form.write`."""
    berts = [_transformers(tiny_bert(num_hidden_layers=1), method) for method in METHODS]
    return (
        *plain_forms(),
        *berts,
        _transformers(tiny_bert(num_hidden_layers=1), "flats", max_shard_size="6KB"),
        _transformers(tiny_bert(num_hidden_layers=1), "codes", entropy=True),
        _transformers(tiny_bert("BertForMaskedLM", num_hidden_layers=1), "flats"),
        _transformers(tiny_bert("BertForMaskedLM", num_hidden_layers=1), "codes"),
        _transformers(_gpt(), "flats"),
        _transformers(_t5("T5ForConditionalGeneration"), "codes"),
        _transformers(_t5("T5Model"), "flats"),
        _transformers(_llama(), "flats"),
        _transformers(_llama(), "two bases"),
        _transformers(_gemma(), "flats"),
        _transformers(_gemma(), "codes"),
        _static("flats"),
        _static("codes"),
        _static_module("flats"),
        _static_module("codes"),
        _sentence("flats"),
        _sentence("codes"),
    )


def info(folder: Path) -> None:
    """Ask for the sizes, as ``kflats info`` does."""
    folder_info(folder).to_dict()
