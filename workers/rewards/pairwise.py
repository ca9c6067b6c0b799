"""Language model that compares two completions, as a scorer (arXiv 2405.07863, pair-preference-model-LLaMA3-8B).

    p(y beats y') = (p(A | x, y, y') + p(B | x, y', y)) / 2          both orders: a preference for a position cancels
    s(y)          = mean of p(y beats y') over the opponents y' of y in its group

The model is given the template with both completions and answers A or B; p is the softmax over these two tokens. The
score is a win rate: the mean over a group is 1/2. Equal completions tie without the model.

With `opponents: k` each completion meets k others: the group is shuffled into a circle, and each meets its k / 2
neighbours on both sides. The shuffle depends on the texts alone, so that a group that is scored again has the same
scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from workers.config import ModelConfig, PairwiseRewardConfig
from workers.conversation import message_text
from workers.engines import hf_models, hf_text
from workers.engines.base import ModelError
from workers.engines.hf_check import check_rows
from workers.engines.inference import WholeModel, default_device
from workers.ragged import Ragged
from workers.rewards.base import Completed, RewardError, last_text, rows
from workers.rewards.model import examples_of, model_name
from workers.rewards.opponents import opponents
from workers.scoring import score_tokens
from workers.types import Example, Experience, Finish, Floats, Prompt, Text

LOGPROB_CHUNK = 512  # tokens whose logits are formed at a time: two of each comparison
COMPARISONS_AT_ONCE = 512  # whose tokens are in memory at the same time


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two completions of a prompt, in both orders."""

    prompt: Prompt
    first: int  # index of the completion
    second: int
    tokens: tuple[list[int], list[int]]  # (first is A, second is A)


