"""The policy and critic roles: one rank of a learner. One call per step, from scored completions to updated weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.config import AlgorithmConfig, Head, LearnerConfig, ModelConfig
from workers.engines.base import ModelError, TrainingEngine
from workers.files import mirror
from workers.files.saved import Saved
from workers.files.shared_storage import SharesStorage, require_files
from workers.files.written import Report, files, report
from workers.given import is_given
from workers.margins import NO_MARGINS, PairMargins, implicit_rewards, pair_margins
from workers.objectives import objective_facts, own_scores, with_objectives
from workers.scoring import ScoreCache, score_tokens
from workers.sender import WeightSender
from workers.spans import UpdateRange
from workers.stats import Metrics, StepStats
from workers.step_inputs import experience_facts, scored_batch
from workers.types import Experience, ScoredBatch, Scores, TokenShard, TrainBatch, merge
from workers.weights import Average, Manifest, Rendezvous

if TYPE_CHECKING:
    from workers.packing import Packed
    from workers.types import Floats
    from workers.updates import PlannedUpdates

CONTROLLED, BEGUN = "controlled_setting", "begun_step"  # keys of a checkpoint's state
BEFORE_STEP = ("values", "learner_logprobs")
"""Inputs of a step that the learners' own weights from before the step give; others can be computed again."""

ALL_UPDATES = UpdateRange()


def join(
    model: ModelConfig,
    config: LearnerConfig,
    algorithm: AlgorithmConfig,
    *,
    head: Head,
    rank: int,
    address: str,
    port: int,
    cuda: bool,
    seed: int,
    max_steps: int,
    teacher: ModelConfig | None = None,
) -> Learner:
    """Join the gang's process group at address:port as `rank` and load the model: the entry point of a learner process.

    `teacher` is the model to distil. To compare whole distributions, each rank loads the teacher's output layer.

    Raises:
        ModelError: model and teacher have different tokenizers.
    """
    from workers.engines import deepspeed_engine, hf_files, hf_text

    divergence, beta = None, algorithm.divergence_beta
    if teacher is not None:
        hf_text.require_same_tokenizer(model, teacher)
        divergence = (hf_files.load_output_layer(teacher), beta) if beta is not None else None
    device = deepspeed_engine.join(rank=rank, world_size=config.num_ranks, address=address, port=port, cuda=cuda)
    engine = deepspeed_engine.DeepSpeedEngine(
        model,
        config,
        algorithm,
        head=head,
        device=device,
        seed=seed,
        divergence=divergence,
        labels=algorithm.labels,
    )
    return Learner(engine, model, config, algorithm, head=head, seed=seed, max_steps=max_steps)


