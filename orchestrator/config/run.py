"""Everything one run can be told: frozen, strict, unknown keys forbidden, vetted defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.alarms import AlarmsConfig
from orchestrator.config.conflicts import ConflictsError, conflicts
from workers.config import (
    AlgorithmConfig,
    Count,
    LearnerConfig,
    ModelConfig,
    ModelOrigin,
    PathText,
    Positive,
    ReferenceConfig,
    RefusalConfig,
    RefusalRewardConfig,
    RewardConfig,
    RewardWorkersConfig,
    RolloutConfig,
    Settings,
    TeacherConfig,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Source = PathText
"""A local .jsonl or .parquet file, a `datasets` folder, or the name of a hub dataset."""


class DataConfig(Settings):
    """Where prompts or examples come from: exactly one of `prompts` and `dataset`."""

    prompts: Source | None = None  # to sample completions for
    dataset: Source | None = None  # with completions: preferences or demonstrations
    eval_prompts: Source | None = None  # held out; never trained on
    eval_harmful: Source | None = None  # held-out prompts that are to be refused
    eval_benign: Source | None = None  # and prompts that only look like it, and are to be answered
    eval_dataset: Source | None = None  # held-out preferences, for a reward model or DPO on a dataset
    split: str = "train"  # of a hub dataset or `datasets` folder
    eval_split: str = "test"
    max_length: Count = 1024  # tokens of prompt and completion of a dataset row; what is longer loses its end, counted
    equal_pairs: Literal["fail", "drop"] = "fail"  # rows whose chosen and rejected are equal; dropped ones are counted
    special_tokens: Literal["keep", "drop", "fail"] = "keep"  # rows whose text holds the tokenizer's own; counted

    @property
    def answered(self) -> tuple[str, ...]:
        """The keys of prompts that completions are sampled for, to learn from or to look at."""
        keys = ("prompts", "eval_prompts", "eval_harmful", "eval_benign")
        return tuple(key for key in keys if getattr(self, key) is not None)


class EvaluationConfig(Settings):
    """Greedy reward on `data.eval_prompts`, refusals of `data.eval_harmful` and `data.eval_benign`, or accuracy on the
    pairs of `data.eval_dataset`: before the first step, after the last, and in between."""

    every: Count | None = None  # steps; None: only before the first and after the last
    max_prompts: Count = 256  # of each of these, or rows of data.eval_dataset
    refusal: RefusalConfig = RefusalRewardConfig(type="refusal")  # 1 for a refusal, 0 for an answer
    num_samples: Annotated[int, Field(ge=0, le=64)] = 0
    """Answers to each held-out prompt that are sampled besides, at temperature 1: their rewards, and their KL to the
    model that the run began with."""


CHECKPOINT_S = 600.0
CHECKPOINT_SHARE = 0.05
"""By default a checkpoint is due so many seconds after the last one, or later: when a next one as long as the last
would still take at most this share of the time."""


class CheckpointConfig(Settings):
    """How often the state is saved. Never off: a run that cannot be resumed is a bad surprise. Always at the end, at a
    stop and before an alarm ends the run."""

    every: Count | None = None  # steps; None: by the clock, every 10 minutes or as rarely as costs 5 % of the time
    every_updates: Count | None = None  # within a round of iterative DPO, whose rounds are long; None: between steps
    keep: Count = 2  # newest ones


class ClusterConfig(Settings):
    """Where the actors live."""

    address: Annotated[str, Field(pattern=r"^(auto|ray://[^/\s@]+|[^/\s:@]+:\d{1,5})$")] | None = (
        None  # None: this machine
    )
    allow_open: bool = False  # true: also a cluster on which anyone who reaches it can run code
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: Positive = 1.0
    object_store_memory_mib: Annotated[int, Field(ge=75)] | None = None  # None: Ray's choice
    start_timeout_s: Positive = 300.0
    call_timeout_s: Positive = 1800.0  # deadline of every remote call
    heartbeat_timeout_s: Annotated[float, Field(ge=2)] = 180.0  # without a sign of life a process counts as dead
    restarts_per_role: Annotated[int, Field(ge=0)] = 3  # in place, per attempt; 0: the first death ends the attempt


class WandbConfig(Settings):
    """What Weights & Biases is told; a field that is None is left to its WANDB_* variable."""

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline", "disabled"] | None = None  # None: online when there is a key, else offline


class RunConfig(Settings):
    """One run. See `configs/` for recipes, and `rlhf run RECIPE --dry-run` for all values of one."""

    name: Name
    output_dir: PathText = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: ModelConfig
    data: DataConfig
    algorithm: AlgorithmConfig
    reward: tuple[RewardConfig, ...] = ()
    rollout: RolloutConfig = RolloutConfig()
    reference: ReferenceConfig = ReferenceConfig()
    policy: LearnerConfig = LearnerConfig()
    critic: LearnerConfig | None = None  # None: set up like the policy, where the algorithm has a critic
    critic_model: ModelOrigin | None = None  # what the critic starts from; None: the policy's model
    teacher: TeacherConfig | None = None  # for distill alone: whose distributions are learned
    reward_workers: RewardWorkersConfig = RewardWorkersConfig()
    max_device_seconds: Positive | None = None  # of work, over all roles and attempts; None: until the last step
    max_staleness: Annotated[int, Field(ge=0, le=8)] = 0  # versions generation may run ahead; 0: synchronous
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    cluster: ClusterConfig = ClusterConfig()
    report_to: tuple[Literal["wandb"], ...] = ()
    wandb: WandbConfig = WandbConfig()
    samples_per_step: Annotated[int, Field(ge=0)] = 8  # completions kept for people to read

    @model_validator(mode="after")
    def no_conflicts(self) -> Self:
        if found := conflicts(self):
            raise ConflictsError(found)
        return self

    @property
    def directory(self) -> Path:
        return Path(self.output_dir) / self.name

    @property
    def model_directory(self) -> Path:
        """Where the trained model goes, and where a later stage's `model.from_stage` finds it."""
        return self.directory / "model"
