"""The dataset role: encodes rows of a dataset while the learner trains on earlier ones, and mixes pairs into rounds."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from workers.config import ModelConfig
from workers.engines.base import ModelError
from workers.files.shared_storage import SharesStorage
from workers.mixing import Mix
from workers.ragged import Ragged
from workers.types import Example, Experience, Finish


class Encoder(SharesStorage):
    """A tokenizer for rows of a dataset."""

    def __init__(
        self, model: ModelConfig, *, max_length: int, train_on_prompts: bool = False, mismatched: bool = False
    ) -> None:
        """Load the tokenizer of `model`.

        Args:
            max_length: tokens of prompt and completion together.
            train_on_prompts: encode the row's first token as the prompt and all that follows as the completion.
            mismatched: add to each group the completion of the previous row (to the first, of the last), as TRL does.
        """
        # Imported here: the driver imports this module for the names of its methods alone.
        from workers.engines import hf_models, hf_text

        assert model.path is not None
        self._train_on_prompts, self._mismatched = train_on_prompts, mismatched
        self._codec = hf_text.TextCodec(model)
        self._max_length = min(max_length, hf_models.max_positions(model.path) or max_length)

    def encode(self, examples: Sequence[Example]) -> Experience:
        """Encode each example as one group; a mismatched completion is its last one and has the score 0.

        A row whose prompt leaves no room for a completion is dropped, and completions that exceed `max_length` are
        truncated. `num_dropped` and `num_truncated` count them, mismatched completions excluded.
        """
        started = time.perf_counter()
        prompts, groups = zip(*(self._tokens(e) for e in examples), strict=True) if examples else ((), ())
        kept = [i for i, tokens in enumerate(prompts) if 0 < len(tokens) < self._max_length]
        own = [groups[i] for i in kept]
        full = [[*group, other[0]] for group, other in _with_previous(own)] if self._mismatched else own
        rooms = [self._max_length - len(prompts[i]) for i in kept]
        cut = [[tokens[:room] for tokens in group] for group, room in zip(full, rooms, strict=True)]
        flat = [tokens for group in cut for tokens in group]
        added = (0.0,) if self._mismatched else ()
        scores = [score for i in kept for score in (*(examples[i].scores or ()), *added)]
        truncated = [
            [len(t) < len(w) for t, w in zip(group, whole, strict=True)] for group, whole in zip(cut, full, strict=True)
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

    def mix(self, mix: Mix) -> Experience:
        """Return the pairs that are mixed into a round: groups of two, chosen first, with their rewards.

        Raises:
            ModelError: the scored groups of an earlier round are missing or damaged.
        """
        from workers.files.groups_file import GroupsError
        from workers.mixing import mixed

        try:
            return mixed(mix, self.encode(mix.examples))
        except GroupsError as error:
            fix = "restore the file, or set rounds.mix.earlier_rounds to 0"
            raise ModelError(f"pairs of earlier rounds cannot be mixed in: {error}; {fix}") from error

    def _tokens(self, example: Example) -> tuple[list[int], list[list[int]]]:
        """Return the tokens of the prompt and of each completion. Raises ModelError, which names the row."""
        row = example.prompt
        try:
            encoded = self._codec.encode_row(row.text, example.completions, row.columns)
        except ModelError as error:
            raise ModelError(f"{row.id}: {error}") from error
        prompt, completions = encoded.prompt, encoded.completions
        if len(completions) == 1 and (self._train_on_prompts or not prompt):  # a `text` row has no prompt
            tokens = prompt + completions[0]
            return (tokens[:1], [tokens[1:]]) if len(tokens) > 1 else ([], [[]])  # one token has no predictor
        return prompt, completions


def _with_previous(groups: list[list[list[int]]]) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Pair each row's completions with those of the previous row; the first row's with those of the last."""
    return list(zip(groups, groups[-1:] + groups[:-1], strict=True))
