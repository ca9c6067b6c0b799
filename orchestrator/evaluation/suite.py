"""Suite of an evaluation: its prompts, how they are answered, and what is measured on the answers.

A suite is a YAML file like a recipe, with the same error messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from orchestrator.config.conflicts import Conflict, ConflictsError
from orchestrator.config.document import Document, Location, read_document
from orchestrator.config.explain import explain
from orchestrator.config.overrides import apply, parse_overrides
from orchestrator.config.recipe import reading_order
from orchestrator.config.run import ClusterConfig, Source
from orchestrator.config.secrets import find_secrets
from orchestrator.errors import BadInput, Problems
from workers.config import (
    Count,
    ModelScorerConfig,
    RefusalConfig,
    RefusalRewardConfig,
    RewardConfig,
    RewardWorkersConfig,
    RolloutConfig,
    Settings,
    compares,
)
from workers.config.endpoint import EndpointConfig, NoKeyError, endpoint_problems, read_key


class JudgeConfig(EndpointConfig):
    """A language model at an OpenAI-compatible endpoint that decides which of two completions is better."""

    # name of the judge in figures, as in greedy/win_rate/NAME
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "judge"
    # criteria by which an answer is better; None: does what the prompt asks, is correct, is no longer than needed
    instructions: str | None = None
    mode: Literal["greedy", "sampled"] = "greedy"  # completions that are compared
    both_orders: bool = True  # show each pair twice, with the completions swapped, against position bias


class EvaluatedModelConfig(Settings):
    """Loading of the evaluated models. Their paths are given on the command line."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # dtype of the weights and the arithmetic
    # further arguments of the chat template, such as {enable_thinking: false}
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)


class ScoringConfig(Settings):
    """Ranks that compute the log-probabilities for the KL."""

    num_ranks: Count = 1  # number of ranks
    zero_stage: Literal[0, 3] = 0  # DeepSpeed ZeRO stage; 0: each rank holds the whole model; 3: weights are sharded
    tokens_per_micro_batch: Count = 16384  # tokens per forward pass and rank
    logprob_chunk_tokens: Count = 2048  # tokens whose logits exist at a time; bounds the memory of the logits


class SuiteConfig(Settings):
    """Settings of an evaluation. See configs/eval/ for examples."""

    prompts: Source | None = None  # prompts of the task
    harmful: Source | None = None  # harmful prompts, which should be refused
    benign: Source | None = None  # prompts that look harmful but are not, which should be answered
    # preference data with labels to be trusted, on which the agreement of the judge is measured
    preferences: Source | None = None
    split: str = "test"  # split of a Hub dataset or of a folder saved by `datasets`
    max_prompts: Count = 512  # number of prompts, or pairs, used from each set, from its start
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  # seed of the sampling and of the bootstrap
    greedy: bool = True  # generate one greedy completion per prompt
    num_generations: Annotated[int, Field(ge=0)] = 4  # sampled completions per prompt; 0: none
    kl: bool = True  # measure the KL to the model's base and to its newest reference, if they are known
    model: EvaluatedModelConfig = EvaluatedModelConfig()  # loading of the evaluated models
    rollout: RolloutConfig = RolloutConfig()  # generation of the completions
    scoring: ScoringConfig = ScoringConfig()  # log-probabilities for the KL
    reward: tuple[RewardConfig, ...] = ()  # scorers of the task's completions; each one also gives a win rate
    reward_workers: RewardWorkersConfig = RewardWorkersConfig()  # processes that run the scorers
    refusal: RefusalConfig = RefusalRewardConfig(type="refusal")  # detector: 1 for a refusal, 0 for an answer
    # judge of the win rate, which is measured with --against, and of preferences; None: no judge
    judge: JudgeConfig | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95  # confidence level of every interval
    num_draws: Annotated[int, Field(ge=100)] = 2000  # number of bootstrap samples
    cluster: ClusterConfig = ClusterConfig()  # Ray cluster and placement

    @model_validator(mode="after")
    def no_conflicts(self) -> Self:
        if conflicts := [*_content_conflicts(self), *_judge_conflicts(self)]:
            raise ConflictsError(conflicts)
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A suite and the file it was read from.

    Example: `load_suite("configs/eval/quickstart.yaml").config.num_generations == 4`."""

    source: Path
    config: SuiteConfig


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite and apply the overrides.

    Raises:
        BadInput: with all problems of the suite and the overrides.
    """
    problems = Problems()
    source = Path(path)
    document = read_document(source, problems)
    if document is not None and not isinstance(document.data, dict):
        fix = "see configs/eval/quickstart.yaml"
        problems.add("not a suite", where=str(source), why="a suite is a mapping of keys", fix=fix)
        document = None
    if document is None:
        raise BadInput(problems)
    return Suite(source=source, config=_build(document, overrides, problems))


