"""Assembly of a run's loop: build its parts from the config, the data and the gangs.

Differences between algorithms are read from the algorithm's config, never decided by its name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from orchestrator.cluster.base import Gang
from orchestrator.config import RunConfig
from orchestrator.config.rounds import RoundsConfig, of_round
from orchestrator.driver.large_data import read_key
from orchestrator.evaluation.held_out import Answers, BaseLogprobs, CombinedEvaluator, Evaluator, HeldOut
from orchestrator.evaluation.preferences import HeldOutPairs
from orchestrator.evaluation.refusals import Refusals
from orchestrator.evaluation.temperatures import AtTemperatures
from orchestrator.pipeline.exports import Uploads, write_model
from orchestrator.pipeline.mixing import MixedSource
from orchestrator.pipeline.publishing import AdapterPublisher, EnginePublisher, NoPublisher, Publisher
from orchestrator.pipeline.reference import (
    AdapterOffReference,
    Decision,
    NoReference,
    ReferenceGang,
    ReferencePolicy,
    Teacher,
)
from orchestrator.pipeline.roles import needs_base, shares_base
from orchestrator.pipeline.rounds import chunk_size, draws, in_order, sampling_of, weighted_order
from orchestrator.pipeline.sources import (
    DatasetSource,
    Draw,
    OnBegin,
    RolloutSource,
    RolloutStore,
    Source,
    completions_per_chunk,
    retry_seed,
)
from orchestrator.preflight.data_files import read_all, tokens_of
from orchestrator.preflight.source import Source as DataSource
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.manifest import State
from workers.config import FromDataset, GenerateConfig, Sampled
from workers.learner import Learner
from workers.reference import Reference
from workers.types import Example, Prompt
from workers.weights import segment_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Training and evaluation data of a run, read before anything is started."""

    sources: Mapping[str, DataSource]  # by their key under `data`
    max_steps: int

    @classmethod
    def read(cls, config: RunConfig) -> Self:
        """Read all data that the config names.

        Raises:
            BadInput: the data cannot be used.
        """
        tokens = tokens_of(config.model.path, config.model.chat_template_kwargs)
        sources, algorithm = read_all(config, tokens, read_key), config.algorithm
        if algorithm.max_steps is not None:
            return cls(sources=sources, max_steps=algorithm.max_steps)
        if isinstance(algorithm, GenerateConfig):
            return cls(sources=sources, max_steps=math.ceil(len(sources["prompts"].rows) / algorithm.prompts_per_step))
        assert isinstance(algorithm, FromDataset)
        rows = len(sources["dataset"].rows)
        return cls(sources=sources, max_steps=math.ceil(rows * algorithm.num_train_epochs / algorithm.batch_size))

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self.sources["prompts"].rows if "prompts" in self.sources else ()

    def sizes(self, key: str) -> Sequence[int]:
        """Return the number of rows of each source of a key."""
        return tuple(self.sources[key].files.values())

    @property
    def examples(self) -> Sequence[Example]:
        return self.sources["dataset"].rows if "dataset" in self.sources else ()


def in_rounds(config: RunConfig) -> bool:
    """Return True if each step is a round (iterative DPO)."""
    return config.algorithm.needs.rounds and config.data.prompts is not None


def step_word(config: RunConfig) -> str:
    """Return the word for a step in reports: `step` or `round`."""
    return "round" if in_rounds(config) else "step"


def prompts_per_step(config: RunConfig, material: Material, index: int) -> int:
    """Return how many prompts a step samples, before dynamic sampling adds further ones."""
    algorithm, count = of_round(config, index).algorithm, len(material.prompts)
    assert isinstance(algorithm, Sampled)
    if not algorithm.needs.trains:  # the last step has what is left
        count -= index * algorithm.prompts_per_step
    return min(algorithm.prompts_per_step, count)


def build_source(
    config: RunConfig,
    directory: RunDirectory,
    material: Material,
    gangs: Mapping[str, Gang[Any]],
    on_begin: OnBegin,
    store: RolloutStore | None,
    rollbacks: int = 0,
) -> Source:
    """Build the source of experience: prompts to sample from, or a dataset; or the first with pairs mixed in.

    Args:
        store: store of rollouts; None: they are not stored.
        rollbacks: how often the run was rolled back. After each, it goes on with other prompts and samples.
    """
    algorithm = config.algorithm
    if config.data.prompts is None:
        assert isinstance(algorithm, FromDataset)
        return DatasetSource(
            gangs["dataset"],
            material.examples,
            batch_size=algorithm.batch_size,
            seed=config.seed,
            max_steps=material.max_steps,
            on_begin=on_begin,
            order=weighted_order(config, "dataset", material.sizes("dataset"), seed=config.seed),
        )
    assert isinstance(algorithm, Sampled)
    source = RolloutSource(
        gangs["rollout"],
        gangs.get("reward"),
        material.prompts,
        sampling_of(config, rollbacks=rollbacks),
        prompts_per_step=algorithm.prompts_per_step,
        prompts_per_chunk=chunk_size(config),
        max_staleness=config.max_staleness,
        max_resamples=algorithm.resamples,
        max_steps=material.max_steps,
        on_begin=on_begin,
        store=store,
        rounds=_draws(config, material, rollbacks),
        is_frozen=not algorithm.needs.trains,
    )
    if not config.rounds.mix.is_on:
        return source
    seed = retry_seed(config.seed, rollbacks)
    return MixedSource(source, gangs["dataset"], config, material.examples, directory=directory.round, seed=seed)


