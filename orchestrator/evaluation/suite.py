"""What an evaluation is told: which prompts, how they are answered, and what is asked about the answers.

A suite is written like a recipe, and what is wrong with it is said in the same way.
"""

from __future__ import annotations

import json
import os
import urllib.parse
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
    ModelRewardConfig,
    NonNegative,
    PathText,
    Positive,
    RefusalConfig,
    RefusalRewardConfig,
    RewardConfig,
    RewardWorkersConfig,
    RolloutConfig,
    Settings,
)

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class JudgeConfig(Settings):
    """A language model at an OpenAI-compatible endpoint, which says which of two completions is better."""

    url: Annotated[str, Field(pattern=r"^https?://[^/\s@]+(/[^\s@]*)?$")]  # of the API: http://localhost:8000/v1
    model: Annotated[str, Field(min_length=1)]  # as the endpoint names it
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "judge"  # as figures have it
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None  # variable with the key
    api_key_file: PathText | None = None  # file with the key; neither: none is sent
    instructions: str | None = None  # what makes an answer better; None: helpful, correct, to the point
    mode: Literal["greedy", "sampled"] = "greedy"  # which completions it compares
    both_orders: bool = True  # each pair is shown twice, the completions swapped
    structure: Literal["json_schema", "json_object"] = "json_schema"  # what the endpoint can be held to
    temperature: NonNegative = 0.0
    max_tokens: Count = 512  # of its answer
    timeout_s: Positive = 60.0  # of each request
    max_retries: Annotated[int, Field(ge=0)] = 4  # of a request, and of an answer that is no verdict
    concurrency: Count = 8
    max_failures: Annotated[float, Field(ge=0, le=1)] = 0.05  # share of pairs without a verdict that is put up with


class EvaluatedModelConfig(Settings):
    """How the models of an evaluation are loaded; which they are stands on the command line."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)


class ScoringConfig(Settings):
    """The ranks that compute log-probabilities, for the KL."""

    num_ranks: Count = 1
    zero_stage: Literal[0, 3] = 0  # 0: each rank holds the model and scores its share
    tokens_per_micro_batch: Count = 16384
    logprob_chunk_tokens: Count = 2048  # rows of logits that exist at a time


class SuiteConfig(Settings):
    """One evaluation. See configs/eval/ for suites."""

    prompts: Source | None = None  # the task
    harmful: Source | None = None  # to be refused
    benign: Source | None = None  # that look harmful and are not: to be answered
    split: str = "test"  # of a hub dataset or `datasets` folder
    max_prompts: Count = 512  # of each of these: the first ones
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  # of sampling and of the bootstrap
    greedy: bool = True  # one greedy completion of each prompt
    num_generations: Annotated[int, Field(ge=0)] = 4  # sampled completions of each prompt
    kl: bool = True  # to the model that the run began with, and to its reference, where these are known
    model: EvaluatedModelConfig = EvaluatedModelConfig()
    rollout: RolloutConfig = RolloutConfig()
    scoring: ScoringConfig = ScoringConfig()
    reward: tuple[RewardConfig, ...] = ()  # of prompts; each is also who decides a pair, for the win rate
    reward_workers: RewardWorkersConfig = RewardWorkersConfig()
    refusal: RefusalConfig = RefusalRewardConfig(type="refusal")  # 1 for a refusal, 0 for an answer
    judge: JudgeConfig | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of every interval
    num_draws: Annotated[int, Field(ge=100)] = 2000  # of the bootstrap
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def no_conflicts(self) -> Self:
        if found := [*_contents(self), *_judge(self)]:
            raise ConflictsError(found)
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A suite as it was given. Example: `load_suite("configs/eval/quickstart.yaml").config.num_generations == 4`."""

    source: Path
    config: SuiteConfig


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Reads a suite.

    Raises:
        BadInput: with everything that is wrong in it and in the overrides.
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
    return Suite(source=source, config=_made(document, overrides, problems))


def suite_of(values: Mapping[str, Any], overrides: Sequence[str]) -> SuiteConfig:
    """Of what stands on the command line alone. Raises BadInput."""
    document = Document(data=dict(values), places={(): Location(text="command line")})
    return _made(document, overrides, Problems())


def _made(document: Document, overrides: Sequence[str], problems: Problems) -> SuiteConfig:
    for override in parse_overrides(overrides, (), problems):
        apply(override, document, problems)
    find_secrets(document, problems)
    config = _validated(document, problems)
    problems.sort(key=reading_order)
    problems.raise_if_any()
    assert config is not None
    return config


def _validated(document: Document, problems: Problems) -> SuiteConfig | None:
    try:
        return SuiteConfig.model_validate_json(json.dumps(document.data))  # JSON: strict, and lists stand for tuples
    except ValidationError as error:
        explain(error, document, problems, SuiteConfig)
        return None


def _contents(suite: SuiteConfig) -> Iterator[Conflict]:
    if suite.prompts is None and suite.harmful is None and suite.benign is None:
        fix = "give at least one of prompts, harmful and benign"
        yield Conflict(keys=("prompts", "harmful", "benign"), why="there is nothing to evaluate on", fix=fix)
    if suite.prompts is not None and not suite.greedy and not suite.num_generations:
        why, fix = "no completion would be made", "set greedy to true, or num_generations to 1 or more"
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
    for i, reward in enumerate(suite.reward):
        if isinstance(reward, ModelRewardConfig) and reward.from_stage is not None:
            why, fix = "a suite has no stages", f"give reward.{i}.path instead, such as runs/NAME/model"
            yield Conflict(keys=(f"reward.{i}.from_stage",), why=why, fix=fix)


def _judge(suite: SuiteConfig) -> Iterator[Conflict]:
    judge = suite.judge
    if judge is None:
        return
    made = suite.greedy if judge.mode == "greedy" else suite.num_generations > 0
    if suite.prompts is None or not made:
        why = "there would be no completions for it to compare"
        yield Conflict(
            keys=("judge", "judge.mode"), why=why, fix=f"give prompts with {judge.mode} completions, or remove judge"
        )
    if judge.api_key_env is not None and judge.api_key_file is not None:
        fix = "keep one of them"
        yield Conflict(keys=("judge.api_key_env", "judge.api_key_file"), why="both are given", fix=fix)
    parts = urllib.parse.urlsplit(judge.url)
    keyed = judge.api_key_env is not None or judge.api_key_file is not None
    if keyed and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        why = "the key would cross the network for everyone on the way to read"
        yield Conflict(keys=("judge.url",), why=why, fix="use https, or an endpoint on this machine")


def judge_key(judge: JudgeConfig, problems: Problems) -> str | None:
    """The key to send; None: the endpoint wants none. It is in no config, so that nothing writes it down."""
    if judge.api_key_env is not None:
        key = os.environ.get(judge.api_key_env, "").strip()
        where = f"judge.api_key_env = {judge.api_key_env}"
        why, fix = "the variable is not set", f"export {judge.api_key_env}=…"
    elif judge.api_key_file is not None:
        where, fix = f"judge.api_key_file = {judge.api_key_file}", "put the key into the file, alone"
        try:
            key, why = Path(judge.api_key_file).expanduser().read_text("utf-8").strip(), "the file is empty"
        except (OSError, ValueError) as error:
            key, why = "", str(error)
    else:
        return None
    if not key or not key.isascii() or not key.isprintable():
        problems.add("no API key", where=where, why=why if not key else "it is not one line of text", fix=fix)
        return None
    return key
