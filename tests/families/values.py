"""Small config values of the tiny models: by attribute, and by family.

No value is neutral: a window is shorter than a test row, a scale is not one, a bias is enabled. So each mechanism of a
family affects every logit.
"""

from __future__ import annotations

from typing import Any

WINDOW, CHUNK = 6, 8  # tokens in a sliding window and in an attention chunk

# Set only if the family's default config has the attribute with a value.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), 96),
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "emb_dim",
            "embedding_dim",
            "embedding_size",
            "embed_dim",
            "word_embed_proj_dim",
            "input_embedding_size",
            "output_embedding_size",
            "lru_width",
            "out_hidden_size",
            "attention_hidden_size",
            "text_hidden_size",
            "d_kv_hidden",
            "vision_hidden_size",
            "projection_dim",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "ffn_hidden_size",
            "d_inner",
            "dff",
            "dim_ff",
            "feed_forward_size",
            "dense_intermediate_size",
            "shared_intermediate_size",
            "intermediate_size_mlp",
            "prefix_dense_intermediate_size",
        ),
        48,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "expert_ffn_hidden_size",
        ),
        24,
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_encoder_layers", "num_decoder_layers", "depth"), 2),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "attention_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_decoder_attention_heads",
            "num_encoder_attention_heads",
            "swa_num_attention_heads",
            "num_query_groups",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_size", "d_head", "dim_head", "kv_channels", "swa_head_dim"), 8),
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_seq_len",
            "context_length",
            "model_max_length",
            "max_target_positions",
            "max_source_positions",
        ),
        160,
    ),
    **dict.fromkeys(
        ("sliding_window", "window_size", "attention_window_size", "sliding_window_size", "local_attention"), WINDOW
    ),
    "attention_chunk_size": CHUNK,
    # Mixtures of experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts"), 2
    ),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_dense_layers"), 1),
    **dict.fromkeys(("first_k_dense_replace", "topk_group", "num_expert_group"), 1),
    "n_group": 2,
    **dict.fromkeys(("routed_scaling_factor", "route_scale", "router_scaling_factor"), 1.5),
    "moe_routed_scaling_factor": 1.5,
    # Latent attention and its indexer.
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "qk_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), 8),
    "index_n_heads": 2,
    "index_topk": 8,
    # Convolutions, state spaces and linear attention.
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_head"), 16),
    "mamba_d_ssm": 64,
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    "n_mamba_heads": 4,
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "block_size"), CHUNK),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    # Scales and caps: no scale is one, and no cap is out of reach.
    **dict.fromkeys(("logit_scale", "lm_head_multiplier"), 0.5),
    **dict.fromkeys(("logits_scaling", "logits_mup_width_multiplier"), 2.0),
    **dict.fromkeys(("attention_multiplier", "key_multiplier", "attn_scale"), 0.6),
    **dict.fromkeys(("residual_multiplier", "attention_out_multiplier", "ssm_out_multiplier"), 0.7),
    **dict.fromkeys(("embedding_multiplier", "attention_in_multiplier", "ssm_in_multiplier", "scale_emb"), 1.5),
    "embedding_scale": 1.5,
    **dict.fromkeys(("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"), 3.0),
    "attn_logit_softcapping": 2.0,
    "query_pre_attn_scalar": 12,
    "floor_scale": 4,
    **dict.fromkeys(("attention_bias", "mlp_bias", "add_qkv_bias", "conv_bias", "use_qkv_bias", "qkv_bias"), True),
    # Other mechanisms of single families.
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "rotary_dim", "rel_extent", "d_rel"), 8),
    "altup_num_inputs": 2,
    **dict.fromkeys(("layerdrop", "decoder_layerdrop", "encoder_layerdrop"), 0.0),
    # Standard deviation of the initial weights: at 0.02 the attention of a tiny model is nearly uniform.
    **dict.fromkeys(("initializer_range", "init_std", "embedding_initializer_range", "embed_init_std"), 0.2),
    "is_decoder": True,
    # Vision: a picture of four patches.
    "image_size": 28,
    "patch_size": 14,
}
# Set even if the default is None.
FORCED = {"sliding_window", "head_dim", "num_key_value_heads", "final_logit_softcapping", "logit_scale"}
FORCED |= {"attn_logit_softcapping", "n_group", "topk_group", "num_experts_per_tok", "n_inner", "n_routed_experts"}

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
MIXED = [SLIDING, FULL, SLIDING, FULL]
THREE_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
WHOLE_AXES = {**THREE_AXES, "partial_rotary_factor": 1.0}
EQUAL_AXES = {**THREE_AXES, "mrope_section": [1, 1, 2]}
WINDOWED = {"use_sliding_window": True, "layer_types": MIXED}

