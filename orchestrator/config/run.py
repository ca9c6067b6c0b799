"""Settings of one run: frozen, strict, unknown keys forbidden, vetted defaults.

The comment on a field, beside or above it, is its text in the configuration reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.alarms import AlarmsConfig
from orchestrator.config.conflicts import ConflictsError, find_conflicts
from orchestrator.config.mixture import SourceConfig, Sources, shares_of, sources_of
from orchestrator.config.rounds import RoundsConfig
from workers.config import (
    AlgorithmConfig,
    Combine,
    Count,
    GenerateConfig,
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
"""Local .jsonl or .parquet file, `datasets` folder, or name of a Hub dataset."""


class DataConfig(Settings):
    """Sources of prompts and examples: exactly one of `prompts` and `dataset` is given."""

    # prompts to sample completions for, or `{from_stage: NAME}` of an earlier stage of type generate; several sources:
    # all their prompts, by weight where they have weights, or those of one file per round (rounds.prompts)
    prompts: Source | SourceConfig | Sources | None = None
    # rows with completions: preferences, labelled completions or demonstrations; several sources: all their rows, by
    # weight where they have weights
    dataset: Source | Sources | None = None
    from_stage: Name | None = None  # name of the earlier stage of type generate whose data set is `dataset`
    eval_prompts: Source | None = None  # held-out prompts to evaluate on; never trained on
    eval_harmful: Source | None = None  # held-out prompts that the model should refuse
    eval_benign: Source | None = None  # held-out prompts that look harmful but should be answered
    # held-out preferences, to evaluate a reward model or DPO on a dataset; of several sources each is evaluated
    eval_dataset: Source | Sources | None = None
    split: str = "train"  # split to train on, of a Hub dataset or `datasets` folder
    eval_split: str = "test"  # split to evaluate on, of a Hub dataset or `datasets` folder
    # maximum length in tokens of prompt and completion of a dataset row; a longer completion is truncated at its end, a
    # row whose prompt alone is longer is dropped; both are counted
    max_length: Count = 1024
    # handling of rows whose chosen and rejected are equal; fail: refuse the dataset; drop: drop and count them
    equal_pairs: Literal["fail", "drop"] = "fail"
    # handling of rows whose text contains special tokens of the tokenizer; keep: train on them and count them; drop:
    # drop and count them; fail: refuse the dataset
    special_tokens: Literal["keep", "drop", "fail"] = "keep"

    def sources(self, key: str) -> tuple[SourceConfig, ...]:
        """Return the sources of a key; empty: none is given."""
        return sources_of(getattr(self, key))

    def paths(self, key: str) -> tuple[Source, ...]:
        """Return the paths of the sources of a key."""
        return tuple(source.path for source in self.sources(key))

    def shares(self, key: str) -> tuple[float, ...] | None:
        """Return the share of each source of a key in the rows of the run; None: they have no weights."""
        return shares_of(self.sources(key))

    @property
    def prompt_sources(self) -> tuple[Source, ...]:
        """Files of `prompts`; empty: none is given."""
        return self.paths("prompts")

    @property
    def answered(self) -> tuple[str, ...]:
        """Keys of the prompts that completions are sampled for, to train on or to evaluate."""
        keys = ("prompts", "eval_prompts", "eval_harmful", "eval_benign")
        return tuple(key for key in keys if getattr(self, key) is not None)


class EvaluationConfig(Settings):
    """Evaluation before the first step, after the last and in between: reward of greedy completions of
    `data.eval_prompts`, refusals of `data.eval_harmful` and `data.eval_benign`, or accuracy on the pairs of
    `data.eval_dataset`."""

    every: Count | None = None  # steps between two evaluations; None: only before the first and after the last step
    max_prompts: Count = 256  # number of prompts taken from each evaluation set, or of rows of data.eval_dataset
    # classifier of refusals: 1 for a refusal, 0 for an answer
    refusal: RefusalConfig = RefusalRewardConfig(type="refusal")
    # number of completions per held-out prompt sampled at temperature 1, beside the greedy one; their rewards and their
    # KL to the model that the run started from are reported; 0: none
    num_samples: Annotated[int, Field(ge=0, le=64)] = 0
    # further temperatures, at each of which num_samples completions per held-out prompt are sampled and scored
    temperatures: tuple[Annotated[float, Field(gt=0, le=2)], ...] = ()


CHECKPOINT_S = 600.0
CHECKPOINT_SHARE = 0.05
"""Default checkpoint interval: CHECKPOINT_S seconds, or longer, so that saving takes at most this share of the time."""


class CheckpointConfig(Settings):
    """Checkpoint interval and retention. Checkpoints cannot be switched off: one is always saved at the end, at a stop
    and before an alarm ends the run."""

    # steps between two checkpoints; None: by time, every 10 minutes, less often where saving takes over 5 % of the time
    every: Count | None = None
    # optimiser updates between two checkpoints within a round of iterative DPO; None: only between rounds
    every_updates: Count | None = None
    keep: Count = 2  # number of newest checkpoints kept on disk


class ExportConfig(Settings):
    """Round of iterative DPO whose model is written at the end of the run."""

    # best: the round with the highest `by`, of equal ones the earliest; last: the last round; None: best where every
    # round is evaluated on held-out prompts (data.eval_prompts, evaluation.every 1), else last
    round: Literal["best", "last"] | None = None
    # held-out figure of the best round; None: eval/sampled_reward where evaluation.num_samples is set (the mean of
    # several answers has less noise), else eval/reward
    by: Literal["eval/reward", "eval/sampled_reward"] | None = None


class ClusterConfig(Settings):
    """Ray cluster that the actors run on, and time limits of its processes."""

    # address of a running cluster: auto, HOST:PORT or ray://HOST:PORT; None: RAY_ADDRESS, or else a Ray of its own on
    # this machine
    address: Annotated[str, Field(pattern=r"^(auto|ray://[^/\s@]+|[^/\s:@]+:\d{1,5})$")] | None = None
    # permission to use a cluster without token authentication, on which anyone who can reach it can run code
    allow_open: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"  # device of the models; auto: cuda where the cluster has GPUs
    cpus_per_worker: Positive = 1.0  # number of CPU cores reserved for each worker
    # size of Ray's object store in MiB, where the run starts its own Ray; None: 256
    object_store_memory_mib: Annotated[int, Field(ge=75)] | None = None
    # seconds to wait until the cluster has room for all workers of the run; None: as long as it takes
    wait_for_room_s: Annotated[float, Field(ge=0)] | None = None
    # waiting for machines that join later, where the cluster grows on demand; false: a run that does not fit the
    # machines that are there is refused at once
    grows: bool = False
    start_timeout_s: Positive = 300.0  # seconds that starting a worker, or placing it again elsewhere, may take
    # seconds within which a worker must make progress: complete its call, which is one chunk of a phase or one update
    progress_timeout_s: Positive = 1800.0
    # seconds without a heartbeat after which a process counts as dead
    heartbeat_timeout_s: Annotated[float, Field(ge=2)] = 180.0
    # number of restarts in place per role and attempt (learners are never restarted in place); 0: the first failure
    # ends the attempt
    restarts_per_role: Annotated[int, Field(ge=0)] = 3


class WandbConfig(Settings):
    """Settings of Weights & Biases. A field that is None is left to its WANDB_* variable."""

    project: str | None = None  # project in Weights & Biases; None: WANDB_PROJECT, or else rlhf
    entity: str | None = None  # team or user in Weights & Biases; None: WANDB_ENTITY
    group: str | None = None  # group of runs in Weights & Biases; None: WANDB_RUN_GROUP
    tags: tuple[str, ...] = ()  # tags of the run in Weights & Biases; empty: WANDB_TAGS
    # logging of each step's samples to Weights & Biases, as a table of prompts, completions and rewards
    log_completions: bool = True
    # upload mode; None: WANDB_MODE, or else online where there is an API key, and offline where there is none
    mode: Literal["online", "offline", "disabled"] | None = None


class RunConfig(Settings):
    """Settings of one run. `configs/` has recipes, and `rlhf run RECIPE --dry-run` prints all values of one."""

    name: Name  # name of the run and of its directory in output_dir; a recipe without one gets ALGORITHM--MODEL--ID
    output_dir: PathText = "runs"  # directory that the run's directory is created in
    # object storage that holds the run beside output_dir, which then need not be shared: s3://BUCKET/PREFIX, gs://…;
    # None: output_dir alone, on storage that every machine sees
    storage: Annotated[str, Field(pattern=r"^(s3|gs|az|file)://[^\s@?#]+$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  # seed of data order, sampling and new weights
    model: ModelConfig  # model that the policy is initialised from
    data: DataConfig  # prompts or dataset to train on, and evaluation sets
    algorithm: AlgorithmConfig  # method and its hyper-parameters
    reward: tuple[RewardConfig, ...] = ()  # scorers of completions
    # reward of a completion from its weighted scores; min: the lowest, worst-case optimisation of an ensemble (arXiv
    # 2310.02743)
    reward_combine: Combine = "sum"
    # scaling of each scorer's scores before they are weighted, in training alone; group: mean 0 and standard deviation
    # 1 within each group (GDPO, arXiv 2601.05242); None: as they are
    reward_normalize: Literal["group"] | None = None
    rollout: RolloutConfig = RolloutConfig()  # vLLM engines and sampling parameters
    rounds: RoundsConfig = RoundsConfig()  # settings of single rounds of iterative DPO
    # workers of the reference policy, its model, and when it is refreshed
    reference: ReferenceConfig = ReferenceConfig()
    policy: LearnerConfig = LearnerConfig()  # workers that train the policy
    # workers that train the critic (PPO); None: the same settings as for the policy
    critic: LearnerConfig | None = None
    critic_model: ModelOrigin | None = None  # model that the critic is initialised from; None: the policy's
    teacher: TeacherConfig | None = None  # teacher model of distill, and its workers
    reward_workers: RewardWorkersConfig = RewardWorkersConfig()  # processes that score completions
    # budget of work in device-seconds, over all roles and attempts; None: no limit
    max_device_seconds: Positive | None = None
    # number of versions that generation may run ahead of training; 0: synchronous
    max_staleness: Annotated[int, Field(ge=0, le=8)] = 0
    evaluation: EvaluationConfig = EvaluationConfig()  # evaluation during training
    checkpoint: CheckpointConfig = CheckpointConfig()  # checkpoint interval and retention
    export: ExportConfig = ExportConfig()  # round whose model is written at the end
    alarms: AlarmsConfig = AlarmsConfig()  # alarms: their thresholds and actions
    cluster: ClusterConfig = ClusterConfig()  # cluster that the run uses, and time limits of its processes
    report_to: tuple[Literal["wandb"], ...] = ()  # external trackers that metrics are logged to
    wandb: WandbConfig = WandbConfig()  # settings of Weights & Biases
    samples_per_step: Annotated[int, Field(ge=0)] = 8  # number of completions written to samples/ in each step

    @model_validator(mode="after")
    def no_conflicts(self) -> Self:
        if conflicts := find_conflicts(self):
            raise ConflictsError(conflicts)
        return self

    @property
    def directory(self) -> Path:
        return Path(self.output_dir) / self.name

    @property
    def best_round_by(self) -> str | None:
        """Held-out figure by which the best round is exported; None: the last round, or the only model, is."""
        if not self.algorithm.needs.rounds or self.data.prompts is None or self.data.eval_prompts is None:
            return None
        chosen = self.export.round or ("best" if self.evaluation.every == 1 else "last")
        figure = self.export.by or ("eval/sampled_reward" if self.evaluation.num_samples else "eval/reward")
        return figure if chosen == "best" else None

    @property
    def model_directory(self) -> Path:
        """Directory of the trained model, where `model.from_stage` of a later stage finds it."""
        return self.directory / "model"

    @property
    def data_file(self) -> Path:
        """File of the generated data set, where `data.from_stage` of a later stage finds it."""
        return self.directory / "data" / "rows.parquet"

    @property
    def pairs_file(self) -> Path:
        """File of the pairs of revised answers, where `data.from_stage` of a later stage finds it if it needs pairs."""
        return self.data_file.with_name("pairs.parquet")

    @property
    def artifact(self) -> Path:
        """Model directory or data file that the run writes in the end."""
        return self.model_directory if self.algorithm.needs.trains else self.data_file

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """All that the run writes for later stages."""
        own = self.algorithm
        writes_pairs = isinstance(own, GenerateConfig) and own.rows == "revision"
        return (self.artifact, self.pairs_file) if writes_pairs else (self.artifact,)
