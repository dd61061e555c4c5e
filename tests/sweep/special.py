"""Inputs of models whose signature does not say what they need, by model type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LENGTH = 12
"""Tokens of a text."""


def special_inputs(model: Any, ids: Tensor) -> dict[str, Any] | None:
    """Return inputs for a model of a type that is listed here, else None."""
    make = _MAKERS.get(model.config.model_type)
    return None if make is None else make(model.config, ids)


def _instructblip(config: Any, ids: Tensor) -> dict[str, Any]:
    size, found = config.vision_config.image_size, ids.clone()
    video = config.model_type.endswith("video")
    found[:, : config.num_query_tokens * (2 if video else 1)] = 290
    shape = (2, 2, 3, size, size) if video else (2, 3, size, size)
    return {"input_ids": found, "qformer_input_ids": ids, "pixel_values": torch.randn(*shape)}


def _lxmert(config: Any, ids: Tensor) -> dict[str, Any]:
    feats = torch.randn(2, 5, config.visual_feat_dim)
    return {"input_ids": ids, "visual_feats": feats, "visual_pos": torch.rand(2, 5, 4)}


def _visual_bert(config: Any, ids: Tensor) -> dict[str, Any]:
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "visual_embeds": torch.randn(2, 5, config.visual_embedding_dim),
    }


def _kosmos2(config: Any, ids: Tensor) -> dict[str, Any]:
    mask = torch.zeros(2, LENGTH, dtype=torch.bool)
    mask[:, : config.latent_query_num] = True
    size = config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size)
    return {"input_ids": ids, "pixel_values": pixels, "image_embeds_position_mask": mask}


def _idefics(config: Any, ids: Tensor) -> dict[str, Any]:
    size = config.vision_config.image_size
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2, 1, 3, size, size),
        "image_attention_mask": torch.ones(2, LENGTH, 1, dtype=torch.long),
    }


def _pix2struct(config: Any, ids: Tensor) -> dict[str, Any]:
    patches = torch.randn(2, 6, 2 + config.vision_config.patch_embed_hidden_size)
    patches[:, :, :2] = torch.arange(1, 7)[:, None]
    return {"flattened_patches": patches, "decoder_input_ids": ids}


def _clap(config: Any, ids: Tensor) -> dict[str, Any]:
    audio = config.audio_config
    sound = torch.randn(2, 1, 64, audio.num_mel_bins)
    return {"input_ids": ids, "input_features": sound, "is_longer": torch.tensor([[False]] * 2)}


def _clvp(config: Any, ids: Tensor) -> dict[str, Any]:
    sound = torch.randn(2, config.decoder_config.feature_size, 16)
    return {"input_ids": ids, "input_features": sound}


def _clipseg(config: Any, ids: Tensor) -> dict[str, Any]:
    size = config.vision_config.image_size
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, size, size)}


_MAKERS: dict[str, Callable[[Any, Tensor], dict[str, Any]]] = {
    "clap": _clap,
    "clipseg": _clipseg,
    "clvp": _clvp,
    "idefics": _idefics,
    "instructblip": _instructblip,
    "instructblipvideo": _instructblip,
    "kosmos-2": _kosmos2,
    "lxmert": _lxmert,
    "pix2struct": _pix2struct,
    "visual_bert": _visual_bert,
}