SHARED_KEYS = {  # the last two layers reuse the keys of the first two
    "layer_types": MIXED,
    **{"global_head_dim": 16, "num_global_key_value_heads": 1, "num_kv_shared_layers": 2},
}

# Values of an image autoencoder, and of the neck between a vision tower and its projector.
SMALL_CODES = {"base_channels": 32, "channel_multiplier": [1, 1], "latent_channels": 32, "num_embeddings": 16}
SMALL_NECK = {"output_channels": 8, "mlp_dim": 48, "global_attn_indexes": [1, 3]}
SMALL_NECK_OF_FORMULAS = {
    **SMALL_NECK,
    **{"post_conv_in_channels": 8, "post_conv_mid_channels": 16, "post_conv_out_channels": 32},
    "decoder_hidden_size": 32,
}

# Model types of a composite's parts, if the default ones belong to another family or cannot be built.
PARTS: dict[str, dict[str, str]] = {
    "diffusion_gemma": {"vision_config": "gemma4_vision"},
    "fast_vlm": {"vision_config": "siglip_vision_model"},  # its own needs the library timm, which is not installed
    "granite4_vision": {"text_config": "granite4_vision_text"},
    "vision-encoder-decoder": {"encoder": "vit", "decoder": "trocr"},
}

# Values by the model type of a config or sub-config; None leaves an attribute at the family's default.
OWN: dict[str, dict[str, Any]] = {
    "": SMALL_NECK_OF_FORMULAS,  # the tower of pp_formulanet has no model type
    **{
        family: {"num_key_value_heads": 4}  # latent attention has one key and one value per head
        for family in (
            *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "kimi_linear", "youtu"),
        )
    },
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 96},
    "blt_local_encoder": {"hidden_size_global": 32, "num_key_value_heads": None},
    "blt_local_decoder": {"hidden_size_global": 32, "num_key_value_heads": None},
    "chameleon": {"vocabulary_map": {"<image>": 95, "IMGIMGAZ": 93, "IMGIMGBZ": 94}},
    "chameleon_vqgan": SMALL_CODES,
    "cohere": {"use_qk_norm": True},
    "cohere2_vision": {"alignment_intermediate_size": 48},
    "cohere_compass_text": {
        "layer_types": MIXED,
        "rope_parameters": {SLIDING: EQUAL_AXES, FULL: None},  # layers with full attention have no positions
    },
    "cosmos3_edge": {"projector_hidden_size": 48},
    "cosmos3_edge_text": {"rope_parameters": THREE_AXES},
    "cosmos3_edge_vision": {"num_patches": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_ocr2_sam_vision_model": {**SMALL_NECK, "downsample_channels": [8, 32]},
    "deepseek_ocr2_text": {"num_key_value_heads": 4, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "deepseek_v4": {
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention", SLIDING, SLIDING],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "index_topk": 2,
    },
    "diffusion_gemma_text": {
        **{"layer_types": MIXED, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
        **{"global_head_dim": 16, "num_global_key_value_heads": 1},
    },
    "doge": {"keep_window_size": WINDOW},
    "dots1": {"layer_types": MIXED, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "ernie4_5_vl_moe_text": {"rope_parameters": EQUAL_AXES},
    "falcon": {"head_dim": None, "bias": True},
    "falcon_h1": {"ssm_multipliers": [0.7, 1.3, 0.8, 1.2, 0.9], "mlp_multipliers": [0.8, 1.2]},
    "florence_vision": {
        **{"embed_dim": [16, 32], "depths": [1, 1], "num_heads": [2, 4], "num_groups": [2, 4]},
        **{"patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [1, 1], "patch_prenorm": [False, True]},
    },
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0],
        "intermediate_size": 48,
    },
    "gemma4_text": {
        **SHARED_KEYS,
        **{"attention_k_eq_v": True, "enable_moe_block": True},
        **{"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    },
    "gemma4_unified_text": SHARED_KEYS,
    "fuyu": {"patch_size": 2},
    **{
        key: {"rope_parameters": {**THREE_AXES, "partial_rotary_factor": 1.0}}
        for key in ("glm4v_text", "glm4v_moe_text")
    },
    "glm4_moe": {"use_qk_norm": True},
    "glm5_next_text": {"index_kpool": 4, "num_key_value_heads": 4, "qk_rope_head_dim": 0, "qk_head_dim": 8},
    "glm5_next_vision": {"projection_intermediate_size": 48},
    "glm_moe_dsa": {"num_key_value_heads": 4, "indexer_types": ["full", "shared", "full", "shared"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite4_vision": {"downsample_rate": "1/2", "spatial_target_layers": [1], "deepstack_layer_map": [[0, 1]]},
    "granitemoehybrid": {"layer_types": [LINEAR, FULL, LINEAR, FULL], "position_embedding_type": "rope"},
    "hunyuan_vl_text": {"rope_parameters": {**THREE_AXES, "mrope_section": [1, 1, 1, 1]}},
    "hy_v4": {"num_key_value_heads": 4},
    "inkling_text": {"log_scaling_n_floor": 4, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "janus_vqgan": {**SMALL_CODES, "image_token_embed_dim": 32, "num_patches": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {"layer_types": MIXED},
    "lfm2": {"layer_types": ["conv", FULL, "conv", FULL], "block_multiple_of": 16},
    "lfm2_moe": {"layer_types": ["conv", FULL, "conv", FULL]},
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0], "moe_layers": [1, 3]},
    "longcat_flash": {"num_key_value_heads": 4, "zero_expert_num": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "mellum": {"layer_types": MIXED},
    "minicpm3": {"num_key_value_heads": 4, "dim_model_base": 16},
    "minimax": {
        **dict.fromkeys(("linear_attn_alpha_factor", "full_attn_alpha_factor", "mlp_alpha_factor"), 0.8),
        **dict.fromkeys(("linear_attn_beta_factor", "full_attn_beta_factor", "mlp_beta_factor"), 1.2),
    },
    "minimax_m3_vl_text": {
        "layer_types": [FULL, "minimax_m3_sparse", FULL, "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "ministral": {"layer_types": MIXED},
    "mistral4": {
        **{"num_key_value_heads": 4, "head_dim": 16},
        "rope_parameters": {
            **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
            **{"llama_4_scaling_beta": 0.5, "partial_rotary_factor": 0.5, "max_position_embeddings": 160},
            **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    },
    "mpt": {"attn_config": {"alibi": True, "clip_qkv": 1.0}},
    "muse_glimmer": {"projector_hidden_size": 48},
    "muse_glimmer_text": {"layer_rope_theta": [10000.0, 0, 10000.0, 0], "layer_types": MIXED},
    "muse_glimmer_vision": {"pos_emb_height": 4, "pos_emb_width": 4},
    "nemotron_h_omni": {"projector_hidden_size": 48},
    "olmo": {"clip_qkv": 1.0},
    "olmoe": {"clip_qkv": 1.0},
    "phi": {"qk_layernorm": True},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "phi4_multimodal_audio": {"nemo_conv_channels": 32},
    **{key: {"rope_parameters": THREE_AXES} for key in ("glm_ocr_text", "paddleocr_vl_text", "qwen3_omni_moe_text")},
    "prophetnet": {"num_hidden_layers": None},
    **dict.fromkeys(("qwen2", "qwen3", "smollm3"), WINDOWED),
    "qwen2_moe": {**WINDOWED, "mlp_only_layers": [0]},
    **{
        key: {**WINDOWED, "rope_parameters": THREE_AXES}
        for key in ("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text")
    },
    "qwen3_vl_text": {"rope_parameters": THREE_AXES},
    "qwen3_vl_vision": {"deepstack_visual_indexes": [0, 1]},
    "qwen3_omni_moe_audio_encoder": {"downsample_hidden_size": 8},
    "qwen3_omni_moe_vision_encoder": {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
    "qwen3_moe": {"use_sliding_window": True, "mlp_only_layers": [0]},
    "qwen4_exp_text": {
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8},
        **{"indexer_budget": 8, "indexer_compress_ratio": 2, "hc_lowrank": 8, "ple_layer_ids": [1]},
        **{"ngram_vocab_size_base": 64, "heads_per_ngram": 2, "split_ngram_parts": 1},
    },
    "radio": {"video_temporal_patch_size": 2},
    "reformer": {
        **{"num_buckets": 4, "hash_seed": 0, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4},
        **{"axial_pos_shape": [8, 20], "axial_pos_embds_dim": [16, 16]},
    },
    "roc_bert": {
        **{"pronunciation_embed_dim": 16, "pronunciation_vocab_size": 96},
        **{"shape_embed_dim": 16, "shape_vocab_size": 96},
    },
    "sam_vision_model": SMALL_NECK,
    "step3p5": {
        **{"layer_types": [SLIDING, FULL] * 2, "num_sliding_attention_heads": 8, "share_expert_dim": 24},
        **{"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "moe_router_scaling_factor": 1.5},
        **{"partial_rotary_factors": [1.0, 0.5] * 2, "swiglu_limits": [0.0, 0.0, 1.0, 0.5]},
        "swiglu_limits_shared": [0.0, 0.0, 0.5, 1.0],
    },
    "stablelm": {"qk_layernorm": True},
    "xlm": {"causal": True},
    "xlnet": {"max_position_embeddings": None, "n_layer": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": [LINEAR, LINEAR, "hybrid", "hybrid"], "attention_hidden_size": None},
    "zamba2": {"layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid"], "attention_hidden_size": None},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid_sliding", "hybrid"] * 2, "router_hidden_size": 16},
}

# Composites that cannot predict the next token of text alone: encoder-decoders, and models that need a picture.
READING_MORE = (
    *("blip", "blip-2", "diffusion_gemma", "florence2", "idefics", "instructblip", "instructblipvideo", "kosmos-2"),
    *("pi0", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"),
)

# Composites that AutoModelForCausalLM does not build.
IMAGE_TEXT = (
    *("internvl", "llava", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"),
    *("aya_vision", "ernie4_5_vl_moe", "glm4v", "glm4v_moe", "idefics3", "lfm2_vl", "llava_next"),
    *("llava_onevision", "paligemma", "qwen3_vl_moe", "smolvlm"),
    *("aria", "chameleon", "cohere2_vision", "cohere_compass", "cosmos3_edge", "cosmos3_omni", "deepseek_ocr2"),
    *("deepseek_vl", "deepseek_vl_hybrid", "evolla", "exaone4_5", "fast_vlm", "glm46v", "glm5_next", "glm_ocr"),
    *("glmga", "granite4_vision", "hunyuan_vl", "hyperclovax_vision_v2", "idefics2", "inkling_mm_model", "janus"),
    *("kimi_k25", "kosmos-2.5", "lighton_ocr", "llava_next_video", "minicpmv4_6", "minicpmv4_7", "minimax_m3_vl"),
    *("mistral4", "muse_glimmer", "nemotron_h_omni", "ovis2", "paddleocr_vl", "perception_lm", "pp_chart2table"),
    *("qianfan_ocr", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "shieldgemma2", "step3p7", "video_llama_3"),
    *("video_llava", "vipllava"),
    *READING_MORE,
)

# Families that look ahead when given tokens alone: the logits of a token depend on later tokens.
TWO_WAY = {
    "cpmant": "it attends to the whole of the text that it is given",
    "paligemma": "it attends to the whole of a prompt, and tokens alone are a prompt",
    "reformer": "it sorts tokens into buckets, and where a bucket ends depends on later tokens",
    "xlnet": "it attends both ways unless it is given a mask of permutations",
}

TIMM = "the vision tower needs the library timm, which is not installed"
SOUND = "the model generates several audio codebooks in parallel"
DRAFT = "a draft model for speculative decoding: it reads the target model's hidden states and keys"
UNBUILDABLE: dict[str, str] = {
    "evolla": "no auto class of transformers builds the model: its config is registered under two names",
    "gemma3n": f"{TIMM}; gemma3n_text is its text part",
    "gemma4_assistant": DRAFT,
    "gemma4_unified_assistant": DRAFT,
    "musicgen": SOUND,
    "musicgen_melody": SOUND,
    "perception_lm": f"{TIMM}; llama is its text part",
}
