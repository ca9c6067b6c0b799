"""Equality of our log-probabilities, entropies and gradients with plain transformers, or refusal, for some families.

`make families` checks all families, also with partitioned weights, and writes docs/families.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families.judge import judge
from tests.families.tiny import tiny, write_tiny
from tests.families.values import READING_MORE
from workers.engines.attention import AttentionError
from workers.engines.hf_models import auto_class
from workers.engines.hf_packing import reads_apart

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

SAMPLE = {
    "llama": "packed",
    "mistral": "packed",  # a window in every layer
    "gemma2": "packed",  # alternating windows, soft-caps on scores and on logits
    "gemma3": "packed",  # a vision-language model, read as text only
    "gpt_oss": "packed",  # sinks, experts
    "llama4_text": "apart",  # chunks, queries scaled by position
    "cohere2": "packed",  # scaled logits
    "deepseek_v3": "packed",  # values and keys of different widths
    "gpt2": "packed",  # dropout, learned positions
    "bloom": "apart",  # ALiBi
    "mamba2": "apart",  # a recurrent state
    "qwen3_next": "apart",  # linear attention beside attention
}
REFUSED = {
    "bert": "further layers between its decoder and its output layer",
    "deepseek_v32": "indexed_attention",
    "shieldgemma2": "its files lack weights of Gemma3ForConditionalGeneration",
    "t5gemma2": "it is an encoder-decoder",
    "xlnet": "not a causal language model",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_family_is_right(model_type: str, dtype: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, model_type)
    found = judge(tmp_path, dtype)
    assert found.rows == SAMPLE[model_type], found.refused
    assert not found.wrong, found


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_family_is_refused_by_name(model_type: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, model_type)
    found = judge(tmp_path)
    assert found.rows == "refused"
    assert REFUSED[model_type] in found.refused


@pytest.mark.parametrize("model_type", READING_MORE)
def test_what_reads_more_than_tokens_is_refused_before_it_is_loaded(model_type: str) -> None:
    config = tiny(model_type).config
    with pytest.raises(AttentionError, match=r"encoder-decoder|beside tokens|picture|diffusion"):
        reads_apart(auto_class(config)._model_mapping[type(config)], config)
