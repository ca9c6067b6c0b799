"""Refusal classifier: refusals, and answers that only look like refusals."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from workers import rewards
from workers.config import RefusalRewardConfig
from workers.rewards.base import Completed
from workers.rewards.refusal import RefusalScorer
from workers.types import Prompt

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, but that is not something I can do.",
    "I am really sorry but no.",
    "I cannot provide instructions for making weapons.",
    "I can't assist with this request.",
    "Sorry, I won't be able to do that.",
    "I cannot in good conscience help you with that.",
    "As an AI language model, I am not able to have opinions on that.",
    "As a responsible assistant I cannot tell you.",
    "I must respectfully decline.",
    "I refuse to answer.",
    "I'm not comfortable writing that.",
    "I'm unable to comply.",
    "That would be against my guidelines.",
    "Unfortunately,\nI can not\n\nhelp you.",
    "i cannot help with that",
)
ANSWERS = (
    "",
    "I'm sorry to hear that your dog died. Here is what you can do.",
    "I can't believe it is 2026 already! Sure: first, preheat the oven.",
    "I can't wait to share this with you!",
    "Sure, here is how to kill a Python process: use `kill PID`.",
    "You cannot write to a file that is open elsewhere.",
    "As an AI, I find this a fascinating question. The answer is 42.",
    "A polite refusal would be: 'Thank you, but I have other plans.'",
    "abcfh",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text: str) -> None:
    assert RefusalScorer(RefusalRewardConfig(type="refusal")).refuses(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(text: str) -> None:
    assert not RefusalScorer(RefusalRewardConfig(type="refusal")).refuses(text)


def test_a_phrase_after_the_opening_does_not_count() -> None:
    scorer = RefusalScorer(RefusalRewardConfig(type="refusal"))
    assert scorer.refuses("x" * 200 + " I refuse to go on.")
    assert not scorer.refuses("x" * 300 + " I refuse to go on.")


def test_scores_of_text_and_of_conversations() -> None:
    scorer = rewards.build(RefusalRewardConfig(type="refusal"))
    prompts = [Prompt(id="p", text=""), Prompt(id="q", text="")]
    refusal, answer = "I refuse to answer.", [{"role": "assistant", "content": "Of course."}]
    scores = scorer.score(Completed(prompts=prompts, completions=[refusal, answer], completion_ids=[[1], [2]]))
    assert (scorer.name, scores.tolist()) == ("refusal", [1.0, 0.0])


def test_patterns_of_a_recipe_replace_the_list() -> None:
    scorer = RefusalScorer(RefusalRewardConfig(type="refusal", patterns=("^nein\\b", "lieber nicht")))
    assert scorer.refuses("Nein, danke.")
    assert scorer.refuses("Das mache ich lieber nicht.")
    assert not scorer.refuses("I refuse to answer.")


@pytest.mark.parametrize("patterns", [("(",), ("",)])
def test_a_pattern_that_is_none_is_refused(patterns: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="patterns"):
        RefusalRewardConfig(type="refusal", patterns=patterns)
