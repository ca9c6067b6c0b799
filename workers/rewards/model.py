"""Reward model as a scorer, with the same forward pass that reward models are trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from workers.config import ModelConfig, ModelRewardConfig
from workers.encoder import Encoder
from workers.engines import hf_models
from workers.engines.hf_check import check_rows
from workers.engines.inference import WholeModel, default_device
from workers.margins import final_scores
from workers.rewards.base import Completed, RewardError, rows
from workers.scoring import score_tokens
from workers.types import Example, Experience, Floats, Prompt


class ModelScorer:
    """Sequence-classification model, or one label of it, on this process's GPU if it has one.

    The model has its own tokenizer and chat template, so its family may differ from the policy's. Every completion ends
    with an end of sequence, as in the model's training data, even if it was truncated. Completions of one prompt share
    its computation and are truncated at `max_length`. The scorer abstains if the prompt alone is longer.
    """

    def __init__(self, config: ModelRewardConfig) -> None:
        assert config.path is not None
        if not hf_models.is_scorer(config.path):
            raise RewardError(f"{config.path} is not a reward model: its architecture is not sequence classification")
        model = ModelConfig(
            path=config.path,
            dtype=config.dtype,
            chat_template_kwargs=config.chat_template_kwargs,
            template_date=config.template_date,
        )
        self.name = model_name(config.path) + (f"_{config.label}" if config.label else "")
        self._encoder = Encoder(model, max_length=config.max_length)
        self._budget, self._pad = config.tokens_per_micro_batch, hf_models.padding_token(config.path)
        device = default_device()
        module = hf_models.load_score(config.path, config.dtype, config.label).to(device).eval()
        check_rows(module, device, path=config.path, longest=min(config.max_length, self._budget))
        self._model = WholeModel(module, device)

    def score(self, completed: Completed) -> Floats:
        """Return one number per completion, NaN where its prompt is too long."""
        examples = examples_of(completed)
        encoded = self._encoder.encode(examples)
        if not encoded.prompts:
            return np.full(len(completed.prompts), np.nan, np.float32)
        share = score_tokens(
            [encoded],
            lambda packed: self._model.infer(packed).cpu().numpy(),
            rank=0,
            world_size=1,
            budget=self._budget,
            pad=self._pad,
            apart=self._model.apart,
        )
        final = np.empty(len(encoded.completions), np.float32)
        final[share.completions] = final_scores(share, encoded.completions)
        if not np.isfinite(final).all():
            wrong = [encoded.prompts[encoded.group_of[i]] for i in np.flatnonzero(~np.isfinite(final))]
            raise RewardError(
                f"reward model {self.name} returned scores that are not finite for {rows(wrong)}; "
                "check its weights, or load it with dtype: float32"
            )
        return np.concatenate(list(_aligned(examples, encoded, final)))


def model_name(path: str) -> str:
    """Return the name for the metrics: that of the directory, or that of the run for a run's `model` directory."""
    parts = Path(path).parts
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def examples_of(completed: Completed) -> list[Example]:
    """Group consecutive completions of the same prompt into one example each."""
    pairs = zip(completed.prompts, completed.completions, strict=True)
    groups = ([*group] for _, group in groupby(pairs, key=lambda pair: id(pair[0])))
    return [Example(prompt=group[0][0], completions=tuple(text for _, text in group)) for group in groups]


def _aligned(examples: Sequence[Example], encoded: Experience, final: Floats) -> Iterator[Floats]:
    """Yield the scores of each example, NaN for those that the encoder dropped because their prompt is too long."""
    remaining: list[Prompt] = list(encoded.prompts)
    groups = iter(np.split(final, encoded.group_offsets[1:-1]))
    for example in examples:
        if remaining and remaining[0] is example.prompt:
            remaining.pop(0)
            yield next(groups)
        else:
            yield np.full(len(example.completions), np.nan, np.float32)
