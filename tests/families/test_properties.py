"""Random small models and random packings: packed rows equal plain transformers on each text alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.families.rows import forward_alone, forward_packed, packed, rows_of
from workers.engines.hf_models import load_policy

POSITIONS = 96

ROPES = st.one_of(
    st.just({"rope_type": "default"}),
    st.builds(lambda f: {"rope_type": "linear", "factor": f}, st.sampled_from([2.0, 4.0])),
    st.builds(lambda f: {"rope_type": "dynamic", "factor": f}, st.sampled_from([2.0, 4.0])),
    st.just({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}),
    st.just(
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 24,
        }
    ),
    st.just(
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0, 1.1, 1.3, 1.7],
            "long_factor": [1.0, 2.0, 3.0, 5.0],
            "original_max_position_embeddings": 24,
        }
    ),
)
FAMILIES = {
    "llama": {"attention_bias": st.booleans()},
    "mistral": {"sliding_window": st.sampled_from([None, 1, 3, 7, 40])},
    "qwen2": {
        "use_sliding_window": st.booleans(),
        "sliding_window": st.sampled_from([2, 9]),
        "max_window_layers": st.sampled_from([0, 1]),
    },
    "qwen3": {"attention_bias": st.booleans()},
    "phi3": {"sliding_window": st.sampled_from([None, 5]), "pad_token_id": st.just(0)},
    "gemma2": {
        "sliding_window": st.sampled_from([2, 6]),
        "attn_logit_softcapping": st.sampled_from([None, 2.0]),
        "final_logit_softcapping": st.sampled_from([None, 5.0]),
        "query_pre_attn_scalar": st.sampled_from([8, 13]),
    },
    "cohere": {"logit_scale": st.sampled_from([0.0625, 1.0, 3.0])},
    "granite": {
        "logits_scaling": st.sampled_from([1.0, 4.0]),
        "attention_multiplier": st.sampled_from([0.3, 1.0]),
        "residual_multiplier": st.sampled_from([0.5, 1.0]),
    },
    "gpt_oss": {"sliding_window": st.sampled_from([3, 8])},
}  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    heads, of_a_group = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 3]))
    rope = dict(draw(ROPES if family not in ("cohere", "gpt_oss") else st.just({"rope_type": "default"})))
    shape = {
        "model_type": family,
        "vocab_size": 96,
        "hidden_size": 8 * heads * of_a_group,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": heads * of_a_group,
        "num_key_value_heads": heads,
        "head_dim": 8,
        "max_position_embeddings": 24 if rope["rope_type"] == "dynamic" else POSITIONS,
        "initializer_range": 0.2,
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": {"rope_theta": draw(st.sampled_from([50.0, 10_000.0])), **rope},
    }
    if family == "gpt_oss":
        shape |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    return shape | {name: draw(values) for name, values in FAMILIES[family].items()}


ROWS = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(1, 20), min_size=1, max_size=3)), min_size=1, max_size=4
)


def fixed_examples(examples: int) -> Any:
    """Return Hypothesis settings with the same examples each time. Building a model for each example is slow."""
    return settings(max_examples=examples, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


CASES: dict[str, Any] = {
    "config": configs(),
    "lengths": ROWS,
    "seed": st.integers(0, 100),
    "temperature": st.sampled_from([1.0, 0.6]),
}


@fixed_examples(12)
@given(**CASES)
def test_packed_is_plain(**case: Any) -> None:
    compare(**case)


@pytest.mark.long
@fixed_examples(300)
@given(**CASES)
def test_packed_is_plain_in_many_more_cases(**case: Any) -> None:
    compare(**case)


def compare(config: dict[str, Any], lengths: list[tuple[int, list[int]]], seed: int, temperature: float) -> None:
    """Check that log-probabilities, entropies and gradients of packed rows are those of each text alone."""
    torch.manual_seed(seed)
    full = transformers.AutoConfig.for_model(**config, bos_token_id=1, eos_token_id=2)
    with tempfile.TemporaryDirectory() as directory:
        model: Any = transformers.AutoModelForCausalLM.from_config(full, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(directory)
        policy = load_policy(str(Path(directory)), "float32", chunk=5).eval()
    model.set_attn_implementation("eager")
    rows = rows_of(lengths, seed)
    logprobs, entropy = forward_packed(policy, packed(rows), temperature)
    expected, expected_entropy = forward_alone(model.eval(), rows, temperature)
    torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-3, rtol=1e-3)
    weights = torch.linspace(-1.0, 1.0, len(expected))
    (logprobs * weights).sum().backward()
    (expected * weights).sum().backward()
    theirs = dict(model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        if theirs[name].grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-3, msg=name)
