"""The dataset role: rows of a dataset in, tokens out, while the learner is busy with the rows before."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from workers.config import ModelConfig
from workers.engines import hf_models, hf_text
from workers.types import Example, Experience, Finish, Ragged


class Encoder:
    """A tokenizer.

    With `whole` a row's prompt is learned, too: its first token, which nothing predicts, stands as the prompt, and all
    that follows as the completion. With `mismatched` each group gets a second completion, that of the row before (the
    first row, the last's), as TRL has it.
    """

    def __init__(self, model: ModelConfig, *, max_length: int, whole: bool = False, mismatched: bool = False) -> None:
        self._whole = whole
        self._codec = hf_text.TextCodec(model)
        assert model.path is not None
        self._mismatched = mismatched
        self._max_length = min(max_length, hf_models.max_positions(model.path) or max_length)

    def encode(self, examples: Sequence[Example]) -> Experience:
        """One group per example, a mismatched completion last and scored 0.

        A row whose prompt leaves no room for an answer is dropped; completions that run over `max_length` lose their
        end. Both are counted in `num_dropped` and `num_truncated`, where mismatched completions do not count.
        """
        started = time.perf_counter()
        prompts, groups = zip(*(self._tokens(e) for e in examples), strict=True) if examples else ((), ())
        kept = [i for i, tokens in enumerate(prompts) if 0 < len(tokens) < self._max_length]
        own = [groups[i] for i in kept]
        whole = [[*group, other[0]] for group, other in _with_the_one_before(own)] if self._mismatched else own
        rooms = [self._max_length - len(prompts[i]) for i in kept]
        cut = [[tokens[:room] for tokens in group] for group, room in zip(whole, rooms, strict=True)]
        flat = [tokens for group in cut for tokens in group]
        added = (0.0,) if self._mismatched else ()
        scores = [score for i in kept for score in (*(examples[i].scores or ()), *added)]
        truncated = [
            [len(t) < len(w) for t, w in zip(group, full, strict=True)] for group, full in zip(cut, whole, strict=True)
        ]
        return Experience(
            prompts=tuple(examples[i].prompt for i in kept),
            prompt_tokens=Ragged.of([prompts[i] for i in kept]),
            completions=Ragged.of(flat),
            group_offsets=np.concatenate([[0], np.cumsum([len(g) for g in cut])]).astype(np.int64),
            logprobs=None,
            versions=np.zeros(len(flat), np.int32),
            finish=np.where([t for group in truncated for t in group], Finish.length, Finish.stop).astype(np.int32),
            rewards=np.asarray(scores, np.float32) if len(scores) == len(flat) and flat else None,
            num_dropped=len(examples) - len(kept),
            num_truncated=sum(sum(group[: len(mine)]) for group, mine in zip(truncated, own, strict=True)),
            seconds=time.perf_counter() - started,
        )

    def _tokens(self, example: Example) -> tuple[list[int], list[list[int]]]:
        """The prompt, and each completion. Raises ModelError with the row."""
        given = example.prompt
        try:
            encoded = self._codec.encode_row(given.text, example.completions, given.columns)
        except hf_models.ModelError as error:
            raise hf_models.ModelError(f"{given.id}: {error}") from error
        prompt, completions = encoded.prompt, encoded.completions
        if len(completions) == 1 and (self._whole or not prompt):  # a `text` row has no prompt of its own
            tokens = prompt + completions[0]
            return (tokens[:1], [tokens[1:]]) if len(tokens) > 1 else ([], [[]])  # one token alone teaches nothing
        return prompt, completions


def _with_the_one_before(groups: list[list[list[int]]]) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Each row's completions with those of the row before it; before the first comes the last."""
    return list(zip(groups, groups[-1:] + groups[:-1], strict=True))
