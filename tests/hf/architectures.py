"""A tiny model of every architecture, with planted token tables, and what it answers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tests.conftest import planted

if TYPE_CHECKING:
    from kflats import CompressionReport

SPECIAL_IDS = (0, 2)
"""Rows that lie in no planted subspace."""
N_CLUSTERS, RANK = 3, 4

_WIDE = {"vocab_size": 120, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "initializer_range": 0.3}  # fmt: skip
_TIED = {**_WIDE, "num_key_value_heads": 2, "tie_word_embeddings": True}
_OWN = {**_TIED, "tie_word_embeddings": False}
_NARROW = {**_WIDE, "embedding_size": 12}
_MODERN = {**_WIDE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
           "sep_token_id": 2}  # fmt: skip
_DISTIL = {"vocab_size": 120, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
_GPT2 = {"vocab_size": 120, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1,
         "eos_token_id": 2, "initializer_range": 0.3}  # fmt: skip
_GEMMA = {**_TIED, "head_dim": 8, "pad_token_id": 0}
_T5 = {"vocab_size": 120, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
       "decoder_start_token_id": 0}  # fmt: skip
_BART = {"vocab_size": 120, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
         "decoder_ffn_dim": 32, "max_position_embeddings": 64, "scale_embedding": True,
         "forced_eos_token_id": None, "decoder_start_token_id": 2, "init_std": 0.3}  # fmt: skip
_MARIAN = {**_BART, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
_BF16 = torch.bfloat16


@dataclass(frozen=True)
class Architecture:
    """One row of the matrix.

    ``readers`` says how many modules read each table; ``own_head`` gives a model that its class
    ties a head of its own, as Flan-T5 has it.
    """

    kind: str
    settings: dict[str, Any]
    readers: tuple[int, ...] = (2,)
    dtype: torch.dtype = torch.float32
    own_head: bool = False

    @property
    def auto(self) -> str:
        """Name of the Auto class that loads a checkpoint of this class."""
        ends = {"MaskedLM": "MaskedLM", "SequenceClassification": "SequenceClassification",
                "ConditionalGeneration": "Seq2SeqLM", "MTModel": "Seq2SeqLM"}  # fmt: skip
        found = [auto for end, auto in ends.items() if self.kind.endswith(end)]
        return f"AutoModelFor{found[0] if found else 'CausalLM'}"

    @property
    def generates(self) -> bool:
        """Whether the class can generate."""
        return self.auto.endswith(("CausalLM", "Seq2SeqLM"))


ARCHITECTURES = {
    "bert": Architecture("BertForMaskedLM", _WIDE),
    "bert-classifier": Architecture("BertForSequenceClassification", _WIDE, (1,)),
    "roberta": Architecture("RobertaForMaskedLM", _WIDE),
    "xlm-roberta": Architecture("XLMRobertaForMaskedLM", _WIDE),
    "distilbert": Architecture("DistilBertForMaskedLM", _DISTIL),
    "albert": Architecture("AlbertForMaskedLM", _NARROW),
    "electra": Architecture("ElectraForMaskedLM", _NARROW),
    "mpnet": Architecture("MPNetForMaskedLM", _WIDE),
    "deberta": Architecture("DebertaForMaskedLM", _WIDE),
    "deberta-v2": Architecture("DebertaV2ForMaskedLM", _WIDE),
    "deberta-v2-new-head": Architecture(
        "DebertaV2ForMaskedLM",
        {**_WIDE, "legacy": False},
        (1,),  # the head is no module
    ),
    "modernbert": Architecture("ModernBertForMaskedLM", _MODERN),
    "gpt2": Architecture("GPT2LMHeadModel", _GPT2),
    "llama": Architecture("LlamaForCausalLM", _TIED),
    "llama-untied": Architecture("LlamaForCausalLM", _OWN, (1, 1)),
    "qwen3": Architecture("Qwen3ForCausalLM", {**_TIED, "head_dim": 8}),
    "qwen3-untied": Architecture("Qwen3ForCausalLM", {**_OWN, "head_dim": 8}, (1, 1)),
    "gemma3": Architecture("Gemma3ForCausalLM", _GEMMA),
    "phi": Architecture("PhiForCausalLM", _OWN, (1, 1)),  # its own head has a bias
    "mixtral": Architecture("MixtralForCausalLM", {**_OWN, "num_local_experts": 2}, (1, 1)),
    "t5": Architecture("T5ForConditionalGeneration", _T5, (4,)),
    "t5-own-head": Architecture(
        "T5ForConditionalGeneration", {**_T5, "tie_word_embeddings": False}, (3, 1), own_head=True
    ),
    "bart": Architecture("BartForConditionalGeneration", _BART, (4,)),
    "mbart": Architecture("MBartForConditionalGeneration", _BART, (4,)),
    "marian": Architecture("MarianMTModel", _MARIAN, (4,)),
    "marian-two-vocabularies": Architecture(
        "MarianMTModel",
        {**_MARIAN, "decoder_vocab_size": 90, "share_encoder_decoder_embeddings": False},
        (1, 2),
    ),
    "bert-bf16": Architecture("BertForMaskedLM", _WIDE, dtype=_BF16),
    "llama-bf16": Architecture("LlamaForCausalLM", _TIED, dtype=_BF16),
    "gemma3-bf16": Architecture("Gemma3ForCausalLM", _GEMMA, dtype=_BF16),
    "t5-bf16": Architecture("T5ForConditionalGeneration", _T5, (4,), dtype=_BF16),
}


def dense_model(name: str) -> Any:
    """Return a dense model whose token tables lie in planted subspaces but for special rows."""
    import transformers

    from kflats.tables import find_tables

    row = ARCHITECTURES[name]
    torch.manual_seed(0)
    model_class = getattr(transformers, row.kind)
    config = model_class.config_class(**row.settings)
    model = model_class._from_config(config, dtype=row.dtype).eval()
    if row.own_head:
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    for seed, table in enumerate(find_tables(model)):
        n, d = table.weight.shape
        rows, _, _ = planted(n // N_CLUSTERS, N_CLUSTERS, RANK, d, seed=seed)
        rows[list(SPECIAL_IDS)] = torch.randn(len(SPECIAL_IDS), d, dtype=rows.dtype)
        with torch.no_grad():
            table.weight.copy_(0.3 * rows)
    return model


@cache
def compressed(name: str) -> tuple[Any, CompressionReport]:
    """Return the compressed model, which nobody may change, and the report."""
    import kflats

    config = kflats.CompressionConfig(
        rank=RANK, n_clusters=N_CLUSTERS, exact_ids=SPECIAL_IDS, options={"n_init": 10}
    )
    model = dense_model(name)
    return model, kflats.compress_(model, config)


@cache
def reconstructed(name: str) -> Any:
    """Return the dense model that holds the approximated tables."""
    return copy.deepcopy(compressed(name)[0]).dequantize()


def inputs_of(model: Any) -> dict[str, Tensor]:
    """Return ids from all planted subspaces; below 90, which every vocabulary has."""
    ids = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(7))
    found = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        found["decoder_input_ids"] = ids[:, :9]
    return found


def answers(model: Any) -> dict[str, Tensor]:
    """Return the first output, and what the model generates if it can."""
    inputs = inputs_of(model)
    with torch.no_grad():
        found = {"logits": model(**inputs)[0]}
    if model.can_generate():
        ids = inputs["input_ids"]
        mask = torch.ones_like(ids)
        for search, beams in (("greedy", 1), ("beam", 3)):
            options = {"num_beams": beams, "do_sample": False, "min_new_tokens": 8}
            found[search] = model.generate(ids, attention_mask=mask, max_new_tokens=8, **options)
    return found


def readers_of(model: nn.Module) -> list[list[str]]:
    """Return, table by table, the names of the modules that read it."""
    from kflats.storage.manifest import factor_layers

    tables: dict[int, list[str]] = {}
    for name, layer in factor_layers(model).items():
        tables.setdefault(id(layer.coefficients), []).append(name)
    return sorted(tables.values())
