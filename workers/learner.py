"""The policy and critic roles: one rank of a learner. One call per step, from evidence to updated weights."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers import finite
from workers.algorithms import ALGORITHMS
from workers.algorithms.base import MicroBatch, totals_of
from workers.baseline import mean_log_ratio
from workers.config import AlgorithmConfig, DistillConfig, DpoConfig, LearnerConfig, ModelConfig, PpoConfig
from workers.engines import hf_files, hf_models, hf_text
from workers.engines.base import TrainingEngine
from workers.files import records
from workers.margins import NO_MARGINS, final_scores, implicit_rewards, pair_margins
from workers.needs import Head
from workers.packing import cut, cut_batch, input_lengths, members, pack, shares, updates
from workers.scoring import IDLE, Memory, score_tokens
from workers.spans import UpdateRange
from workers.types import (
    Experience,
    Metrics,
    PairMargins,
    ScoredBatch,
    Scores,
    StepStats,
    TokenShard,
    TrainBatch,
    assemble,
    assemble_vectors,
    merge,
    merge_scores,
)
from workers.weights import Manifest, Rendezvous, Segment, describe

CONTROLLED = "controlled_setting"  # where a checkpoint's state keeps it
WHOLE = UpdateRange()  # all updates of a step
PROBE_TOKENS = 256  # of a step's completions, per rank, on which engine and learner are compared


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
    """Join the gang's process group at address:port as `rank` and load the model: how an actor of the gang starts.

    `teacher`: the model that the algorithm distils; where whole distributions are compared, each rank holds its output
    layer. Raises ModelError when the two have different tokenizers.
    """
    from workers.engines import deepspeed_engine

    layer, beta = None, 0.0
    if teacher is not None:
        hf_text.require_same_tokenizer(model, teacher)
    if teacher is not None and isinstance(algorithm, DistillConfig) and algorithm.objective == "divergence":
        layer, beta = hf_files.load_output_layer(teacher), algorithm.beta
    device = deepspeed_engine.join(rank=rank, world_size=config.num_ranks, address=address, port=port, cuda=cuda)
    engine = deepspeed_engine.DeepSpeedEngine(
        model, config, algorithm, head=head, device=device, seed=seed, reference_layer=layer, beta=beta
    )
    return Learner(engine, model, config, algorithm, head=head, seed=seed, max_steps=max_steps)


class Learner:
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
        self._engine, self._model, self._config, self._algorithm = engine, model, config, algorithm
        self._head, self._seed, self._max_steps, self._device = head, seed, max_steps, engine.device
        record = ALGORITHMS[algorithm.type]
        self._prepare, self._needs = record.prepare, record.needs
        self._range_of, self._control = record.range_of, record.control
        loss = record.critic_loss if head == "values" else record.loss
        assert loss is not None
        self._loss = loss
        self._learning_rate = algorithm.learning_rate
        if head == "values" and isinstance(algorithm, PpoConfig):
            self._learning_rate = algorithm.critic_learning_rate
        assert model.path is not None
        self._pad = hf_models.padding_token(model.path) if head == "scores" else None
        self._memory = Memory()  # of the frozen base's answers
        self._segment: Segment | None = None
        self._sender: Any = None

    # -------------------------------------------------------------------------------------------- learn

    def step(
        self,
        step: int,
        experience: Sequence[Experience],
        scores: Sequence[Scores] | None,
        reference: Sequence[TokenShard] | None,
        values: Sequence[TokenShard] | None,
        pairs_file: str | None = None,
        old: Sequence[TokenShard] | None = None,
        span: UpdateRange = WHOLE,
    ) -> StepStats:
        """Prepare the batch, run its optimiser updates, report. Every rank gets all the evidence and takes its share.

        What the algorithm does without is None. `reference`: its log-probabilities, or hidden states where its whole
        distributions are learned from. `pairs_file`: where rank 0 writes a preference batch for people to read
        (parquet); None: nowhere. `old`: the policy's own log-probabilities before this step; None: it was not asked.
        `span`: which of the updates are made; what is told once of a step is told with its first.
        """
        started = time.perf_counter()
        scored = _scored(experience, scores, reference, values, old, seed=_mix(self._seed, step))
        if not scored.experience.prompts:
            raise hf_models.ModelError(
                f"all {scored.experience.num_dropped} prompts of step {step + 1} are too long to be used; raise "
                "rollout.max_prompt_length (data.max_length for a dataset), or shorten the prompts"
            )
        batch, prepared = self._prepare(scored, self._algorithm)
        temperature = scored.experience.temperature if self._needs.on_policy else 1.0
        if isinstance(self._algorithm, DistillConfig):
            temperature = self._algorithm.temperature
        gap = self._probe(scored.experience) if self._head == "logprobs" and span.first == 0 else None
        if pairs_file is not None and self._engine.rank == 0 and batch.num_rows:
            records.write_pairs(Path(pairs_file), batch, scored, self._decoder())
        # What the evidence says of itself, the policy reports; the critic speaks of its own learning only.
        facts = prepared | _experience_facts(scored.experience, step) if self._head != "values" else {}
        learned = self._learn(step, batch, scored.experience, temperature, span)
        facts |= learned.facts
        if not learned.left:
            self._adapt(scored, facts)
        facts["timing/learn"] = time.perf_counter() - started
        sums, maxima = dict(learned.sums), dict(learned.maxima)
        if gap is not None:
            sums["sampling/logp_difference"] = gap[0]
            maxima["sampling/logp_difference_max"] = gap[1]
        return StepStats(sums=sums, maxima=maxima, facts=facts, minima=learned.minima, left=learned.left)

    def _adapt(self, scored: ScoredBatch, facts: Metrics) -> None:
        """Report the setting that the algorithm controls, and move it for the next step."""
        if self._control is None:
            return
        name = self._control.name
        if self._head != "values":
            facts[name] = float(getattr(self._algorithm, name))
        self._algorithm = self._algorithm.model_copy(update={name: self._control.after(scored, self._algorithm)})

    def _learn(
        self, step: int, batch: TrainBatch, experience: Experience, temperature: float, span: UpdateRange
    ) -> StepStats:
        """The optimiser updates of a span: their part of the step's mean stats (this rank's share), and how they were
        made. Raises NotFinite."""
        config = self._algorithm
        # So that a checkpoint need not hold where a generator stood.
        self._engine.reseed(_mix(self._seed, step, *([span.first] if span.first else [])))
        if getattr(config, "reset_optimizer", False) and span.first == 0:
            self._engine.reset_optimizer()
        all_passes = updates(
            batch, epochs=config.epochs, num_updates=config.num_updates(batch.num_rows), seed=_mix(self._seed, step)
        )
        sums: Metrics = {}
        seen: list[float] = []
        norms: list[float] = []
        chosen = slice(span.first, None if span.count is None else span.first + span.count)
        passes, factors = all_passes[chosen], self._factors(step, len(all_passes))[chosen]
        left = max(0, len(all_passes) - span.first - len(passes))
        for i, (rows, factor) in enumerate(zip(passes, factors, strict=True), start=span.first + 1):
            stats, some, bad = self._update(batch, rows, temperature)
            seen += some
            norms.append(self._engine.update(self._learning_rate * factor))
            place = f"step {step + 1}, update {i} of {len(all_passes)}"
            finite.require(norms[-1], bad, rows, batch, experience, place=place)
            for name, value in stats.items():
                sums[name] = sums.get(name, 0.0) + value / len(all_passes)
        facts = {"num_updates": float(len(passes))}
        if norms:
            facts |= {"grad_norm": float(np.mean(norms)), "learning_rate": self._learning_rate * factors[-1]}
        if self._range_of is None or not norms:
            return StepStats(sums=sums, maxima={}, facts=facts, left=left)
        name = self._range_of[0]  # a rank without rows has seen nothing: its extremes are infinite
        least, greatest = min(seen, default=math.inf), max(seen, default=-math.inf)
        extremes = {f"max_{name}": greatest}, {f"min_{name}": least}
        return StepStats(sums=sums, maxima=extremes[0], facts=facts, minima=extremes[1], left=left)

    def _factors(self, step: int, count: int) -> list[float]:
        """Factors of the learning rate for this step's updates: a function of the step alone, so a resume is exact."""
        config = self._algorithm
        fresh = getattr(config, "reset_optimizer", False)
        first, total = (0, count) if fresh else (step * count, self._max_steps * count)
        factor = hf_models.schedule(config.lr_scheduler_type, warmup=config.warmup_steps, total=max(total, 1))
        return [factor(first + i) for i in range(count)]

    def _update(
        self, batch: TrainBatch, rows: NDArray[np.int64], temperature: float
    ) -> tuple[Metrics, list[float], list[int]]:
        """Gradients of one optimiser update, micro-batch by micro-batch; the sum of their stats, the numbers whose
        range is to be told, and the rows of micro-batches without a finite loss."""
        budget = self._config.tokens_per_micro_batch
        baseline = mean_log_ratio(self._engine, batch, rows, budget=budget, temperature=temperature)
        totals = replace(totals_of(batch, rows), baseline=baseline)
        row_of = np.arange(batch.num_rows)  # of what is packed from here on
        if not self._needs.whole_rows:
            batch, rows, row_of = cut_batch(batch, rows, 1 if self._engine.apart else budget, self._pad)
        micro_batches = shares(
            batch.prompts,
            batch.completions,
            batch.row_offsets,
            rows,
            num_ranks=self._engine.world_size,
            budget=budget,
            pad=self._pad,
            apart=self._engine.apart,
        )[self._engine.rank]
        stats: Metrics = {}
        seen: list[float] = []
        bad: list[int] = []
        for i, picked in enumerate(micro_batches):
            chosen, weight = (rows[picked], 1.0) if len(picked) else (rows[IDLE], 0.0)
            packed = pack(batch.prompts, batch.completions, batch.row_offsets, chosen, self._pad)
            micro = MicroBatch.of(batch, chosen, totals, self._device)
            outputs, entropy = self._engine.forward(packed, temperature, micro.reference_hidden)
            loss, parts = self._loss(outputs, micro, self._algorithm)
            self._engine.backward(loss * weight, last=i == len(micro_batches) - 1)
            if entropy is not None:
                parts["entropy"] = entropy.sum() / totals.tokens
            if self._range_of is not None and weight:
                seen += self._range_of[1](outputs.detach(), micro).tolist()
            for name, value in parts.items():
                stats[name] = stats.get(name, 0.0) + float(value) * weight
            if not math.isfinite(float(loss.detach())):
                bad += row_of[chosen].tolist()
        return stats, seen, bad

    def _probe(self, experience: Experience) -> tuple[float, float] | None:
        """Engine against learner on a few completions of the step, before anything is learned: (share of the mean, max)
        of |log-probability difference|. In a synchronous run both hold the same weights."""
        if experience.logprobs is None or not len(experience.prompts):
            return None
        completions, budget = experience.completions, self._config.tokens_per_micro_batch
        prompts, offsets, _ = cut(experience.prompt_tokens, completions, experience.group_offsets, budget)
        ranks = self._engine.world_size
        tokens = np.cumsum(input_lengths(prompts, completions, offsets))
        count = max(1, int(np.searchsorted(tokens, PROBE_TOKENS * ranks)))
        mine = np.arange(count)[self._engine.rank :: ranks]
        packed = pack(prompts, completions, offsets, mine if len(mine) else IDLE)
        learner = self._engine.infer(packed, experience.temperature).cpu().numpy()
        if not len(mine):
            return 0.0, 0.0
        engine = experience.logprobs[completions.positions(members(offsets, mine))]
        difference = np.abs(learner - engine)
        all_tokens = completions.lengths[members(offsets, np.arange(count))].sum()
        return float(difference.sum() / all_tokens), float(difference.max())

    # -------------------------------------------------------------------------------------------- score

    def infer(self, parts: Sequence[Experience], as_sampled: bool = False) -> TokenShard:
        """What it answers without learning, for this rank's share: the policy the log-probability of each token (at
        temperature 1, or `as_sampled` at that of the samples), the critic the value of the state before it, a reward
        model the score of what ends with it."""
        return self._infer(parts, parts[0].temperature if as_sampled else 1.0)

    def _infer(self, parts: Sequence[Experience], temperature: float, *, whole_rows: bool = False) -> TokenShard:
        return score_tokens(
            parts,
            lambda packed: self._engine.infer(packed, temperature).cpu().numpy(),
            rank=self._engine.rank,
            world_size=self._engine.world_size,
            budget=self._config.tokens_per_micro_batch,
            pad=self._pad,
            whole_rows=whole_rows,
            apart=self._engine.apart,
        )

    def margins(self, parts: Sequence[Experience], reference: Sequence[TokenShard] | None = None) -> PairMargins:
        """How much more the best completion gets than the worst, of this rank's share of the pairs: by a reward model,
        or by DPO's implicit reward, for which `reference` is what the reference says of all of them."""
        experience = merge(parts)
        if not experience.prompts:
            return NO_MARGINS
        share = self._infer(parts, temperature=1.0, whole_rows=True)
        if self._head == "scores":
            rewards = final_scores(share, experience.completions)
        else:
            assert isinstance(self._algorithm, DpoConfig)
            assert reference is not None
            rewards = implicit_rewards(share, reference, experience.completions, self._algorithm.beta)
        return pair_margins(experience, share.completions, rewards)

    def base_logprobs(self, parts: Sequence[Experience], temperature: float, cache: bool) -> TokenShard:
        """This rank's share of the log-probabilities of the frozen model under the adapters, which is the
        reference where there is no second model.

        It never changes, so with `cache` rows of a dataset are computed once.
        """
        dataset = parts[0].logprobs is None
        return score_tokens(
            parts,
            lambda packed: self._engine.infer(packed, temperature, adapted=False).cpu().numpy(),
            rank=self._engine.rank,
            world_size=self._engine.world_size,
            budget=self._config.tokens_per_micro_batch,
            memory=self._memory if dataset and cache else None,
            apart=self._engine.apart,
        )

    # -------------------------------------------------------------------------------------------- weights

    def open_weights(self, segment: str | None, rendezvous: Rendezvous | None) -> Manifest:
        """Agree once on how weights are published: through a shared-memory segment (CPU), or by NCCL."""
        manifest = describe(self._engine.describe_weights(), segment=segment, rendezvous=rendezvous)
        if segment is not None and self._engine.rank == 0:
            self._segment = Segment(segment, manifest.num_bytes)
        self._manifest = manifest
        return manifest

    def send_weights(self) -> float:
        """Publish the current weights; every rank takes part in gathering them. Returns seconds."""
        started = time.perf_counter()
        if self._manifest.rendezvous is not None:
            if self._sender is None:
                from workers.engines.vllm_sender import NcclSender

                self._sender = NcclSender(self._manifest, self._engine.rank, self._engine.weights)
            self._sender.send()
        elif self._segment is not None:
            self._segment.write(self._manifest.entries, self._engine.weights())
        else:
            for _ in self._engine.weights():
                pass
        return time.perf_counter() - started

    def send_adapter(self, directory: str, version: int) -> float:
        """Write the adapters of `version` into `directory` (rank 0), all ranks gathering. Returns seconds."""
        started = time.perf_counter()
        self._write_adapter(Path(directory), version)
        return time.perf_counter() - started

    def _write_adapter(self, directory: Path, version: int | None = None) -> None:
        from workers.engines import lora

        assert self._model.lora is not None
        assert self._model.path is not None
        # Each is whole only until the next one comes.
        tensors = {name: tensor.cpu().clone() for name, tensor in self._engine.adapter() if self._engine.rank == 0}
        if self._engine.rank == 0:
            lora.write(directory, self._model.lora, self._model.path, tensors, version)

    def export(self, directory: str) -> None:
        """Write the model as a Hugging Face directory (rank 0), all ranks gathering. With adapters it is the merged
        model, and `adapter/` in it what was merged, for peft."""
        assert self._model.path is not None
        if self._model.lora is not None:
            self._write_adapter(Path(directory) / "adapter")
        if self._engine.rank == 0:
            hf_files.export(self._model.path, self._engine.describe_weights(), self._engine.weights(), Path(directory))
        else:
            for _ in self._engine.weights():
                pass

    # -------------------------------------------------------------------------------------------- state

    def save(self, directory: str, state: Mapping[str, Any]) -> None:
        """Weights, optimiser and `state` of this rank into `directory`, to go on from exactly here."""
        controlled = {} if self._control is None else {CONTROLLED: getattr(self._algorithm, self._control.name)}
        self._engine.save(Path(directory), {**state, **controlled})

    def load(self, directory: str) -> Mapping[str, Any]:
        """Go back to what `save` wrote; returns its `state`."""
        state = dict(self._engine.load(Path(directory)))
        if self._control is not None:
            self._algorithm = self._algorithm.model_copy(update={self._control.name: state.pop(CONTROLLED)})
        return state

    def close(self) -> None:
        """Leave the process group; without this a rank may abort at exit."""
        if self._segment is not None:
            self._segment.remove()
        self._engine.close()

    def _decoder(self) -> hf_text.TextCodec:
        return hf_text.TextCodec(self._model)