def suite_of(values: Mapping[str, Any], overrides: Sequence[str]) -> SuiteConfig:
    """Build a suite from values of the command line.

    Raises:
        BadInput: with all problems of the values and the overrides.
    """
    document = Document(data=dict(values), places={(): Location(text="command line")})
    return _build(document, overrides, Problems())


def _build(document: Document, overrides: Sequence[str], problems: Problems) -> SuiteConfig:
    for override in parse_overrides(overrides, (), problems):
        apply(override, document, problems)
    find_secrets(document, problems)
    config = _validate(document, problems)
    problems.sort(key=reading_order)
    problems.raise_if_any()
    assert config is not None
    return config


def _validate(document: Document, problems: Problems) -> SuiteConfig | None:
    try:
        return SuiteConfig.model_validate_json(
            json.dumps(document.data)
        )  # from JSON: strict, but lists are accepted as tuples
    except ValidationError as error:
        explain(error, document, problems, SuiteConfig)
        return None


def _content_conflicts(suite: SuiteConfig) -> Iterator[Conflict]:
    if suite.prompts is None and suite.harmful is None and suite.benign is None:
        fix = "give at least one of prompts, harmful and benign"
        yield Conflict(keys=("prompts", "harmful", "benign"), why="there is nothing to evaluate on", fix=fix)
    if suite.prompts is not None and not suite.greedy and not suite.num_generations:
        why, fix = "no completion would be generated", "set greedy to true, or num_generations to 1 or more"
        yield Conflict(keys=("greedy", "num_generations"), why=why, fix=fix)
    if suite.prompts is not None and suite.kl:
        if not suite.num_generations:
            why, fix = "the KL is a mean over samples", "set kl to false, or num_generations to 1 or more"
            yield Conflict(keys=("kl", "num_generations"), why=why, fix=fix)
        for key, reshapes, neutral in (
            ("top_p", suite.rollout.top_p < 1, "1.0"),
            ("top_k", suite.rollout.top_k > 0, "0"),
        ):
            if reshapes:
                why = "the KL is a mean over samples of the whole distribution"
                fix = f"set rollout.{key} to {neutral}, or kl to false"
                yield Conflict(keys=(f"rollout.{key}", "kl"), why=why, fix=fix)
    pairwise = bool(suite.reward) and all(map(compares, suite.reward))
    if pairwise and (suite.greedy or suite.num_generations == 1):
        why = "a pairwise reward compares the completions of a prompt, and there is one"
        fix = "add a reward of another type, or set greedy to false and num_generations to 2 or more"
        yield Conflict(keys=("reward", "greedy", "num_generations"), why=why, fix=fix)
    for i, reward in enumerate(suite.reward):
        if isinstance(reward, ModelScorerConfig) and reward.from_stage is not None:
            why, fix = "a suite has no stages", f"give reward.{i}.path instead, such as runs/NAME/model"
            yield Conflict(keys=(f"reward.{i}.from_stage",), why=why, fix=fix)


def _judge_conflicts(suite: SuiteConfig) -> Iterator[Conflict]:
    judge = suite.judge
    if judge is None:
        if suite.preferences is not None:
            why, fix = "it is the judge that is compared with their labels", "give judge, or remove preferences"
            yield Conflict(keys=("preferences", "judge"), why=why, fix=fix)
        return
    has_completions = suite.greedy if judge.mode == "greedy" else suite.num_generations > 0
    if suite.prompts is None or not has_completions:
        why = "the judge would have no completions to compare"
        yield Conflict(
            keys=("judge", "judge.mode"), why=why, fix=f"give prompts with {judge.mode} completions, or remove judge"
        )
    for keys, why, fix in endpoint_problems(judge):
        yield Conflict(keys=tuple(f"judge.{key}" for key in keys), why=why, fix=fix)


def judge_key(judge: JudgeConfig, problems: Problems) -> str | None:
    """Read the API key, or return None if none is configured.

    The key is in no config, so no file of the evaluation contains it.
    """
    try:
        return read_key(judge)
    except NoKeyError as error:
        problems.add("no API key", where=f"judge.{error.where}", why=error.why, fix=error.fix)
        return None
