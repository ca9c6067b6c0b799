"""The reward role: completions in, one finite number per completion out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

from workers import progress, rewards
from workers.config import ModelConfig, RewardConfig
from workers.conversation import as_text
from workers.files.rollout_files import read_scores, write_scores
from workers.files.shared_storage import SharesStorage
from workers.rewards.base import Completed, CountsUsage, RewardError
from workers.rewards.combine import SUM, Combination, combined, normalized
from workers.types import (
    Experience,
    Finish,
    Floats,
    Ints,
    Prompt,
    Sample,
    Scores,
    Text,
    TokenShard,
    log_ratios,
    merge,
    merge_shards,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """Lengths, finish reasons and log-ratios of N completions, without their tokens.

    Example: `Measures(prompt_ids=("test.jsonl:0", "test.jsonl:0"), lengths=[6, 7], finish=[0, 0],
    log_ratios=[0.8, -0.1])`.
    """

    prompt_ids: tuple[str, ...]  # [N]
    lengths: NDArray[np.int64]  # [N] tokens, including the end-of-sequence token
    finish: Ints  # [N] Finish
    log_ratios: Floats | None  # [N] nats; None: no model to compare with


class Reward(SharesStorage):
    """One worker of the reward gang. It scores its share of the groups with every scorer of the recipe."""

    def __init__(
        self,
        model: ModelConfig,
        configs: Sequence[RewardConfig],
        *,
        index: int,
        num_workers: int,
        num_samples: int,
        num_cpus: int = 1,
        skip_special_tokens: bool = True,
        combination: Combination = SUM,
    ) -> None:
        """Build the scorers.

        Args:
            model: model whose tokenizer decodes the completions.
            index: this worker, of `num_workers`.
            num_samples: completions that are returned as text.
            num_cpus: cores of this worker.
            skip_special_tokens: leave special tokens out of the texts that are scored.
            combination: how the weighted scores of a completion make its reward.
        """
        # Imported here: the driver imports this module for the names of its methods alone.
        from workers.engines import hf_text

        self._codec, self._skip = hf_text.TextCodec(model), skip_special_tokens
        scorers = [rewards.build(c, num_cpus=num_cpus) for c in configs]
        self._scorers = dict(zip(_distinct([s.name for s in scorers]), scorers, strict=True))
        self._weights = {name: c.weight for name, c in zip(self._scorers, configs, strict=True)}
        self._index, self._num_workers, self._num_samples = index, num_workers, num_samples
        self._combination = combination

    def score(self, parts: Sequence[Experience], file_prefix: str | None = None) -> Scores:
        """Score this worker's share of the groups: worker i takes the i-th consecutive part.

        Args:
            file_prefix: write the scores to a file whose name starts with it, before returning; None: do not.

        Raises:
            RewardError: a scorer failed, every scorer abstained on a completion, or a reward is not finite.
        """
        started = time.perf_counter()
        experience = merge(parts)
        num_groups = len(experience.prompts)
        first, last = (num_groups * i // self._num_workers for i in (self._index, self._index + 1))
        begin, end = int(experience.group_offsets[first]), int(experience.group_offsets[last])
        tokens = [experience.completions[i].tolist() for i in range(begin, end)]
        texts = self._codec.decode_batch(tokens, skip_special_tokens=self._skip)
        prompts = [experience.prompts[g] for g in experience.group_of[begin:end]]
        by_scorer = self._by_scorer(prompts, texts, tokens)
        values = np.stack(list(by_scorer.values()))  # [scorers, n]
        total = self._total(values, prompts)
        groups = experience.group_offsets[first : last + 1] - begin
        # The first completion of the first few prompts of the first chunk, from the first worker: the same prompts in
        # every evaluation.
        shows = first == 0 and experience.chunk == 0
        shown = experience.group_offsets[first : min(last, first + self._num_samples)] - begin if shows else ()
        samples = tuple(
            Sample(
                prompt_id=prompts[i].id,
                prompt=as_text(prompts[i].text),
                completion=texts[i],
                reward=float(total[i]),
                version=int(experience.versions[begin + i]),
                finish=Finish(int(experience.finish[begin + i])).name,
                length=len(tokens[i]),
            )
            for i in shown
        )
        scores = Scores(
            rewards=total,
            by_scorer=by_scorer,
            samples=samples,
            seconds=time.perf_counter() - started,
            chunk=experience.chunk,
            weights=self._weights,
            normalized=self._combined(normalized(values, groups)) if self._combination.normalize else None,
            usage=self._usage(),
        )
        if file_prefix is not None:
            write_scores(f"{file_prefix}reward-{self._index}", scores)
        return scores

    def measure(self, parts: Sequence[Experience], shares: Sequence[TokenShard] | None) -> Measures:
        """Measure all completions for the driver, which never reads their tokens.

        `shares` are the log-probabilities of the model to compare with; None: no log-ratios.
        """
        experience = merge(parts)
        return Measures(
            prompt_ids=tuple(experience.prompts[g].id for g in experience.group_of),
            lengths=experience.completions.lengths,
            finish=experience.finish,
            log_ratios=None if shares is None else log_ratios(experience, merge_shards(shares, parts)),
        )

    def recall(self, files: Sequence[tuple[str, str]]) -> Scores:
        """Read back the scores of all workers from files of (path, SHA-256). Raises StoredFileError."""
        return read_scores(files)

    def _by_scorer(
        self, prompts: Sequence[Prompt], texts: Sequence[str], tokens: Sequence[list[int]]
    ) -> dict[str, Floats]:
        completions = [_as_answer(p, t) for p, t in zip(prompts, texts, strict=True)]
        completed = Completed(prompts=prompts, completions=completions, completion_ids=tokens)
        # Without a share no scorer is called: a function that needs columns would fail.
        found: dict[str, Floats] = {}
        for name, scorer in self._scorers.items():
            found[name] = scorer.score(completed) if texts else np.zeros(0, np.float32)
            progress.report()
        return found

    def _usage(self) -> dict[str, float]:
        """Return what scorers that count it have used since the last call."""
        counting = ((name, scorer) for name, scorer in self._scorers.items() if isinstance(scorer, CountsUsage))
        return {f"{name}/{what}": n for name, scorer in counting for what, n in scorer.take_usage().items()}

    def _total(self, values: Floats, prompts: Sequence[Prompt]) -> Floats:
        abstained = np.isnan(values).all(0)
        if abstained.any():
            ids = [prompts[i].id for i in np.flatnonzero(abstained)[:5]]
            raise RewardError(
                f"every reward returned None for {int(abstained.sum())} completions (prompts {', '.join(ids)} …)"
            )
        total = self._combined(values)
        if not np.isfinite(total).all():
            first = int(np.flatnonzero(~np.isfinite(total))[0])
            given = ", ".join(f"{name} {value[first]:g}" for name, value in zip(self._scorers, values, strict=True))
            raise RewardError(
                f"the weighted sum of the rewards of prompt {prompts[first].id} exceeds float32 ({given}); "
                "scale the rewards down, or lower their weights"
            )
        return total

    def _combined(self, values: Floats) -> Floats:
        return combined(values, np.asarray(list(self._weights.values()), np.float32), self._combination.combine)


def _distinct(names: Sequence[str]) -> list[str]:
    """Make names unique for metrics: the second `reward` becomes `reward_2`."""
    taken: list[str] = []
    for name in names:
        tries = chain([name], (f"{name}_{i}" for i in count(2)))
        taken.append(next(n for n in tries if n not in taken))
    return taken


def _as_answer(prompt: Prompt, text: str) -> Text:
    return text if isinstance(prompt.text, str) else [{"role": "assistant", "content": text}]
