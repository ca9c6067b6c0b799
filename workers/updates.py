"""The optimiser updates of a step on one rank: from a batch to new weights and statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from workers import progress
from workers.algorithms import ALGORITHMS
from workers.algorithms.base import MicroBatch, totals_of
from workers.config import AlgorithmConfig, Head
from workers.engines import hf_models
from workers.engines.base import TrainingEngine
from workers.gold import sampled_only
from workers.objectives import objective_totals
from workers.packing import cut, cut_batch, input_lengths, members, pack, shares, updates
from workers.scoring import DUMMY_ROW
from workers.spans import UpdateRange
from workers.stats import Metrics, ObjectiveTotals, StepStats
from workers.types import Experience, TrainBatch

COMPARED_TOKENS = 256  # tokens per rank on which the log-probabilities of engine and learner are compared
NUM_NAMED = 5  # prompts that an error names


class NotFinite(Exception):
    """A loss or a gradient is NaN or infinite. The weights are not usable any more."""


class Updater:
    """Optimiser updates of one rank of the policy, the critic or a reward model."""

    def __init__(
        self,
        engine: TrainingEngine,
        algorithm: AlgorithmConfig,
        *,
        head: Head,
        budget: int,
        pad: int | None,
        seed: int,
        max_steps: int,
    ) -> None:
        """Prepare for updates by `algorithm`.

        Args:
            budget: input positions per micro-batch.
            pad: padding token of a reward model, see `packing.pack`.
            seed: seed of the run.
            max_steps: steps of the run, over which the learning rate is scheduled.
        """
        self._engine, self._budget, self._pad = engine, budget, pad
        self._seed, self._max_steps = seed, max_steps
        record = ALGORITHMS[algorithm.type]
        loss = record.critic_loss if head == "values" else record.loss
        assert loss is not None
        self._loss, self._range_of, self._whole_rows = loss, record.range_of, algorithm.needs.whole_rows
        self._head = head

    def plan(self, step: int, batch: TrainBatch, algorithm: AlgorithmConfig) -> PlannedUpdates:
        """Choose the rows and the learning rate of each update of a step.

        They depend on the step and its batch alone, so that a resumed run continues exactly.
        """
        rows = updates(
            batch,
            epochs=algorithm.epochs,
            num_updates=algorithm.num_updates(batch.num_rows),
            seed=mix_seeds(self._seed, step),
        )
        factors = self._factors(algorithm, step, len(rows))
        peak = algorithm.learning_rate_of(self._head)
        return PlannedUpdates(rows=rows, learning_rates=[peak * factor for factor in factors])

    def run(
        self,
        step: int,
        batch: TrainBatch,
        planned: PlannedUpdates,
        experience: Experience,
        algorithm: AlgorithmConfig,
        *,
        temperature: float,
        span: UpdateRange,
    ) -> StepStats:
        """Make the updates `span` of a step and return this rank's share of their statistics.

        `algorithm` holds the current values of the settings. The statistics are means over all updates of the step, of
        which these updates contribute their part.

        Raises:
            NotFinite: a loss or a gradient is NaN or infinite.
        """
        count = len(planned.rows)
        last = count if span.count is None else min(count, span.first + span.count)
        if algorithm.resets_optimizer and span.first == 0:
            self._engine.reset_optimizer()
        objectives = objective_totals(batch, planned.rows)
        sums: Metrics = {}
        ranged: list[float] = []
        norms: list[float] = []
        for i in range(span.first, last):
            # Seeded here, so that a checkpoint need not hold the state of the generator.
            self._engine.reseed(mix_seeds(self._seed, step, *([i] if i else [])))
            result = self._accumulate(batch, planned.rows[i], algorithm, temperature, objectives)
            ranged += result.ranged
            norms.append(self._engine.update(planned.learning_rates[i]))
            place = f"step {step + 1}, update {i + 1} of {count}"
            require_finite(norms[-1], result.bad_rows, planned.rows[i], batch, experience, place=place)
            for name, value in result.stats.items():
                sums[name] = sums.get(name, 0.0) + value / count
        facts = {"num_updates": float(len(norms))}
        if norms:
            facts |= {"grad_norm": float(np.mean(norms)), "learning_rate": planned.learning_rates[last - 1]}
        left = max(0, count - last)
        if self._range_of is None or not norms:
            return StepStats(sums=sums, maxima={}, facts=facts, left=left)
        name = self._range_of[0]
        # A rank without rows reports infinite extremes, which those of other ranks replace.
        maxima = {f"max_{name}": max(ranged, default=-math.inf)}
        minima = {f"min_{name}": min(ranged, default=math.inf)}
        return StepStats(sums=sums, maxima=maxima, facts=facts, minima=minima, left=left)

    def _factors(self, algorithm: AlgorithmConfig, step: int, count: int) -> list[float]:
        """Return the factors of the learning rate for the `count` updates of a step."""
        if algorithm.resets_optimizer:
            first, total = 0, count
        else:
            first, total = step * count, self._max_steps * count
        factor = hf_models.schedule(algorithm.lr_scheduler_type, warmup=algorithm.warmup_steps, total=max(total, 1))
        return [factor(first + i) for i in range(count)]

    def _accumulate(
        self,
        batch: TrainBatch,
        rows: NDArray[np.int64],
        algorithm: AlgorithmConfig,
        temperature: float,
        objectives: tuple[ObjectiveTotals, ...],
    ) -> _Accumulated:
        """Accumulate the gradients of one optimiser update, micro-batch by micro-batch."""
        baseline = mean_log_ratio(self._engine, batch, rows, budget=self._budget, temperature=temperature)
        totals = replace(totals_of(batch, rows), baseline=baseline, objectives=objectives)
        row_of = np.arange(batch.num_rows)  # original row of each row that is packed below
        if not self._whole_rows:
            budget = 1 if self._engine.apart else self._budget
            batch, rows, row_of = cut_batch(batch, rows, budget, self._pad)
        micro_batches = shares(
            batch.prompts,
            batch.completions,
            batch.row_offsets,
            rows,
            num_ranks=self._engine.world_size,
            budget=self._budget,
            pad=self._pad,
            apart=self._engine.apart,
        )[self._engine.rank]
        result = _Accumulated()
        for i, picked in enumerate(micro_batches):
            chosen, weight = (rows[picked], 1.0) if len(picked) else (rows[DUMMY_ROW], 0.0)
            packed = pack(batch.prompts, batch.completions, batch.row_offsets, chosen, self._pad)
            micro = MicroBatch.of(batch, chosen, totals, self._engine.device)
            outputs, entropy = self._engine.forward(packed, temperature, micro.reference_hidden)
            loss, stats = self._loss(outputs, micro, algorithm)
            self._engine.backward(loss * weight, last=i == len(micro_batches) - 1)
            progress.report()
            if entropy is not None:
                stats["entropy"] = entropy.sum() / totals.tokens
            if self._range_of is not None and weight:
                result.ranged += self._range_of[1](outputs.detach(), micro).tolist()
            for name, value in stats.items():
                result.stats[name] = result.stats.get(name, 0.0) + float(value) * weight
            if not math.isfinite(float(loss.detach())):
                result.bad_rows += row_of[chosen].tolist()
        return result


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedUpdates:
    """Rows of the batch, and learning rate, of each optimiser update of a step."""

    rows: Sequence[NDArray[np.int64]]
    learning_rates: Sequence[float]


@dataclass(kw_only=True, slots=True)
class _Accumulated:
    """Statistics of one optimiser update on this rank."""

    stats: Metrics = field(default_factory=dict)
    ranged: list[float] = field(default_factory=list)  # numbers whose minimum and maximum are reported
    bad_rows: list[int] = field(default_factory=list)  # rows of micro-batches whose loss is not finite


def mean_log_ratio(
    engine: TrainingEngine, batch: TrainBatch, rows: NDArray[np.int64], *, budget: int, temperature: float
) -> float | None:
    """Return the mean of log π(y) − log π_ref(y) over the baseline's completions in `rows`, over all ranks.

    π is the policy with its current weights. Each rank computes its share; all ranks return the same number. None if
    the batch has no baseline.
    """
    baseline = batch.baseline
    if baseline is None:
        return None
    assert baseline.reference_logprobs is not None
    prompts, completions, offsets = baseline.prompts, baseline.completions, baseline.row_offsets
    planned = shares(
        prompts, completions, offsets, rows, num_ranks=engine.world_size, budget=budget, apart=engine.apart
    )
    total = 0.0
    for picked in planned[engine.rank]:
        chosen = rows[picked] if len(picked) else rows[DUMMY_ROW]
        logprobs = engine.infer(pack(prompts, completions, offsets, chosen), temperature).cpu().numpy()
        if len(picked):
            reference = baseline.reference_logprobs[completions.positions(members(offsets, chosen))]
            total += float((logprobs - reference).sum(dtype=np.float64))
    return engine.sum(total) / len(members(offsets, rows))


def engine_difference(engine: TrainingEngine, experience: Experience, *, budget: int) -> tuple[float, float] | None:
    """Compare the rollout engine's log-probabilities with the learner's on a few completions of the experience.

    Called before the first update of a step: in a synchronous run both then hold the same weights.

    Returns:
        This rank's share of the mean, and the maximum, of |log-probability difference|. None for a dataset.
    """
    experience = sampled_only(experience)
    if experience.logprobs is None or not len(experience.prompts):
        return None
    completions = experience.completions
    prompts, offsets, _ = cut(experience.prompt_tokens, completions, experience.group_offsets, budget)
    tokens = np.cumsum(input_lengths(prompts, completions, offsets))
    count = max(1, int(np.searchsorted(tokens, COMPARED_TOKENS * engine.world_size)))
    mine = np.arange(count)[engine.rank :: engine.world_size]
    packed = pack(prompts, completions, offsets, mine if len(mine) else DUMMY_ROW)
    learner_logprobs = engine.infer(packed, experience.temperature).cpu().numpy()
    if not len(mine):
        return 0.0, 0.0
    engine_logprobs = experience.logprobs[completions.positions(members(offsets, mine))]
    difference = np.abs(learner_logprobs - engine_logprobs)
    all_tokens = completions.lengths[members(offsets, np.arange(count))].sum()
    return float(difference.sum() / all_tokens), float(difference.max())


def require_finite(
    norm: float,
    bad_rows: Sequence[int],
    rows: NDArray[np.int64],
    batch: TrainBatch,
    experience: Experience,
    *,
    place: str,
) -> None:
    """Raise NotFinite if a loss or the gradient norm of an update is not finite. The message names the prompts.

    Args:
        norm: gradient norm over all ranks.
        bad_rows: rows of this rank's micro-batches with a non-finite loss.
        rows: rows of the update.
        place: name of the update, for example "step 3, update 1 of 4".
    """
    if not bad_rows and math.isfinite(norm):
        return
    what = "a loss that is NaN or infinite" if bad_rows else f"a gradient of norm {norm}"
    first = [int(batch.row_offsets[row]) for row in (bad_rows or rows.tolist())]  # first completion of each row
    origins = first if batch.sources is None else batch.sources[first].tolist()
    prompts = list(dict.fromkeys(experience.prompts[experience.group_of[i]].id for i in origins))
    more = f" and {len(prompts) - NUM_NAMED} more" if len(prompts) > NUM_NAMED else ""
    raise NotFinite(f"{place}: {what}, on prompts {', '.join(prompts[:NUM_NAMED])}{more}")


def mix_seeds(*numbers: int) -> int:
    """Derive one 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
