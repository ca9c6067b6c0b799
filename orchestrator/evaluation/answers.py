"""Answers of the evaluated models and their scores, from the same rollout, reward and scoring workers that a run uses.

    prompts ──► rollout (greedy, sampled) ──► reward, refusal ──► AnswerSet       one model at a time
    AnswerSet (sampled) ──► scoring ranks holding π, then each other model ──► log π(y) − log π_other(y)

consumes   a suite and its prompts
produces   rows of samples.jsonl
waits for  all answers of a model before its engines are released, because the next model needs their devices
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from orchestrator.cluster.base import Cluster, Gang, Restart, wait
from orchestrator.errors import BadInput, Problem
from orchestrator.evaluation.gangs import answering_gangs, model_config, scoring_gang
from orchestrator.evaluation.rows import Mode, PromptSet, Row, number_or_none
from orchestrator.evaluation.suite import SuiteConfig
from orchestrator.pipeline.sources import completions_per_chunk, sample
from orchestrator.signals import StopRequest
from workers.reference import Reference
from workers.reward import Reward
from workers.rollout import Rollout
from workers.types import Experience, Finish, Prompt, Sampling, Scores, assemble, merge, merge_scores

Log: TypeAlias = Callable[[str], None]
"""Receiver of progress messages, one line at a time."""
PROMPT_SETS: tuple[PromptSet, ...] = get_args(PromptSet)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSet:
    """Completions of one model for one set of prompts, in one mode."""

    prompt_set: PromptSet
    mode: Mode
    experience: Experience
    texts: tuple[str, ...]  # [N]
    scores: Scores | None  # None: no scorer for this set
    seconds: float  # busy time, summed over engines

    def usage(self, index: int) -> dict[str, float]:
        """Return what one of the suite's scorers has used, such as {"requests": 8, "cost": 0.01}; empty: it is free."""
        if self.scores is None or self.prompt_set != "prompts":
            return {}
        prefix = f"{list(self.scores.by_scorer)[index]}/"
        return {name.removeprefix(prefix): n for name, n in self.scores.usage.items() if name.startswith(prefix)}


