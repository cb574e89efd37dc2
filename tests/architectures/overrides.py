"""What the names of sizes do not tell: values that fit together in some configurations only.

Values of nested configurations are nested, too.
"""

from typing import Any

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_IMAGES = {"text_config": {"rope_parameters": _MROPE}}
_QSA = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "rope_parameters": _MROPE,
}
_MIMI = {"codebook_size": 64, "num_filters": 4, "upsampling_ratios": [2, 2], "codebook_dim": 16}
_SHORT = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}

GIVEN: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64},
    "granitemoehybrid": _MAMBA | {"layer_types": ["linear_attention", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlnet": {"d_head": 8},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds_dim": (16, 16),
        "axial_pos_shape": (8, 8),
        "num_buckets": 2,
        "hash_seed": 0,
    },
    "cohere_compass_text": {"rope_parameters": None},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_k": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "longcat_flash": {"head_dim": 4, "zero_expert_num": 2},
    "mimo_v2_flash": {"num_key_value_heads": 4, "swa_num_key_value_heads": 4},
    "moshi": {"audio_encoder_config": _MIMI},
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": _QSA,
    "qwen4_exp_text": _QSA,
    "xlstm": {"chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 0}},
    "blt": {
        part: {"num_hidden_layers": 2}
        for part in ("encoder_config", "decoder_config", "global_config", "patcher_config")
    },
    "lfm2": _SHORT,
    "lfm2_vl": {"text_config": _SHORT},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2},
    # --- with images
    **dict.fromkeys(
        ("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl"), _IMAGES
    ),
    "qwen2_5_omni_thinker": _IMAGES,
    "glm5_next": {"text_config": {"index_kpool": 2}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "blip-2": {"image_token_index": 90},
    "instructblip": {"image_token_index": 90},
    "instructblipvideo": {"video_token_index": 90},
    "kyutai_speech_to_text": {"codec_config": _MIMI},
}
"""By model type."""

GENERATES_WITH = {"blip": "text_decoder", "blip-2": "language_model", "kosmos-2": "text_model"} | {
    kind: "language_model" for kind in ("instructblip", "instructblipvideo")
}
"""Parts that generate in the place of a whole model, by model type."""

TOO_LARGE = dict.fromkeys(
    ("vibevoice", "vibevoice_asr"), "its convolutions have sizes that no configuration tells"
)
"""Types that stay large, and why."""