def _scored(
    parts: Sequence[Experience],
    scores: Sequence[Scores] | None,
    reference: Sequence[TokenShard] | None,
    values: Sequence[TokenShard] | None,
    old: Sequence[TokenShard] | None,
    *,
    seed: int,
) -> ScoredBatch:
    experience = merge(parts)
    hidden = reference is not None and any(share.has_vectors for share in reference)
    return ScoredBatch(
        experience=experience,
        rewards=merge_scores(scores).rewards if scores is not None else experience.rewards,
        reference_logprobs=assemble(reference, experience.completions) if reference and not hidden else None,
        reference_hidden=assemble_vectors(reference, experience.completions) if reference and hidden else None,
        values=assemble(values, experience.completions) if values is not None else None,
        seed=seed,
        learner_logprobs=assemble(old, experience.completions) if old is not None else None,
    )


def _experience_facts(experience: Experience, version: int) -> Metrics:
    facts = {
        "timing/generate": experience.seconds,
        "data/dropped": float(experience.num_dropped),
        "data/truncated": float(experience.num_truncated),
    }
    if experience.logprobs is not None and len(experience.versions):
        staleness = version - experience.versions  # the policy that learns in step n has version n
        facts |= {"staleness/mean": float(staleness.mean()), "staleness/max": float(staleness.max())}
    return facts


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
