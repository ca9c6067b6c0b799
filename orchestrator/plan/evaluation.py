"""Seconds of one evaluation during a run: held-out prompts, greedy and sampled, safety prompts, held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.config import RunConfig
from orchestrator.pipeline.roles import has_reference, needs_base, shares_base
from orchestrator.plan.chunks import chunk_sizes, prompts_per_chunk, streamed_s
from orchestrator.plan.constants import Constants
from orchestrator.plan.gangs import Shapes, engine_of, reference_shape
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.scorers import cpu_s
from orchestrator.plan.step import reward_s
from orchestrator.plan.time import generation_s, scoring_s
from orchestrator.plan.work import Lengths, row_tokens, rows_of, sampled_lengths, work_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One chunk of an evaluation: `prompts` with `group` completions each. `key` is their source in `data`."""

    key: str
    prompts: int
    group: int
    sampled: bool = False  # else greedy
    generate_s: float = 0.0
    score_s: dict[str, float] = field(default_factory=dict)  # by role


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationTime:
    """Duration of one evaluation in seconds. An engine samples a chunk while the one before is scored."""

    parts: tuple[Part, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that score."""
        return tuple(dict.fromkeys(role for part in self.parts for role in part.score_s))

    @property
    def seconds(self) -> float:
        produced = [part.generate_s for part in self.parts]
        ends = [streamed_s(produced, [part.score_s.get(role, 0.0) for part in self.parts]) for role in self.roles]
        return max([sum(produced), *ends])


def num_evaluations(config: RunConfig, steps: int) -> int:
    """Return the evaluations of a run of `steps`: before the first, after the last, and every `evaluation.every`."""
    every = config.evaluation.every
    return 1 + (math.ceil(steps / every) if every is not None else 1)


def evaluation_time(
    config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, constants: Constants
) -> EvaluationTime | None:
    """Return the time of one evaluation; None if the recipe has nothing to evaluate on, or trains nothing."""
    if not config.algorithm.needs.trains:
        return None
    load = _Load(config=config, shapes=shapes, gpu=gpu, lengths=lengths, constants=constants)
    parts = (*_answered(load), *_pairs(load))
    return EvaluationTime(parts=parts) if parts else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Load:
    config: RunConfig
    shapes: Shapes
    gpu: Gpu
    lengths: Lengths
    constants: Constants

    def rows(self, key: str) -> int:
        """Return the rows of an evaluation set, 0 without one; the size of a set that is not here is its maximum."""
        source, most = getattr(self.config.data, key), self.config.evaluation.max_prompts
        return 0 if source is None else min(rows_of(source) or most, most)

    def forward_s(self, role: str, gpus: int, tokens: float, context: float) -> float:
        shape = reference_shape(self.shapes) if role == "reference" else self.shapes["policy"]
        return scoring_s(shape, self.gpu, tokens=tokens, context=context, gpus=gpus, constants=self.constants)


def _answered(load: _Load) -> Iterator[Part]:
    """Yield the chunks of all prompts that the engines answer."""
    num_samples = load.config.evaluation.num_samples
    sets = [("eval_prompts", 1, False), ("eval_prompts", num_samples, True)]
    sets += [("eval_prompts", num_samples, False) for _ in load.config.evaluation.temperatures]
    sets += [("eval_harmful", 1, False), ("eval_benign", 1, False)]
    for key, group, sampled in sets:
        if not group or not load.rows(key):
            continue
        for size in chunk_sizes(load.rows(key), prompts_per_chunk(load.config.rollout, group)):
            yield _part(load, Part(key=key, prompts=size, group=group, sampled=sampled))


def _part(load: _Load, part: Part) -> Part:
    config, constants = load.config, load.constants
    prompt, response = sampled_lengths(config, load.lengths)
    generate_s = generation_s(
        engine_of(config, load.shapes, load.gpu),
        sequences=math.ceil(part.prompts / config.rollout.num_engines) * part.group,
        prompt=prompt,
        response=response,
        longest=config.rollout.max_completion_length,
        group=part.group,
        constants=constants,
    )
    workers, cpus = config.reward_workers.num_workers, config.cluster.cpus_per_worker
    prompts, group = part.prompts, part.group
    score_s = {}
    if part.key != "eval_prompts":
        refusal = (config.evaluation.refusal,)
        score_s["refusal"] = cpu_s(refusal, prompts=prompts, group=group, workers=workers, cpus=cpus)
    elif config.reward:
        context = prompt + response
        score_s["reward"] = reward_s(
            config, load.shapes, load.gpu, prompts=prompts, group=group, context=context, constants=constants
        )
    if part.sampled:
        role = "policy" if shares_base(config) else "base" if needs_base(config) else "reference"
        settings = config.policy if role == "policy" else config.reference
        tokens = prompts * row_tokens(group, prompt, response, settings.tokens_per_micro_batch)
        score_s[role] = load.forward_s(role, settings.num_ranks, tokens, prompt + response)
    return Part(
        key=part.key, prompts=prompts, group=group, sampled=part.sampled, generate_s=generate_s, score_s=score_s
    )


def _pairs(load: _Load) -> Iterator[Part]:
    """Yield the held-out pairs, which the policy scores, and the reference where there is one."""
    config, pairs = load.config, load.rows("eval_dataset")
    if not pairs:
        return
    work = work_of(config, load.lengths)
    tokens = pairs * (work.prompt + 2 * work.response)
    score_s = {"policy": load.forward_s("policy", config.policy.num_ranks, tokens, work.context)}
    if has_reference(config):
        score_s["reference"] = load.forward_s("reference", config.reference.num_ranks, tokens, work.context)
    yield Part(key="eval_dataset", prompts=pairs, group=2, score_s=score_s)
