"""What the rules for tiny configs cannot know, by model type, config class or model class."""

from __future__ import annotations

from typing import Any

_SWIN = {"embed_dim": 24, "image_size": 32, "patch_size": 4, "window_size": 4}
_KV = {"num_key_value_heads": 4}
_HEAD = {"head_dim": 8}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_SECTIONS = {"rope_parameters": _MROPE}
_FULL = ["full_attention", "full_attention"]
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_SLIDING = ["sliding_attention", "full_attention"]

OVERRIDES: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 4},
    "blip-2": {"image_token_index": 290},
    "blt": {"num_hidden_layers": 2},
    "informer": {"prediction_length": 4},
    "time_series_transformer": {"prediction_length": 4},
    "align": {"projection_dim": 80},
    "align_vision_model": {"depth_coefficient": 0.1, "width_coefficient": 0.25, "hidden_dim": 64},
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "bridgetower": {"hidden_size": 64},
    "bridgetower_text_model": {"hidden_size": 64},
    "bridgetower_vision_model": {"hidden_size": 64},
    "bros": {"hidden_size": 64},
    "chameleon": {
        "vocabulary_map": {"<image>": 290, **{f"IMGIMGA{n}Z": 250 + n for n in range(8)}}
    },
    "clipseg": {"extract_layers": [0, 1]},
    "clvp_encoder": {"num_attention_heads": 1},
    "cohere_compass_text": {
        "layer_types": _FULL,
        "rope_parameters": {"full_attention": _MROPE},
    },
    "cosmos3_edge_text": {"rope_parameters": _MROPE},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [32, 32]},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "dense"]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "diffusion_gemma_text": {
        "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32, "layer_types": _SLIDING,
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "donut-swin": _SWIN,
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_audio": {"adapter_input_size": 32},
    "dots3_note_vision": {"mlp_layer_types": ["dense", "dense"]},
    "dots3_note_text": _KV,
    "emu3": {
        "vocabulary_map": {
            "<image>": 290, "<|extra_200|>": 289,
            **{f"<|visual token {n:06d}|>": 250 + n for n in range(8)},
        }
    },
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [32, 32], "rope_parameters": _MROPE},
    "esm": {"vocab_size": 300, "pad_token_id": 1, "mask_token_id": 5},
    "florence_vision": {
        "embed_dim": [8, 16, 32, 64], "num_heads": [2, 2, 4, 4], "num_groups": [2, 2, 4, 4],
        "depths": [1, 1, 1, 1], "projection_dim": 32,
    },
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "layer_types": _SLIDING,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 0}},
    "glm4v_moe_text": _SECTIONS,
    "glm4v_text": _SECTIONS,
    "glm5_next_text": _KV,
    "glm_image_text": _SECTIONS,
    "glm_ocr_text": _SECTIONS,
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {
        "downsample_rate": "1/2", "deepstack_layer_map": [],
        "vision_config": {"hidden_size": 64}, "qformer_config": {"hidden_size": 64},
    },
    "granitemoehybrid": _HYBRID,
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "hunyuan_vl_text": {**_HEAD, **_SECTIONS},
    "instructblip": {"image_token_index": 290},
    "instructblipvideo": {"video_token_index": 290},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "maskformer-swin": _SWIN,
    "ministral": _HEAD,
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 1},
    "neomme": {"head_dim": 32},
    "perceiver": {
        "d_latents": 32, "num_latents": 16, "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4, "num_cross_attention_heads": 4,
        "qk_channels": 32, "v_channels": 32,
    },
    "paddleocr_vl_text": _SECTIONS,
    "qwen2_5_omni_talker": _SECTIONS,
    "qwen2_5_omni_text": _SECTIONS,
    "qwen2_5_vl_text": _SECTIONS,
    "qwen2_vl_text": _SECTIONS,
    "qwen3_omni_moe_talker": {"spatial_merge_size": 2},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 32},
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen4_exp_text": _HYBRID,
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "swin": _SWIN,
    "swin2sr": _SWIN,
    "swinv2": _SWIN,
    "wav2vec2-bert": {"vocab_size": 300},
    "wav2vec2-conformer": {"vocab_size": 300},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
}  # fmt: skip
"""By ``model_type`` or the name of the config class."""

MODELS: dict[str, dict[str, Any]] = {
    "Blip2ForImageTextRetrieval": {"qformer_config": {"use_qformer_text_input": True}},
    "Blip2TextModelWithProjection": {"qformer_config": {"use_qformer_text_input": True}},
    "BridgeTowerForContrastiveLearning": {
        "contrastive_hidden_size": 32,
        "logit_scale_init_value": 2.66,
    },
    "ReformerModelWithLMHead": {"is_decoder": True},
    "T5GemmaEncoderModel": {"is_encoder_decoder": False},
    "ViltForImagesAndTextClassification": {"num_images": 2},
}
"""By the name of the model class."""
