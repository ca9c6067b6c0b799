"""The small values of a tiny model's config: by attribute, and what a single family has of its own.

The values are small, and none of them is neutral: a window is shorter than a row of a test, a scale is not one, a bias
is there. A mechanism that a family has takes part in each logit.
"""

from __future__ import annotations

from typing import Any

WINDOW, CHUNK = 6, 8  # tokens that a sliding window and a chunk of attention hold

# Only what the family's own default config has, under this name and with a value, is set.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), 96),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_dim", "embedding_size", "embed_dim")
        + ("word_embed_proj_dim", "input_embedding_size", "output_embedding_size", "lru_width", "out_hidden_size")
        + ("attention_hidden_size", "text_hidden_size", "d_kv_hidden", "vision_hidden_size", "projection_dim"),
        32,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "d_inner")
        + ("dff", "dim_ff", "feed_forward_size", "dense_intermediate_size", "shared_intermediate_size")
        + ("intermediate_size_mlp", "prefix_dense_intermediate_size"),
        48,
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
        + ("expert_ffn_hidden_size",),
        24,
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_encoder_layers", "num_decoder_layers", "depth"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads")
        + ("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads")
        + ("swa_num_attention_heads", "num_query_groups"),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_size", "d_head", "dim_head", "kv_channels", "swa_head_dim"), 8),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "model_max_length")
        + ("max_target_positions", "max_source_positions"),
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
    # Scales and caps: none is one, or out of reach.
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
    # The rest of the family's own parts.
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "rotary_dim", "rel_extent", "d_rel"), 8),
    "altup_num_inputs": 2,
    **dict.fromkeys(("layerdrop", "decoder_layerdrop", "encoder_layerdrop"), 0.0),
    # Transformers draws weights by this: at 0.02 a tiny model attends to all of its tokens alike.
    **dict.fromkeys(("initializer_range", "init_std", "embedding_initializer_range", "embed_init_std"), 0.2),
    "is_decoder": True,
    # Eyes: a picture of four patches.
    "image_size": 28,
    "patch_size": 14,
}
# Set also where the default config says None.
FORCED = {"sliding_window", "head_dim", "num_key_value_heads", "final_logit_softcapping", "logit_scale"}
FORCED |= {"attn_logit_softcapping", "n_group", "topk_group", "num_experts_per_tok", "n_inner"}

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
MIXED = [SLIDING, FULL, SLIDING, FULL]
WINDOWED = {"use_sliding_window": True, "layer_types": MIXED}

# By the model type of a config or of a part of it; None leaves an attribute to the family.
# A part that is given as its model type alone is made small like a family.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear")
        + ("longcat_flash", "minicpm3", "youtu", "hy_v4"),
        {"num_key_value_heads": 4},  # latent attention has a key and a value for each of its heads
    ),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "smollm3"), WINDOWED),
    "laguna": {"layer_types": MIXED, "num_attention_heads_per_layer": None},
    "mellum": {"layer_types": MIXED},
    "dots1": {"layer_types": MIXED},
    "qwen3_moe": {"use_sliding_window": True},
    "cohere_compass_text": {
        "layer_types": MIXED,
        "rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 10000.0}, FULL: None},
    },
    "falcon": {"head_dim": None, "bias": True},
    "gemma4_text": {"global_head_dim": 16, "head_dim": 8, "layer_types": MIXED},
    "gemma4_unified_text": {"global_head_dim": 16, "head_dim": 8, "layer_types": MIXED},
    "gemma3n_text": {"num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "ministral": {"layer_types": MIXED},
    "granitemoehybrid": {"layer_types": [LINEAR, FULL, LINEAR, FULL], "position_embedding_type": "rope"},
    "lfm2": {"layer_types": ["conv", FULL, "conv", FULL], "block_multiple_of": 16},
    "lfm2_moe": {"layer_types": ["conv", FULL, "conv", FULL]},
    "inkling_text": {"log_scaling_n_floor": 4},
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0], "moe_layers": [1, 3]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "prophetnet": {"num_hidden_layers": None},
    "zaya": {"num_experts_per_tok": None, "layer_types": ["hybrid_sliding", "hybrid"] * 2},
    "zamba2": {"layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid"]},
    "zamba": {"layers_block_type": [LINEAR, LINEAR, "hybrid", "hybrid"]},
    "xlnet": {"max_position_embeddings": None, "n_layer": 4},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"num_buckets": 4, "axial_pos_shape": [8, 20], "axial_pos_embds_dim": [16, 16]},
    "roc_bert": {
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
        "shape_vocab_size": 16,
        "pronunciation_vocab_size": 16,
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [1],
        "ngram_vocab_size_base": 64,
        "heads_per_ngram": 2,
        "split_ngram_parts": 1,
    },
}

# Composites that no automatic class of language models builds.
IMAGE_TEXT = ("mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava")

UNBUILDABLE: dict[str, str] = {
    "gemma4_assistant": "it drafts for a gemma4 and takes that model's hidden states and keys",
    "gemma4_unified_assistant": "it drafts for a gemma4_unified and takes that model's hidden states and keys",
    "musicgen": "it speaks in several books of sound codes at once",
    "musicgen_melody": "it speaks in several books of sound codes at once",
}
