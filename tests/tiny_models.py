"""Tiny, randomly initialised causal language models of many families, each as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

ALPHABET = "".join(chr(code) for code in range(35, 35 + 61))  # 64 tokens with <pad>, <eos> and <unk>
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # the smallest that vLLM's CPU attention supports
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large, so that a wrong weight shows in the log-probabilities
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 8}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.2}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": SHAPE | {"tie_word_embeddings": True},
    "qwen3": SHAPE,
    "llama": SHAPE,
    "mistral": SHAPE,
    "phi3": SHAPE,
    "gemma2": SHAPE | {"tie_word_embeddings": True, "query_pre_attn_scalar": 32},
    "gemma3_text": SHAPE | {"tie_word_embeddings": True, "query_pre_attn_scalar": 32},
    "gemma4_text": SHAPE
    | {"tie_word_embeddings": True, "global_head_dim": 32, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "granite": SHAPE | {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "olmo2": SHAPE,
    "olmo3": SHAPE,
    "cohere": SHAPE | {"tie_word_embeddings": True, "logit_scale": 0.25},
    "cohere2": SHAPE | {"tie_word_embeddings": True, "logit_scale": 0.25},
    "smollm3": SHAPE,
    "glm4": SHAPE | {"partial_rotary_factor": 0.5},
    "stablelm": SHAPE,
    "phi": SHAPE,
    "starcoder2": SHAPE,
    "gpt2": GPT2,
    "gpt_neox": SHAPE | {"intermediate_size": 128},
    "opt": SHAPE | {"ffn_dim": 128, "word_embed_proj_dim": 64, "tie_word_embeddings": True},
    "gptj": GPT2 | {"rotary_dim": 8, "tie_word_embeddings": False},
    "mixtral": SHAPE | {"num_local_experts": 4},
    "qwen2_moe": SHAPE | EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": SHAPE | EXPERTS,
    "olmoe": SHAPE | {"num_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": SHAPE | ROUTED | {"n_shared_experts": 1, "first_k_dense_replace": 1, "partial_rotary_factor": 0.5},
    "deepseek_v2": SHAPE
    | ROUTED
    | LATENT
    | {"n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 2, "head_dim": 16},
    "deepseek_v3": SHAPE
    | ROUTED
    | LATENT
    | {"n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 2, "head_dim": 16},
    "gpt_oss": SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 2.0},
    "phimoe": SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ernie4_5_moe": SHAPE | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1},
    "falcon_h1": SHAPE | MAMBA,
}


def write(directory: Path, family: str, **changes: Any) -> Path:
    """Write a model of `family` with a character tokenizer.

    Every weight and buffer is random, so that a loader that leaves one at its default value is noticed.
    """
    from configs.quickstart.tiny import character_tokenizer  # not on the path of all importers

    tokenizer = character_tokenizer(ALPHABET)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **FAMILIES.get(family, SHAPE) | changes | special)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    disturb(model)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def disturb(model: Any) -> None:
    """Add noise to every weight and to every buffer that a checkpoint contains."""
    persistent = model.state_dict().keys()
    moved = [*model.parameters(), *(b for name, b in model.named_buffers() if name in persistent)]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in moved:
            if tensor.is_floating_point():
                tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
