"""How big a field of a config is in a tiny model, by its name."""

from __future__ import annotations

import re
from typing import Any

VOCAB, WIDTH, INNER, LAYERS, HEADS, HEAD, LENGTH = 300, 32, 48, 2, 4, 8, 64
IMAGE, PATCH = 28, 14

_RULES = [
    (r"(.*_)?vocab_size.*|num_embeddings|.*_hash_byte_group_vocab", VOCAB),
    (r"(.*_)?token_type.*|type_vocab_size", None),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank|qk_(rope|nope)_head_dim|v_head_dim", HEAD),
    (r"(.*_)?linear_num_(key|value)_heads|linear_num_heads", 2),
    (r"(.*_)?(head_dim|dim_head|d_kv|attention_head_dim|head_size|mamba_d_head)", HEAD),
    (r"rotary_dim", HEAD),
    (r"upsample_groups|upsample_initial_channel|context_size", WIDTH),
    (r"num_queries|max_pos_emb", 10),
    (r"num_filters", 4),
    (r"(.*_)?num_key_value_heads|num_kv_heads|kv_n_heads", 2),
    (r"(.*_)?(num_attention_heads|n_heads?|num_heads|attention_heads|heads)", HEADS),
    (r"(.*_)?(intermediate_size|ffn_dim|mlp_dim|d_ff|n_inner|dim_ff|dff|ffn_hidden_size|d_inner"
     r"|intermediate_dim|linear_units|feedforward_dim|dim_feedforward)", INNER),
    (r"(.*_)?(hidden_size|hidden_size_global|d_model|n_embd|dim|embed_dim|emb_dim|hidden_dim|embedding_dim"
     r"|embedding_size|projection_dim|proj_dim|project_dim|projector_hidden_size|out_hidden_size"
     r"|hidden_size_per_layer_input|output_dim|model_dim|width|channels|proj_size)", WIDTH),
    (r"(.*_)?(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|depth|layers"
     r"|num_blocks|num_decoder_layers|num_encoder_layers|num_hidden_groups|resampler_depth"
     r"|num_mtp_layers|num_nextn_predict_layers)", LAYERS),
    (r"(.*_)?(max_position_embeddings|n_positions|max_seq_len|n_ctx|max_target_positions"
     r"|max_source_positions|seq_length|max_sequence_length|max_2d_position_embeddings"
     r"|num_position_embeddings|context_length|max_text_len|max_text_tokens)", LENGTH),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts|num_routed_experts)", 4),
    (r"(num_experts_per_tok|moe_topk|moe_k|top_k_experts|moe_top_k|expert_top_k)", 2),
    (r"n_group|num_expert_groups", 2),
    (r"topk_group", 1),
    (r"(.*_)?(state_size|mamba_d_state|d_state)", 16),
    (r"(first_k_dense_replace|num_dense_layers)", 1),
    (r"num_query_tokens|resampler_n_latents|latent_query_num|(resampler_)?num_latents", 4),
    (r"(.*_)?(mel_bins|input_feat_per_channel|feature_size)", 16),
]  # fmt: skip
_COMPILED = [(re.compile(pattern), size) for pattern, size in _RULES]
_TOKEN = re.compile(r"(.*_)?(token_id|token_index|token_ids|_index|token)")


def sized(name: str, default: int) -> int:
    """Return the size of a field; never above its default, and unknown fields keep theirs.

    The vocabulary is the exception: it must be seen to be one by its size.
    """
    if name == "vocab_size" and default > 0:
        return VOCAB
    for pattern, size in _COMPILED:
        if pattern.fullmatch(name):
            return default if size is None or default <= 0 else min(default, size)
    return default


def image_sizes(fields: dict[str, Any]) -> dict[str, int]:
    """Return image and patch sizes that go together."""
    patch, image = fields.get("patch_size"), fields.get("image_size")
    if type(patch) is not int or patch <= 0:
        return {"image_size": min(image, 32)} if type(image) is int else {}
    small = PATCH if patch >= 8 else patch
    size = IMAGE if patch >= 8 else 32
    return {"patch_size": small} | ({"image_size": size} if type(image) is int else {})


class TokenIds:
    """Gives special tokens ids below the vocabulary; the same for the same name."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def of(self, name: str, default: int) -> int:
        """Return the id of a token field."""
        if default < VOCAB - 60 or not is_token(name):
            return default
        known = {"pad": 0, "bos": 1, "eos": 2, "unk": 3, "mask": 4, "cls": 5, "sep": 6}
        key = name.split("_token")[0]
        if key in known:
            return known[key]
        return self._given.setdefault(key, VOCAB - 10 - len(self._given))


def is_token(name: str) -> bool:
    """Return whether a field of a config names a token."""
    return bool(_TOKEN.fullmatch(name))
