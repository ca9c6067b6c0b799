"""Tests of the tiny models: they build, run, and exercise what is special in their family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.families.tiny import LARGEST, Unbuildable, families, tiny, tiny_config, tiny_model, write_tiny
from tests.families.values import READING_MORE, TWO_WAY, UNBUILDABLE

# Transformers' modules of some families use it in torch 2.13.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

ROW = torch.randint(3, 90, (1, 20), generator=torch.Generator().manual_seed(1))
SAMPLE = ["gemma2", "gpt_oss", "deepseek_v3", "llama4_text", "mamba2", "qwen3_next"]
BUILT = sorted(set(families()) - set(UNBUILDABLE) - set(READING_MORE))


@torch.no_grad()
def logits(model: torch.nn.Module, row: torch.Tensor) -> torch.Tensor:
    return model(input_ids=row, use_cache=False).logits


def changed(position: int) -> torch.Tensor:
    row = ROW.clone()
    row[0, position] = 3 + (row[0, position] + 14) % 87
    return row


def check(model_type: str) -> None:
    model = tiny_model(model_type)
    answer = logits(model, ROW)
    assert answer.shape == (1, 20, 96)
    assert torch.isfinite(answer).all()
    assert torch.equal(answer, logits(tiny_model(model_type), ROW)), "one seed draws one model"
    assert (logits(model, changed(3))[0, -1] - answer[0, -1]).abs().max() > 1e-3, "the last token hears of the fourth"
    ahead = (logits(model, changed(19))[0, :-1] - answer[0, :-1]).abs().max()
    assert (ahead > 1e-4) == (model_type in TWO_WAY)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_tiny_model_runs_and_each_token_depends_only_on_earlier_ones(model_type: str) -> None:
    check(model_type)


@pytest.mark.long
@pytest.mark.parametrize("model_type", BUILT)
def test_each_family_runs(model_type: str) -> None:
    check(model_type)


def test_each_family_of_transformers_is_built_or_named_with_a_reason() -> None:
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= set(families())
    assert set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) <= set(families())
    assert set(UNBUILDABLE) <= set(families())
    for model_type in families():
        if model_type in UNBUILDABLE:
            with pytest.raises(Unbuildable, match=model_type):
                tiny_config(model_type)
            continue
        with torch.device("meta"):
            size = sum(p.numel() for p in tiny(model_type).build().parameters())
        assert 0 < size <= LARGEST, model_type


def test_nothing_of_a_model_is_left_at_a_constant() -> None:
    kept = {**dict(tiny_model("gpt_oss").named_parameters()), **dict(tiny_model("deepseek_v3").state_dict())}
    named = [name for name in kept if name.endswith(("sinks", "router.bias", "e_score_correction_bias", "norm.weight"))]
    assert {name.rsplit(".", 1)[-1] for name in named} == {"sinks", "bias", "e_score_correction_bias", "weight"}
    assert all(kept[name].std() > 0.01 for name in named)


def test_a_written_model_is_read_with_its_tokenizer(tmp_path: Path) -> None:
    write_tiny(tmp_path, "gemma2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.decode(tokenizer("1 + 1 = 2", add_special_tokens=False)["input_ids"]) == "1 + 1 = 2"
