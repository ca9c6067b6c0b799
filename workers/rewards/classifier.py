"""Label of a text-classification model as a score: toxicity of a completion, or entailment by a reference text.

    s(y) = p(label | y)          y alone: toxicity, sentiment, language
    s(y) = p(label | x, y)       x is a column: an NLI model reads it as the premise, and the completion as hypothesis

p is the softmax over the labels, or the sigmoid of each one where a text may have several; `function_to_apply: none`
gives the logit itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.config import ClassifierRewardConfig
from workers.engines.hf_classifier import TextClassifier
from workers.engines.inference import default_device
from workers.rewards.base import Completed, RewardError, last_text, rows
from workers.types import Floats, Prompt


class ClassifierScorer:
    """Text-classification model, on this process's GPU if it has one. It abstains where the premise is empty."""

    def __init__(self, config: ClassifierRewardConfig) -> None:
        assert config.path is not None
        self.name, self._config = config.name, config
        self._model = TextClassifier(config.path, config.dtype, max_length=config.max_length, device=default_device())
        if config.label not in self._model.labels:
            labels = ", ".join(self._model.labels)
            raise RewardError(f"{config.path} has no label {config.label!r}; its labels are {labels}")
        self._label = self._model.labels.index(config.label)
        self._function = config.function_to_apply or self._model.function

    def score(self, completed: Completed) -> Floats:
        """Return one number per completion, NaN where its premise is empty."""
        texts = [last_text(completion) for completion in completed.completions]
        column = self._config.premise_column
        premises = None if column is None else [_premise(prompt, column) for prompt in completed.prompts]
        given = np.asarray([i for i in range(len(texts)) if premises is None or premises[i].strip()], np.int64)
        scores = np.full(len(texts), np.nan, np.float32)
        if len(given):
            logits = self._model.outputs(
                [texts[i] for i in given],
                None if premises is None else [premises[i] for i in given],
                budget=self._config.tokens_per_micro_batch,
            )
            if not np.isfinite(logits).all():
                wrong = [completed.prompts[given[i]] for i in np.flatnonzero(~np.isfinite(logits).all(1))]
                raise RewardError(
                    f"classifier {self._config.path} returned scores that are not finite for {rows(wrong)}; "
                    "check its weights, or load it with dtype: float32"
                )
            scores[given] = applied(self._function, logits)[:, self._label]
        return scores


def applied(function: str, logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores of all labels: [N, labels], from logits of the same shape."""
    if function == "none":
        return logits
    if function == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def _premise(prompt: Prompt, column: str) -> str:
    """Return the text in a column of a row; empty: the row has none."""
    value = prompt.columns.get(column)
    if value is not None and not isinstance(value, str):
        raise RewardError(
            f"prompt {prompt.id} has {type(value).__name__} in column {column!r}, not text; set premise_column to a "
            "column with the reference text"
        )
    return value or ""