def usage(parts: Iterable[AnswerSet], index: int) -> dict[str, float]:
    """Return what one of the suite's scorers has used on all answers."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.usage(index))
    return dict(total)


@contextmanager
def cluster_for(suite: SuiteConfig, output: Path, log: Log, start_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    """Start a cluster and shut it down on leaving the context.

    Workers log to `output`/logs. A signal ends the evaluation at once.

    Raises:
        ClusterError: the cluster could not be started.
    """
    with StopRequest():
        log("starting Ray")
        logs = output.absolute() / "logs"
        cluster = start_cluster(suite.cluster, log_directory=logs, on_restart=lambda r: log(_restart_text(r)))
        try:
            yield cluster
        finally:
            cluster.shutdown()


def _restart_text(restart: Restart) -> str:
    return f"{restart.why}; restarted ({restart.number} of at most {restart.limit} restarts)"


def answer_prompts(
    cluster: Cluster, suite: SuiteConfig, path: str, prompts: Mapping[str, Sequence[Prompt]]
) -> list[AnswerSet]:
    """Generate and score all answers of the model at `path`, and release its gangs.

    Raises:
        BadInput: every prompt of a set is too long.
    """
    plans = answering_gangs(suite, path, prompts.keys(), cuda=cluster.cuda)
    try:
        gangs = cluster.spawn(plans)
        return [
            _answer_set(gangs, suite, prompt_set, mode, prompts[prompt_set], sampling)
            for prompt_set in PROMPT_SETS
            if prompt_set in prompts
            for mode, sampling in _samplings(suite, prompt_set).items()
        ]
    finally:
        cluster.release()


def _samplings(suite: SuiteConfig, prompt_set: PromptSet) -> dict[Mode, Sampling]:
    """Return the sampling settings of each mode. Harmful and benign prompts are answered greedily only."""
    rollout = suite.rollout
    greedy = Sampling(
        num_generations=1,
        max_completion_length=rollout.max_completion_length,
        temperature=0.0,
        ignore_eos=rollout.ignore_eos,
        seed=suite.seed,
    )
    samplings: dict[Mode, Sampling] = {"greedy": greedy} if suite.greedy or prompt_set != "prompts" else {}
    if prompt_set == "prompts" and suite.num_generations:
        samplings["sampled"] = replace(
            greedy,
            num_generations=suite.num_generations,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
        )
    return samplings


def _answer_set(
    gangs: Mapping[str, Gang[Any]],
    suite: SuiteConfig,
    prompt_set: PromptSet,
    mode: Mode,
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> AnswerSet:
    rollout: Gang[Rollout] = gangs["rollout"]
    reward: Gang[Reward] | None = gangs.get("reward" if prompt_set == "prompts" else "refusal")
    chunk = completions_per_chunk(suite.rollout)
    pending = sample(prompts, sampling, rollout, reward, completions_per_chunk=chunk)
    texts = [h for chunk in pending.chunks for h in rollout.each(Rollout.texts, [(part,) for part in chunk.experience])]
    parts = wait(pending.experience)
    experience = merge(parts)
    if not experience.prompts:
        why = "all of them are longer than rollout.max_prompt_length"
        fix = "raise rollout.max_prompt_length"
        raise BadInput(Problem(what=f"no prompt of {prompt_set} can be answered", where=prompt_set, why=why, fix=fix))
    return AnswerSet(
        prompt_set=prompt_set,
        mode=mode,
        experience=experience,
        texts=tuple(text for part in wait(texts) for text in part),
        scores=None if pending.scores is None else merge_scores(wait(pending.scores)),
        seconds=sum(part.seconds for part in parts),
    )


# ------------------------------------------------------------------------------------------------ log-ratios


@dataclass(frozen=True, kw_only=True, slots=True)
class LogProbs:
    """Log-probabilities of completions under several models, and the cost of computing them."""

    sums: Mapping[str, Mapping[str, NDArray[np.float64]]]  # log p(y) in nats [N], by model path and completions' key
    num_tokens: int  # tokens read, including prompts
    seconds_by_model: Mapping[str, float]  # busy time by model path, summed over ranks

    @property
    def seconds(self) -> float:
        return sum(self.seconds_by_model.values())


def log_probs(
    cluster: Cluster,
    suite: SuiteConfig,
    wanted: Mapping[str, Sequence[str]],
    completions: Mapping[str, Experience],
) -> LogProbs:
    """Score completions by the learner's forward pass, at the temperature they were sampled at.

    One gang of scoring ranks loads one model after the other.

    Args:
        wanted: by model path, the keys of the `completions` to score.
        completions: completions by key.
    """
    plan = scoring_gang(suite, next(iter(wanted)), cuda=cluster.cuda)
    try:
        gangs = cluster.spawn([plan])
        return _score(gangs["reference"], suite, wanted, completions)
    finally:
        cluster.release()


def _score(
    gang: Gang[Reference],
    suite: SuiteConfig,
    wanted: Mapping[str, Sequence[str]],
    completions: Mapping[str, Experience],
) -> LogProbs:
    sums: dict[str, dict[str, NDArray[np.float64]]] = {}
    num_tokens, seconds = 0, dict.fromkeys(wanted, 0.0)
    for version, (path, keys) in enumerate(wanted.items()):
        if version:  # the ranks start with the first model
            load = partial(_load, path=str(model_config(suite, path).path), version=version)
            gang.when_restarted(load)
            load(gang)
        for key in keys:
            experience = completions[key]
            shares = wait(gang.all(Reference.logprobs, [experience], experience.temperature, version))
            flat = assemble(shares, experience.completions).astype(np.float64)
            sums.setdefault(path, {})[key] = np.add.reduceat(flat, experience.completions.offsets[:-1])
            num_tokens += int(experience.prompt_tokens.lengths.sum() + experience.completions.lengths.sum())
            seconds[path] += sum(share.seconds for share in shares)
    return LogProbs(sums=sums, num_tokens=num_tokens, seconds_by_model=seconds)


def _load(gang: Gang[Reference], *, path: str, version: int) -> None:
    wait(gang.all(Reference.load, path, version))


# ------------------------------------------------------------------------------------------------ rows


def to_rows(name: str, answers: AnswerSet, log_ratios: Mapping[str, NDArray[np.float64]]) -> list[Row]:
    """Build a row for each completion. `log_ratios`: [N] nats, by the name of the other model."""
    experience, scores = answers.experience, answers.scores
    groups, offsets = experience.group_of, experience.group_offsets
    rows = []
    for i, tokens in enumerate(experience.completions):
        prompt = experience.prompts[groups[i]]
        by_scorer = {} if scores is None else {k: number_or_none(v[i]) for k, v in scores.by_scorer.items()}
        rows.append(
            Row(
                model=name,
                prompt_set=answers.prompt_set,
                mode=answers.mode,
                prompt_id=prompt.id,
                prompt=prompt.text,
                index=int(i - offsets[groups[i]]),
                completion=answers.texts[i],
                tokens=tuple(tokens.tolist()),
                finish=Finish(int(experience.finish[i])).name,
                reward=None if scores is None else float(scores.rewards[i]),
                scores=by_scorer,
                log_ratios={other: float(ratios[i]) for other, ratios in log_ratios.items()},
            )
        )
    return rows