def _draws(config: RunConfig, material: Material, rollbacks: int) -> Callable[[int], Draw] | None:
    """Return the function that returns what each step draws; None: all steps draw alike, at random."""
    if not config.algorithm.needs.trains:
        return in_order(config, len(material.prompts))
    differs = config.rounds != RoundsConfig() or config.data.shares("prompts") is not None
    return draws(config, material.sizes("prompts"), rollbacks=rollbacks) if differs else None


def build_reference(
    config: RunConfig,
    directory: RunDirectory,
    gangs: Mapping[str, Gang[Any]],
    state: State,
    uploads: Uploads | None = None,
) -> ReferencePolicy:
    """Build the reference policy, or the teacher of distillation, in the version that `state` holds.

    `uploads`: storage of the run; None: it has none.
    """
    algorithm, temperature = config.algorithm, config.algorithm.loss_temperature(config.rollout.temperature)
    if algorithm.needs.teacher:
        return Teacher(gangs["teacher"], temperature=temperature, states=algorithm.needs_teacher_states)
    if not algorithm.needs_reference:
        return NoReference()
    if shares_base(config):
        return AdapterOffReference(gangs["policy"], temperature=temperature, cache=config.reference.cache)
    return ReferenceGang(
        gangs["reference"],
        partial(write_model, gangs["policy"], uploads=uploads),
        config.reference,
        temperature=temperature,
        drift_temperature=(lambda step: of_round(config, step).rollout.temperature) if in_rounds(config) else None,
        directory=directory.reference,
        version=state.reference_version,
        decided=None if state.decision is None else Decision.of(state.decision),
    )


def build_publisher(
    config: RunConfig, directory: RunDirectory, gangs: Mapping[str, Gang[Any]], *, cuda: bool
) -> Publisher:
    """Build the publisher that sends new weights to the engines, if there are engines that sample from the policy."""
    if "rollout" not in gangs or config.algorithm.teacher_samples or not config.algorithm.needs.trains:
        return NoPublisher()
    if config.model.lora is not None:
        return AdapterPublisher(gangs["policy"], gangs["rollout"], directory=directory.adapters)
    return EnginePublisher(
        gangs["policy"],
        gangs["rollout"],
        cuda=cuda,
        segment=segment_path(config.name),
        tensor_parallel_size=config.rollout.tensor_parallel_size,
    )


def build_evaluator(config: RunConfig, material: Material, gangs: Mapping[str, Gang[Any]]) -> Evaluator | None:
    """Build the evaluator of all evaluation data; None if the recipe names none, or nothing is trained."""
    if not config.algorithm.needs.trains:
        return None
    evaluators: list[Evaluator] = []
    held_out = {key: first_rows(source, config.evaluation.max_prompts) for key, source in material.sources.items()}
    if "eval_prompts" in held_out:
        answers, prompts = answers_by("reward", config, gangs), held_out["eval_prompts"]
        num_samples, base = config.evaluation.num_samples, base_logprobs(config, gangs)
        evaluators.append(HeldOut(answers, prompts, num_samples=num_samples, base=base))
        if config.evaluation.temperatures:
            evaluators.append(AtTemperatures(answers, prompts, config.evaluation))
    if kinds := {kind: held_out[f"eval_{kind}"] for kind in ("harmful", "benign") if f"eval_{kind}" in held_out}:
        evaluators.append(Refusals(answers_by("refusal", config, gangs), kinds))
    if "eval_dataset" in held_out:
        pairs = held_out["eval_dataset"]
        evaluators.append(
            HeldOutPairs(
                gangs["dataset"],
                gangs["policy"],
                gangs.get("reference"),
                pairs,
                adapters_off=config.algorithm.needs_reference and shares_base(config),
            )
        )
    return CombinedEvaluator(evaluators) if evaluators else None


def first_rows(source: DataSource, count: int) -> Sequence[Any]:
    """Return the first rows of each file of a source, `count` at most."""
    ends = itertools.accumulate(source.files.values())
    return [
        row
        for end, size in zip(ends, source.files.values(), strict=True)
        for row in source.rows[end - size : end - size + min(size, count)]
    ]


def answers_by(scorers: str, config: RunConfig, gangs: Mapping[str, Gang[Any]]) -> Answers:
    """Return the source of answers that the gang of the role `scorers` scores."""
    return Answers(
        rollout=gangs["rollout"],
        reward=gangs[scorers],
        max_completion_length=config.rollout.max_completion_length,
        seed=config.seed,
        completions_per_chunk=completions_per_chunk(config.rollout),
    )


def base_logprobs(config: RunConfig, gangs: Mapping[str, Gang[Any]]) -> BaseLogprobs | None:
    """Return the function that scores completions with the initial model; None if no evaluation needs it."""
    if not config.evaluation.num_samples:
        return None
    if shares_base(config):
        return lambda experience: gangs["policy"].all(Learner.base_logprobs, experience, 1.0, False)
    gang = gangs["base" if needs_base(config) else "reference"]
    return lambda experience: gang.all(Reference.logprobs, experience, 1.0, 0)