class PairwiseScorer:
    """Language model that compares completions, on this process's GPU if it has one.

    The model has its own tokenizer and chat template, so its family may differ from the policy's. Without a template it
    continues the text of a comparison. Comparisons longer than `max_length` are left out. The scorer abstains on a
    completion without comparisons, such as the only one of its prompt.
    """

    def __init__(self, config: PairwiseRewardConfig) -> None:
        assert config.path is not None
        if hf_models.is_scorer(config.path):
            raise RewardError(f"{config.path} is a reward model, not a language model; use it with type: model")
        self.name, self._config = model_name(config.path), config
        model = ModelConfig(
            path=config.path,
            dtype=config.dtype,
            chat_template_kwargs=config.chat_template_kwargs,
            template_date=config.template_date,
        )
        self._codec = hf_text.TextCodec(model)
        self._choices = [_choice_token(self._codec, choice, config.path) for choice in config.choices]
        if self._choices[0] == self._choices[1]:
            raise RewardError(f"the choices {config.choices} are one token of {config.path}; give two different ones")
        self._max_length = min(config.max_length, hf_models.max_positions(config.path) or config.max_length)
        device = default_device()
        module = hf_models.load_policy(config.path, config.dtype, chunk=LOGPROB_CHUNK).to(device).eval()
        check_rows(module, device, path=config.path, longest=min(self._max_length, config.tokens_per_micro_batch))
        self._model = WholeModel(module, device)

    def score(self, completed: Completed) -> Floats:
        """Return the win rate of each completion in its group, NaN where nothing was compared."""
        wins, compared = np.zeros((2, len(completed.prompts)))
        found = self._comparisons(completed, wins, compared)
        while batch := list(islice(found, COMPARISONS_AT_ONCE)):
            first, second = np.array([(c.first, c.second) for c in batch]).T
            beats = self._probabilities(batch)
            np.add.at(wins, first, beats)
            np.add.at(wins, second, 1 - beats)
            np.add.at(compared, np.concatenate([first, second]), 1)
        return np.where(compared, wins / np.maximum(compared, 1), np.nan).astype(np.float32)

    def _comparisons(
        self, completed: Completed, wins: NDArray[np.float64], compared: NDArray[np.float64]
    ) -> Iterator[Comparison]:
        """Yield the comparisons that the model decides, and record the ties of equal completions."""
        start = 0
        for example in examples_of(completed):
            texts = [last_text(completion) for completion in example.completions]
            for i, j in opponents(texts, self._config.opponents):
                first, second = start + i, start + j
                if texts[i] == texts[j]:
                    wins[[first, second]] += 0.5
                    compared[[first, second]] += 1
                    continue
                tokens = self._encode(example, texts[i], texts[j]), self._encode(example, texts[j], texts[i])
                if max(map(len, tokens)) <= self._max_length:
                    yield Comparison(prompt=example.prompt, first=first, second=second, tokens=tokens)
            start += len(texts)

    def _encode(self, example: Example, response_a: str, response_b: str) -> list[int]:
        text = comparison_text(self._config.template, example.prompt.text, response_a, response_b)
        is_chat = bool(self._codec.tokenizer.chat_template)
        try:
            tokens = self._codec.encode_prompt([{"role": "user", "content": text}] if is_chat else text)
        except ModelError as error:
            raise RewardError(f"{self.name} cannot read a comparison of prompt {example.prompt.id}: {error}") from error
        if not self._config.bos and tokens[:1] == [self._codec.tokenizer.bos_token_id]:
            tokens = tokens[1:]
        return tokens

    def _probabilities(self, comparisons: Sequence[Comparison]) -> NDArray[np.float64]:
        """Return the probability that the first completion wins, the mean over both orders: [n]."""
        questions = [tokens for comparison in comparisons for tokens in comparison.tokens]
        share = score_tokens(
            [_experience([c.prompt for c in comparisons for _ in c.tokens], questions, self._choices)],
            lambda packed: self._model.infer(packed).cpu().numpy(),
            rank=0,
            world_size=1,
            budget=self._config.tokens_per_micro_batch,
            apart=self._model.apart,
        )
        logprobs = np.empty(2 * len(questions))
        logprobs[share.completions] = share.values
        if not np.isfinite(logprobs).all():
            wrong = [comparisons[i // 4].prompt for i in np.flatnonzero(~np.isfinite(logprobs))]
            raise RewardError(
                f"{self.name} returned probabilities that are not finite for {rows(wrong)}; "
                "check its weights, or load it with dtype: float32"
            )
        first, second = logprobs.reshape(-1, 2).T
        chooses_a = 0.5 * (1 + np.tanh((first - second) / 2))  # softmax over the two tokens
        forward, backward = chooses_a.reshape(-1, 2).T
        return (forward + 1 - backward) / 2


def comparison_text(template: str, prompt: Text, response_a: str, response_b: str) -> str:
    """Write the template with the prompt, a conversation in RLHFlow's plain form, and two completions.

    >>> comparison_text("{context}: {response_a} or {response_b}", "2+2=", "4", "{context}")
    '2+2=: 4 or {context}'
    """
    parts = {"context": plain_text(prompt), "response_a": response_a, "response_b": response_b}
    return re.sub(r"\{(context|response_a|response_b)\}", lambda match: parts[match[1]], template)


def plain_text(prompt: Text) -> str:
    """Return a prompt as text; a conversation as RLHFlow's `tokenizer_plain` renders it, in turns.

    >>> plain_text([{"role": "user", "content": "2+2="}])
    '\\n\\n<turn> user\\n 2+2=\\n'
    """
    if isinstance(prompt, str):
        return prompt
    turns = (f"\n<turn> {message.get('role')}\n {message_text(message)}" for message in prompt)
    return "\n" + "".join(turns) + "\n"


def _choice_token(codec: hf_text.TextCodec, choice: str, path: str) -> int:
    tokens = codec.tokenizer(choice, add_special_tokens=False)["input_ids"]
    # Some tokenizers leave out what is not in their vocabulary.
    if len(tokens) != 1 or codec.tokenizer.decode(tokens).strip() != choice.strip():
        raise RewardError(f"`{choice}` is not one token of {path} ({tokens}); give choices that are")
    return int(tokens[0])


def _experience(prompts: Sequence[Prompt], questions: Sequence[Sequence[int]], choices: Sequence[int]) -> Experience:
    """Return one group of two completions, the choices, for each question."""
    answers = len(questions) * len(choices)
    return Experience(
        prompts=tuple(prompts),
        prompt_tokens=Ragged.of(questions),
        completions=Ragged.of([[choice] for _ in questions for choice in choices]),
        group_offsets=np.arange(len(questions) + 1) * len(choices),
        logprobs=None,
        versions=np.zeros(answers, np.int32),
        finish=np.full(answers, Finish.stop, np.int32),
    )
