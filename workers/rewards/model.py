"""What a reward model says of a completion, by the forward pass that reward models are trained with here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from workers.config import ModelConfig, ModelRewardConfig
from workers.encoder import Encoder
from workers.engines import hf_models
from workers.engines.hf_check import check_rows
from workers.engines.inference import asking, own_device
from workers.margins import final_scores
from workers.rewards.base import Completed, RewardError, rows
from workers.scoring import score_tokens
from workers.types import Example, Experience, Floats, Prompt


class ModelScorer:
    """A sequence-classification model with one label, on the GPU where this process has one.

    It reads text, through its own tokenizer and chat template: it need not be of the policy's family. Every completion
    gets the end of sequence that its training data had, one that was cut off, too. Completions of one prompt share its
    computation, and are cut at `max_length`; of a prompt that is longer the scorer passes.
    """

    def __init__(self, config: ModelRewardConfig) -> None:
        assert config.path is not None
        if not hf_models.is_scorer(config.path):
            raise RewardError(f"{config.path} is no reward model: it is not one for sequence classification")
        model = ModelConfig(
            path=config.path,
            dtype=config.dtype,
            chat_template_kwargs=config.chat_template_kwargs,
            template_date=config.template_date,
        )
        self.name = _name(config.path)
        self._encoder = Encoder(model, max_length=config.max_length)
        self._budget, self._pad = config.tokens_per_micro_batch, hf_models.padding_token(config.path)
        device = own_device()
        module = hf_models.load_scorer(config.path, config.dtype).to(device).eval()
        check_rows(module, device, path=config.path, longest=min(config.max_length, self._budget))
        self._ask, self._apart = asking(module, device), module.packing.apart

    def score(self, completed: Completed) -> Floats:
        """One number per completion, NaN where its prompt is too long."""
        examples = _examples(completed)
        encoded = self._encoder.encode(examples)
        if not encoded.prompts:
            return np.full(len(completed.prompts), np.nan, np.float32)
        share = score_tokens(
            [encoded], self._ask, rank=0, world_size=1, budget=self._budget, pad=self._pad, apart=self._apart
        )
        final = np.empty(len(encoded.completions), np.float32)
        final[share.completions] = final_scores(share, encoded.completions)
        if not np.isfinite(final).all():
            wrong = [encoded.prompts[encoded.group_of[i]] for i in np.flatnonzero(~np.isfinite(final))]
            raise RewardError(
                f"reward model {self.name} answered with numbers that are not finite for {rows(wrong)}; "
                "look at its weights, or load it with dtype: float32"
            )
        return np.concatenate(list(_aligned(examples, encoded, final)))


def _name(path: str) -> str:
    """As metrics have it: the directory's, or for a run's `model` directory the run's."""
    parts = Path(path).parts
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def _examples(completed: Completed) -> list[Example]:
    """Neighbours that answer the same prompt as one example."""
    pairs = zip(completed.prompts, completed.completions, strict=True)
    groups = ([*group] for _, group in groupby(pairs, key=lambda pair: id(pair[0])))
    return [Example(prompt=group[0][0], completions=tuple(text for _, text in group)) for group in groups]


def _aligned(examples: Sequence[Example], encoded: Experience, final: Floats) -> Iterator[Floats]:
    """The numbers of each example, in order; the encoder has left out those whose prompt is too long."""
    left: list[Prompt] = list(encoded.prompts)
    groups = iter(np.split(final, encoded.group_offsets[1:-1]))
    for example in examples:
        if left and left[0] is example.prompt:
            left.pop(0)
            yield next(groups)
        else:
            yield np.full(len(example.completions), np.nan, np.float32)
