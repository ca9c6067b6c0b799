"""Which parts a run's loop is made of, from its config, its data and its gangs; an algorithm is looked up, never asked
for by name, but for what only distillation has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from orchestrator.cluster.base import Gang
from orchestrator.config import RunConfig
from orchestrator.evaluation.held_out import Base, Evaluator, HeldOut, Several
from orchestrator.evaluation.preferences import HeldOutPairs
from orchestrator.evaluation.refusals import Refusals
from orchestrator.pipeline.publishing import AdapterPublisher, EnginePublisher, NoPublisher, Publisher
from orchestrator.pipeline.reference import (
    AdapterOffReference,
    Decision,
    NoReference,
    ReferenceGang,
    ReferencePolicy,
    Teacher,
)
from orchestrator.pipeline.roles import asks_states, needs_base, shares_base, teacher_samples
from orchestrator.pipeline.sources import Begun, DatasetSource, RolloutSource, RolloutStore, Source
from orchestrator.preflight.data_files import Source as DataSource
from orchestrator.preflight.data_files import read_all, tokens_of
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.manifest import State
from workers.config import DistillConfig, DpoConfig, FromDataset, Sampled
from workers.learner import Learner
from workers.needs import NEEDS
from workers.reference import Reference
from workers.types import Example, Prompt, Sampling
from workers.weights import segment_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What a run learns from and is measured on, read before anything is started."""

    sources: Mapping[str, DataSource]  # by their key below `data`
    max_steps: int

    @classmethod
    def read(cls, config: RunConfig) -> Self:
        """Raises BadInput for data that cannot be learned from."""
        tokens = tokens_of(config.model.path, config.model.chat_template_kwargs)
        sources, algorithm = read_all(config, tokens), config.algorithm
        if algorithm.max_steps is not None:
            return cls(sources=sources, max_steps=algorithm.max_steps)
        assert isinstance(algorithm, FromDataset)
        rows = len(sources["dataset"].rows)
        return cls(sources=sources, max_steps=math.ceil(rows * algorithm.num_train_epochs / algorithm.batch_size))

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self.sources["prompts"].rows if "prompts" in self.sources else ()

    @property
    def examples(self) -> Sequence[Example]:
        return self.sources["dataset"].rows if "dataset" in self.sources else ()


def in_rounds(config: RunConfig) -> bool:
    """Iterative DPO: a step is a round."""
    return isinstance(config.algorithm, DpoConfig) and config.data.prompts is not None


def build_source(
    config: RunConfig, material: Material, gangs: Mapping[str, Gang[Any]], begun: Begun, store: RolloutStore | None
) -> Source:
    """Prompts to sample from, or a dataset. `store`: keeps what is sampled; None: nothing is."""
    algorithm = config.algorithm
    if config.data.prompts is None:
        assert isinstance(algorithm, FromDataset)
        return DatasetSource(
            gangs["dataset"],
            material.examples,
            batch_size=algorithm.batch_size,
            seed=config.seed,
            max_steps=material.max_steps,
            begun=begun,
        )
    assert isinstance(algorithm, Sampled)
    return RolloutSource(
        gangs["rollout"],
        gangs.get("reward"),
        material.prompts,
        Sampling(
            num_generations=algorithm.num_generations,
            max_completion_length=config.rollout.max_completion_length,
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            top_k=config.rollout.top_k,
            ignore_eos=config.rollout.ignore_eos,
            seed=config.seed,
        ),
        prompts_per_step=algorithm.prompts_per_step,
        max_staleness=config.max_staleness,
        max_resamples=getattr(algorithm, "max_resamples", 0) if getattr(algorithm, "dynamic_sampling", False) else 0,
        max_steps=material.max_steps,
        begun=begun,
        store=store,
    )


def build_reference(
    config: RunConfig, directory: RunDirectory, gangs: Mapping[str, Gang[Any]], state: State
) -> ReferencePolicy:
    """What the policy is held to, as `state` has left it."""
    if isinstance(config.algorithm, DistillConfig):
        temperature, states = config.algorithm.temperature, asks_states(config)
        return Teacher(gangs["teacher"], temperature=temperature, states=states)
    if not config.algorithm.needs_reference:
        return NoReference()
    temperature = config.rollout.temperature if NEEDS[config.algorithm.type].on_policy else 1.0
    if shares_base(config):
        return AdapterOffReference(gangs["policy"], temperature=temperature, cache=config.reference.cache)
    return ReferenceGang(
        gangs["reference"],
        gangs["policy"],
        config.reference,
        temperature=temperature,
        sampling_temperature=config.rollout.temperature,
        directory=directory.reference,
        version=state.reference_version,
        decided=None if state.decision is None else Decision.of(state.decision),
    )


def build_publisher(
    config: RunConfig, directory: RunDirectory, gangs: Mapping[str, Gang[Any]], *, cuda: bool
) -> Publisher:
    """The way of new weights to the engines, where there are any that take them."""
    if "rollout" not in gangs or teacher_samples(config):
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
    """What is measured on held-out data; None: the recipe names none."""
    found: list[Evaluator] = []
    held_out = {key: source.rows[: config.evaluation.max_prompts] for key, source in material.sources.items()}
    if "eval_prompts" in held_out:
        found.append(
            HeldOut(
                gangs["rollout"],
                gangs["reward"],
                held_out["eval_prompts"],
                max_completion_length=config.rollout.max_completion_length,
                seed=config.seed,
                num_samples=config.evaluation.num_samples,
                base=base_of(config, gangs),
            )
        )
    if looked_at := {name: held_out[f"eval_{name}"] for name in ("harmful", "benign") if f"eval_{name}" in held_out}:
        length = config.rollout.max_completion_length
        refusals = Refusals(
            gangs["rollout"], gangs["refusal"], looked_at, max_completion_length=length, seed=config.seed
        )
        found.append(refusals)
    if "eval_dataset" in held_out:
        pairs = held_out["eval_dataset"]
        found.append(HeldOutPairs(gangs["dataset"], gangs["policy"], gangs.get("reference"), pairs))
    return Several(found) if found else None


def base_of(config: RunConfig, gangs: Mapping[str, Gang[Any]]) -> Base | None:
    """Who knows the log-probabilities of the model that the run began with; None: nobody is asked for them."""
    if not config.evaluation.num_samples:
        return None
    if shares_base(config):
        return lambda experience: gangs["policy"].all(Learner.base_logprobs, experience, 1.0, False)
    gang = gangs["base" if needs_base(config) else "reference"]
    return lambda experience: gang.all(Reference.logprobs, experience, 1.0, 0)