class Learner(SharesStorage):
    """One rank of the policy (`head="logprobs"`), of the critic (`"values"`) or of a reward model (`"scores"`)."""

    def __init__(
        self,
        engine: TrainingEngine,
        model: ModelConfig,
        config: LearnerConfig,
        algorithm: AlgorithmConfig,
        *,
        head: Head,
        seed: int,
        max_steps: int,
    ) -> None:
        # Imported here: the driver imports this module for the names of its methods alone.
        from workers.algorithms import ALGORITHMS
        from workers.engines import hf_models
        from workers.updates import Updater

        assert model.path is not None
        self._engine, self._model, self._algorithm, self._head = engine, model, algorithm, head
        self._budget, self._seed = config.tokens_per_micro_batch, seed
        self._record = ALGORITHMS[algorithm.type]
        self._control = self._record.control
        self._pad = hf_models.padding_token(model.path) if head == "scores" else None
        self._updater = Updater(
            engine, algorithm, head=head, budget=self._budget, pad=self._pad, seed=seed, max_steps=max_steps
        )
        self._current: _Current | None = None  # the step that is not finished
        self._begun: Mapping[str, Any] = {}  # inputs of the step that an earlier attempt has begun
        self._base: str | None = None  # state to load before the first update of the step
        self._base_cache = ScoreCache()  # log-probabilities of the base model under the adapters
        self._sender = WeightSender(engine, model)

    # -------------------------------------------------------------------------------------------- train

    def begin_round(self, settings: Mapping[str, Any], base: str | None = None) -> None:
        """Set what differs from round to round, before the calls of a round.

        Args:
            settings: settings of the algorithm by name, for example `{"learning_rate": 5e-7}`.
            base: directory, written by `save`, of the state that the round's updates start from; None: the current one.
        """
        self._algorithm, self._base = self._algorithm.model_copy(update=settings), base

    def step(
        self,
        step: int,
        experience: Sequence[Experience],
        scores: Sequence[Scores] | None,
        reference: Sequence[TokenShard] | None,
        values: Sequence[TokenShard] | None,
        pairs_file: str | None = None,
        old: Sequence[TokenShard] | None = None,
        span: UpdateRange = ALL_UPDATES,
    ) -> StepStats:
        """Prepare the batch of a step, make optimiser updates on it and return their statistics.

        Without `span` these are all updates of the step; `more` makes those that `span` leaves. Every rank receives the
        whole experience and trains on its share. Inputs that the algorithm does not need are None.

        Args:
            reference: log-probabilities of the reference, or its hidden states if the loss compares distributions.
            values: values of the critic.
            pairs_file: parquet file to which rank 0 writes the preference pairs as text; None: nowhere.
            old: the policy's log-probabilities before this step; None: not computed.
            span: the updates to make. Metrics of the whole step are reported with its first updates.

        Raises:
            ModelError: all prompts are too long.
            NotFinite: a loss or a gradient is NaN or infinite.
        """
        from workers.updates import engine_difference, mix_seeds

        started = time.perf_counter()
        scored = scored_batch(experience, scores, reference, values, old, seed=mix_seeds(self._seed, step))
        scored, self._begun = replace(scored, **self._begun) if span.first else scored, {}
        if is_given(scored.experience).all():  # nothing is sampled
            raise ModelError(
                f"all {scored.experience.num_dropped} prompts of step {step + 1} are too long to be used; raise "
                "rollout.max_prompt_length (data.max_length for a dataset), or shorten the prompts"
            )
        batch, prepared = self._record.prepare(scored, self._algorithm)
        batch = with_objectives(batch, scored.experience, self._algorithm.labels)
        difference = None
        if self._head == "logprobs" and span.first == 0:
            difference = engine_difference(self._engine, scored.experience, budget=self._budget)
        if self._base is not None and span.first == 0:
            self.load(self._base)
        if pairs_file is not None and self._engine.rank == 0:
            self._write_pairs(Path(pairs_file), batch, scored)
        planned = self._updater.plan(step, batch, self._algorithm)
        self._current = _Current(step=step, scored=scored, batch=batch, planned=planned)
        # Metrics of the experience are reported by the policy alone, not again by the critic.
        described = experience_facts(scored.experience, step) | objective_facts(scored)
        facts = prepared | described if self._head != "values" else {}
        stats = self._run(self._current, span)
        facts |= stats.facts
        facts["timing/learn"] = time.perf_counter() - started
        sums, maxima = dict(stats.sums), dict(stats.maxima)
        if difference is not None:
            sums["sampling/logp_difference"], maxima["sampling/logp_difference_max"] = difference
        return StepStats(sums=sums, maxima=maxima, facts=facts, minima=stats.minima, left=stats.left)

    def _write_pairs(self, path: Path, batch: TrainBatch, scored: ScoredBatch) -> None:
        from workers.engines.hf_text import TextCodec
        from workers.files.round_files import write_round

        keep = self._algorithm.keeps_groups
        mirror.upload(write_round(path, batch, scored, TextCodec(self._model), keep_groups=keep))

    def more(self, step: int, span: UpdateRange) -> StepStats:
        """Make further updates of the step that `step` has begun, and return their statistics.

        Raises:
            NotFinite: a loss or a gradient is NaN or infinite.
        """
        started = time.perf_counter()
        assert self._current is not None
        assert self._current.step == step
        stats = self._run(self._current, span)
        stats.facts["timing/learn"] = time.perf_counter() - started
        return stats

    def _run(self, current: _Current, span: UpdateRange) -> StepStats:
        """Make updates. After the last one of the step, adapt the setting that the algorithm controls."""
        temperature = self._algorithm.loss_temperature(current.scored.experience.temperature)
        stats = self._updater.run(
            current.step,
            current.batch,
            current.planned,
            current.scored.experience,
            self._algorithm,
            temperature=temperature,
            span=span,
        )
        if not stats.left:
            self._adapt(current.scored, stats.facts)
            self._current = None
        return stats

    def _adapt(self, scored: ScoredBatch, facts: Metrics) -> None:
        """Report the setting that the algorithm controls, and compute its value for the next step."""
        if self._control is None:
            return
        name = self._control.name
        if self._head != "values":
            facts[name] = float(getattr(self._algorithm, name))
        self._algorithm = self._algorithm.model_copy(update={name: self._control.after(scored, self._algorithm)})

    # -------------------------------------------------------------------------------------------- score

    def infer(self, parts: Sequence[Experience], as_sampled: bool = False) -> TokenShard:
        """Compute this rank's share of the model's outputs for each token, without training.

        Outputs are log-probabilities of a policy (at temperature 1 or, if `as_sampled`, at the sampling temperature),
        values of a critic, or scores of a reward model.
        """
        return self._score(parts, self._infer(parts[0].temperature if as_sampled else 1.0))

    def margins(self, parts: Sequence[Experience], reference: Sequence[TokenShard] | None = None) -> PairMargins:
        """Compute the margin of best over worst completion for this rank's share of the pairs.

        Rewards are those of a reward model, or DPO's implicit rewards. The latter need `reference`, the reference's
        log-probabilities of all pairs.
        """
        experience = merge(parts)
        if not experience.prompts:
            return NO_MARGINS
        share = self._score(parts, self._infer(1.0), whole_rows=True)
        if self._head == "scores":
            rewards = own_scores(share, experience, self._algorithm.labels)
        else:
            beta = self._algorithm.implicit_reward_beta
            assert beta is not None
            assert reference is not None
            rewards = implicit_rewards(share, reference, experience.completions, beta)
        return pair_margins(experience, share.completions, rewards)

    def base_logprobs(self, parts: Sequence[Experience], temperature: float, cache: bool) -> TokenShard:
        """Compute this rank's share of the base model's log-probabilities, with the adapters disabled.

        With adapters the base model is the reference. It never changes, so with `cache` the rows of a dataset are
        computed only once.
        """
        is_dataset = parts[0].logprobs is None
        return self._score(
            parts, self._infer(temperature, adapted=False), cache=self._base_cache if is_dataset and cache else None
        )

    def _infer(self, temperature: float, *, adapted: bool = True) -> Callable[[Packed], Floats]:
        return lambda packed: self._engine.infer(packed, temperature, adapted=adapted).cpu().numpy()

    def _score(
        self,
        parts: Sequence[Experience],
        infer: Callable[[Packed], Floats],
        *,
        cache: ScoreCache | None = None,
        whole_rows: bool = False,
    ) -> TokenShard:
        return score_tokens(
            parts,
            infer,
            rank=self._engine.rank,
            world_size=self._engine.world_size,
            budget=self._budget,
            cache=cache,
            pad=self._pad,
            whole_rows=whole_rows,
            apart=self._engine.apart,
        )

    # -------------------------------------------------------------------------------------------- weights

    def open_weights(self, segment: str | None, rendezvous: Rendezvous | None) -> Manifest:
        """Set up publication, once per process: through a shared-memory segment (CPU) or by NCCL."""
        return self._sender.open(segment, rendezvous)

    def send_weights(self) -> float:
        """Publish the current weights. Every rank takes part in gathering them. Return the seconds it took."""
        started = time.perf_counter()
        self._sender.send()
        return time.perf_counter() - started

    def send_adapter(self, directory: str, version: int) -> float:
        """Write the adapters of `version` to `directory` (rank 0; all ranks gather). Return the seconds it took."""
        started = time.perf_counter()
        self._sender.write_adapter(Path(directory), version)
        if self._engine.rank == 0:
            mirror.publish(Path(directory))
        return time.perf_counter() - started

    def export(self, directory: str, average: Average | None = None, target: str | None = None) -> Report:
        """Write the model, or the `average` of it and an earlier one, as a Hugging Face directory (rank 0; all gather).

        With adapters the model is the merged one, and its subdirectory `adapter/` holds the adapters for peft. An
        average has none. `directory` is empty. Return what this rank wrote.

        Args:
            target: name that `directory` gets once all is written, and has in storage from the start; None: its own.
        """
        from workers.engines import hf_files

        assert self._model.path is not None
        if average is not None:
            mirror.require(average.directory)
        if self._engine.rank == 0:
            mirror.empty(Path(directory))
        if self._model.lora is not None and average is None:
            self._sender.write_adapter(Path(directory) / "adapter")
        if self._engine.rank == 0:
            described, weights = self._engine.describe_weights(), self._engine.weights()
            labels = self._algorithm.labels
            hf_files.export(self._model.path, described, weights, Path(directory), average=average, labels=labels)
            written = self._report(Path(directory), list(files(Path(directory))))
            mirror.upload_as(Path(target or directory), Path(directory), [file.name for file in written.files])
            return written
        for _ in self._engine.weights():
            pass
        return self._report(Path(directory), ())

    def _report(self, directory: Path, paths: Sequence[Path]) -> Report:
        role = "critic" if self._head == "values" else "policy"
        return report(directory, paths, role=role, rank=self._engine.rank, writes=bool(paths) or not self._engine.rank)

    # -------------------------------------------------------------------------------------------- state

    def save(self, directory: str, state: Mapping[str, Any]) -> Report:
        """Write this rank's weights, optimiser and `state`, from which `load` resumes exactly. Return what it wrote."""
        controlled = {} if self._control is None else {CONTROLLED: getattr(self._algorithm, self._control.name)}
        whole = {**state, **controlled, **self._begun_step()}
        return self._report(Path(directory), self._engine.save(Path(directory), whole))

    def _begun_step(self) -> dict[str, Any]:
        """Return what a resumed run needs of the step in progress and cannot compute from the updated weights."""
        if self._current is None:
            return {}
        import torch

        given = {name: getattr(self._current.scored, name) for name in BEFORE_STEP}
        return {BEGUN: {name: torch.tensor(array) for name, array in given.items() if array is not None}}

    def load(self, directory: str, saved: Saved | None = None) -> Mapping[str, Any]:
        """Restore what `save` has written, once this machine sees the files of the gang. Return its `state`.

        From storage a rank fetches its own files alone, and rank 0 those of all ranks if the gang had another size.

        Raises:
            FilesNotSeen: a file is missing, or has another size.
            StorageError: a file is not in the storage of the run, or is not what was written.
        """
        if saved is not None and (mirrored := mirror.of_process()) is not None:
            mine = saved.of_rank(self._engine.rank, self._engine.world_size)
            mirrored.fetch(Path(directory), saved.prefix, mine)
        elif saved is not None:
            require_files(Path(directory), {name: file["bytes"] for name, file in saved.files.items()})
        state = dict(self._engine.load(Path(directory), saved_ranks=saved.num_ranks if saved else None))
        if self._control is not None:
            self._algorithm = self._algorithm.model_copy(update={self._control.name: state.pop(CONTROLLED)})
        self._begun = {name: tensor.cpu().numpy() for name, tensor in state.pop(BEGUN, {}).items()}
        return state

    def close(self) -> None:
        """Leave the process group: a rank that has not left may abort at exit."""
        self._sender.close()
        self._engine.close()
        mirror.flush()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Current:
    """Batch of a step, and its updates."""

    step: int
    scored: ScoredBatch
    batch: TrainBatch
    planned: PlannedUpdates
