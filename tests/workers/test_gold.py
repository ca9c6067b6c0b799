from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import experience
from templates import CHATML, MARKERS, R1

from configs.quickstart.tiny import bpe_tokenizer
from workers.config import ModelConfig
from workers.engines.hf_text import TextCodec
from workers.gold import NOT_SAMPLED, gold_tokens, is_gold, sampled_batch, sampled_only, with_gold
from workers.reference import Reference
from workers.types import Experience, Finish, Prompt, ScoredBatch, Text, TokenShard

SAMPLES = [([7], [[1, 2], [3]]), ([8], [[4]]), ([9], [[5, 5], [6]])]
GOLD = [[50], [], [51, 52, 53]]


def sampled() -> Experience:
    return experience(SAMPLES, logprobs=[-1, -2, -3, -4, -5, -6, -7], version=2)


def test_the_gold_answer_is_the_last_of_its_group() -> None:
    batch = with_gold(sampled(), GOLD)
    assert [tokens.tolist() for tokens in batch.completions] == [[1, 2], [3], [50], [4], [5, 5], [6], [51, 52, 53]]
    assert batch.group_offsets.tolist() == [0, 3, 4, 7]
    assert batch.versions.tolist() == [2, 2, NOT_SAMPLED, 2, 2, 2, NOT_SAMPLED]
    assert batch.finish.tolist() == [Finish.stop] * 7
    assert is_gold(batch).tolist() == [False, False, True, False, False, False, True]


def test_a_gold_answer_has_no_log_probabilities() -> None:
    logprobs = with_gold(sampled(), GOLD).logprobs
    assert logprobs is not None
    np.testing.assert_array_equal(logprobs, np.float32([-1, -2, -3, np.nan, -4, -5, -6, -7, *[np.nan] * 3]))


def test_without_gold_answers_nothing_changes() -> None:
    batch = sampled()
    assert with_gold(batch, [[], [], []]) is batch
    assert sampled_only(batch) is batch


def test_samples_come_back_without_gold_answers() -> None:
    batch, back = sampled(), sampled_only(with_gold(sampled(), GOLD))
    assert [tokens.tolist() for tokens in back.completions] == [tokens.tolist() for tokens in batch.completions]
    for name in ("group_offsets", "logprobs", "versions", "finish"):
        assert getattr(back, name).tolist() == getattr(batch, name).tolist()


def test_scores_and_log_probabilities_of_samples_come_back() -> None:
    scored = ScoredBatch(
        experience=with_gold(sampled(), GOLD),
        rewards=np.arange(7, dtype=np.float32),
        reference_logprobs=np.arange(11, dtype=np.float32),
        values=None,
        by_scorer={"math": np.arange(7, dtype=np.float32)},
    )
    back = sampled_batch(scored)
    assert back.rewards is not None
    assert back.by_scorer is not None
    assert back.reference_logprobs is not None
    assert back.rewards.tolist() == back.by_scorer["math"].tolist() == [0, 1, 3, 4, 5]
    assert back.reference_logprobs.tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_drift_is_that_of_the_samples() -> None:
    batch = with_gold(sampled(), GOLD)
    share = TokenShard(completions=np.arange(7), values=np.full(11, -1, np.float32))
    drift = Reference.drift(Reference.__new__(Reference), [batch], [share])
    # log π − log π_ref is one more than log π for each token.
    assert drift.num_completions == 5
    assert drift.kl == pytest.approx(np.mean([(-1 - 2) + 2, -3 + 1, -4 + 1, (-5 - 6) + 2, -7 + 1]))


# ------------------------------------------------------------------------------------------------ tokens


def codec_of(directory: Path, template: str) -> TextCodec:
    tokenizer = bpe_tokenizer(["what is two and two", "it is four"], 300, template)
    tokenizer.add_special_tokens({"extra_special_tokens": list(MARKERS)})
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return TextCodec(ModelConfig(path=str(directory)))


def prompt(gold: Text | None, text: Text = "what") -> Prompt:
    return Prompt(id="p:1", text=text, gold=gold)


QUESTION = [{"role": "user", "content": "what"}]
ANSWER = [{"role": "assistant", "content": "four"}]


def test_gold_tokens_follow_those_of_the_prompt(tmp_path: Path) -> None:
    codec = codec_of(tmp_path, CHATML)
    assert gold_tokens(codec, prompt(None), max_length=99) == []
    assert gold_tokens(codec, prompt(" four"), max_length=99) == codec.encode_completion("what", " four")
    tokens = gold_tokens(codec, prompt(ANSWER, QUESTION), max_length=99)
    assert codec.tokenizer.decode(tokens) == "four<|im_end|>\n"
    whole = "<|im_start|>user\nwhat<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n"
    assert codec.encode_prompt(QUESTION) + tokens == codec.tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_a_gold_answer_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    codec = codec_of(tmp_path, CHATML)
    length = len(codec.encode_completion("what", " four"))
    assert gold_tokens(codec, prompt(" four"), max_length=length) != []
    assert gold_tokens(codec, prompt(" four"), max_length=length - 1) == []


def test_a_gold_answer_beside_the_generation_prompt_is_left_out(tmp_path: Path) -> None:
    # The generation prompt of this template ends with <think>, and its answers do not begin with it.
    codec = codec_of(tmp_path, R1)
    assert gold_tokens(codec, prompt(ANSWER, QUESTION), max_length=99) == []
