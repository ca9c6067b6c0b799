"""Record of each step: facts in the ledger, metrics, samples, evaluations, checkpoints.

    planned ─► trained (with the decision on the reference) ─► committed (evaluated, recorded, checkpointed)

The methods take the `index` of a step, which counts from 0 as in the loop. Files, ledger and metrics hold the `step`,
which counts from 1: step n makes version n, and row 0 of the metrics is the initial model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from orchestrator import disk
from orchestrator.cluster.base import Handle, wait
from orchestrator.config.rounds import round_values
from orchestrator.driver.assembly import in_rounds
from orchestrator.driver.checkpoint import Checkpointer, Pace
from orchestrator.driver.context import AttemptContext
from orchestrator.driver.resume import ResumePoint
from orchestrator.driver.rollouts import Rollouts
from orchestrator.driver.round_models import RoundModels
from orchestrator.evaluation.answer import Answer
from orchestrator.evaluation.held_out import Evaluator
from orchestrator.monitor.metrics import MetricsFile, UpdatesFile
from orchestrator.pipeline.reference import Decision
from orchestrator.pipeline.sources import PendingBatch
from orchestrator.rundir.cost import Meter
from orchestrator.rundir.ledger import Fact
from orchestrator.rundir.manifest import State
from workers.spans import Progress
from workers.stats import Metrics
from workers.types import Sample, Scores, merge_scores

ROUND_METRICS = ("pairs/", "rewards/", "eval/", "objective/", "reward", "loss", "logps/")
"""Prefixes of the metrics that round.json holds."""


class Recorder:
    """Recorder of one attempt."""

    def __init__(
        self,
        attempt: AttemptContext,
        resume_point: ResumePoint,
        checkpointer: Checkpointer,
        models: RoundModels,
        evaluator: Evaluator | None,
        *,
        max_steps: int,
        pace: Pace,
        rollouts: Rollouts | None,
    ) -> None:
        """Continue the records of a run at `resume_point`.

        Args:
            evaluator: None if there are no evaluation data.
            rollouts: None if the experience comes from a dataset.
        """
        self._config, self._directory = attempt.config, attempt.directory
        self._attempt, self._ledger, self._monitor = attempt, attempt.ledger, attempt.monitor
        self._checkpointer, self._evaluator, self._rollouts = checkpointer, evaluator, rollouts
        self.models = models  # of rounds
        self._max_steps, self._pace = max_steps, pace
        # Role that takes the batch, and what it does then.
        self._working = ("policy", "learning") if attempt.config.algorithm.needs.trains else ("writer", "writing")
        self._is_round = in_rounds(attempt.config)  # each step is a round, whose pairs and decision are recorded
        self.steps_done = resume_point.state.next_step  # number of steps committed
        self._saved = self.steps_done or -1  # `next_step` of the newest checkpoint; none is saved before the first step
        self._reference_version = resume_point.state.reference_version
        self._decision: Decision | None = None  # on the reference, before the newest step
        rows = MetricsFile(attempt.directory.metrics).rows()
        self._num_tokens = max((row.get("num_tokens") or 0.0 for row in rows), default=0.0)  # of all steps so far
        updates = UpdatesFile(attempt.directory.updates).rows()
        self._num_updates = updates[-1]["update"] if updates else 0  # of all steps so far
        self._resumed_updates = resume_point.state.updates  # of the step in progress, by an earlier attempt
        self._num_chunks = self._num_prompts = 0  # of the newest step
        self._has_warned = False  # about a step without updates
        self._meter = Meter(attempt.ledger.records)
        # Both are updated once per step, when it is trained.
        self.is_spent = self.is_over_budget()
        self.evaluates = False  # the step is evaluated once it is published

    def is_over_budget(self) -> bool:
        """Return whether the run has used up its budget, also between two records."""
        budget = self._config.max_device_seconds
        if budget is None:
            return False
        self._meter.read(self._ledger.records)
        self._meter.extend(time.time())
        return self._meter.device_seconds >= budget

    # -------------------------------------------------------------------------------------------- one step

    def baseline(self) -> None:
        """Evaluate the initial model."""
        if self._evaluator is not None:
            self._monitor.step(0, self.evaluate(0) | {"train/global_step": 0.0}, ())

    def planned(self, index: int) -> None:
        self._attempt.record(Fact.planned, step=index + 1)
        if self._rollouts is not None:
            self._monitor.phase("rollout", "generating")

    def updated(self, index: int, update: int, num_updates: int, metrics: Metrics) -> None:
        """Record an optimiser update of a step, the `update`-th of `num_updates`. Rollouts that ended are recorded."""
        self._num_updates += 1
        self._monitor.update(index + 1, self._num_updates, metrics)
        self._monitor.advance(
            "policy", step=index + 1, done=update, total=num_updates, unit="updates", recalled=self._resumed_updates
        )
        if self._rollouts is not None:
            self._rollouts.record_ended()

    def arrived(self, index: int, pending: PendingBatch) -> None:
        """Wait until the batch of this step is complete. Rollouts from now on are for later steps."""
        if self._rollouts is not None:
            self._rollouts.record(index)
            self._monitor.phase("rollout", "")
            self._num_chunks = len(pending.sampled)
            self._num_prompts = sum(chunk.prompts for chunk in pending.sampled)
        else:
            pending.wait()
            self._attempt.record(Fact.scored, step=index + 1)
        self._monitor.phase(*self._working)

    def pairs_file(self, index: int) -> str | None:
        """Return the file to which the policy writes the pairs of a round; None if the step is not a round."""
        return str(self._directory.round(index + 1) / "pairs.parquet") if self._is_round else None

    def trained(self, index: int, decision: Decision | None) -> None:
        self._monitor.phase(self._working[0], "")
        self._resumed_updates = 0
        self._decision = decision
        reference = None if decision is None else decision.version
        self._attempt.record(Fact.trained, step=index + 1, reference=reference)
        self.is_spent = self.is_over_budget()
        self.evaluates = self._is_due(index + 1, self._config.evaluation.every)

    def committed(self, index: int, metrics: Metrics, scores: Sequence[Handle[Scores]] | None) -> None:
        """Complete the metrics of a step, evaluate if due, write everything down, and checkpoint if due."""
        step = index + 1
        self._attempt.record(Fact.published, step=step, version=step)
        samples: tuple[Sample, ...] = ()
        if scores is not None:
            scored = merge_scores(wait(scores))
            samples = scored.samples
            metrics |= _scorer_metrics(scored)
        if self._attempt.uploads is not None:
            metrics["storage/behind_s"] = self._attempt.uploads.behind_s
            for remark in self._attempt.uploads.remarks():
                self._monitor.note(remark)
        metrics["throughput/tokens_per_s"] = metrics.get("num_tokens", 0.0) / metrics["timing/step"]
        if self._rollouts is not None:
            metrics["throughput/prompts_per_s"] = self._num_prompts / metrics["timing/step"]
            metrics["progress/chunks"] = float(self._num_chunks)
        metrics["train/global_step"] = float(self._num_updates)
        self._num_tokens += metrics.get("num_tokens", 0.0)
        metrics["num_tokens"] = self._num_tokens
        evaluated: dict[str, float] = {}
        if self.evaluates:
            metrics |= self.evaluate(step)
            evaluated = {"evaluating_s": round(metrics.get("timing/evaluate", 0.0), 3)}
        self._ledger.fence()
        if self._is_round:
            metrics["round/index"] = float(step)
            self._write_round(step, metrics)
        self._write_rows(self._directory.samples(step), samples)
        self._monitor.step(step, metrics, samples)
        if self.models.is_best(step):
            self._monitor.phase("policy", "writing the best model so far")
            self.models.keep(step)
            self._monitor.phase(self._working[0], "")
        if metrics.get("num_updates") == 0 and not self._has_warned:  # once; the summary of the run gives the share
            self._monitor.note(f"step {step} made no update: no group of completions had rewards that differ enough")
            self._has_warned = True
        self._attempt.record(Fact.committed, step=step, **evaluated)
        self.steps_done = step
        if self._is_due(step, None) or self._pace.is_due(step):
            self.checkpoint(step)
        elif self._attempt.uploads is not None:
            self._attempt.uploads.saved(self._ledger.records)

    def _is_due(self, step: int, every: int | None) -> bool:
        return step == self._max_steps or self.is_spent or (every is not None and step % every == 0)

    # -------------------------------------------------------------------------------------------- now and then

    def evaluate(self, version: int) -> Metrics:
        """Evaluate `version` of the policy, which the engines hold once they have finished their pending calls."""
        if self._evaluator is None:
            return {}
        self._monitor.phase(self._evaluator.role, f"evaluating version {version}")
        started = time.monotonic()
        evaluation = self._evaluator.evaluate(version)
        self._monitor.phase(self._evaluator.role, "")
        path = self._directory.samples(version)
        self._write_rows(path.with_name(f"eval-{path.name}"), evaluation.samples)
        self._write_rows(self._directory.answers(version), evaluation.answers)
        return evaluation.metrics | {"timing/evaluate": time.monotonic() - started}

    def checkpoint(self, steps_done: int) -> None:
        """Save the state after `steps_done` steps, unless it is saved already."""
        if self._saved == steps_done:
            return
        self._monitor.phase(self._working[0], "saving a checkpoint")
        self._save(State(next_step=steps_done, reference_version=self._version_of(self._decision)))
        self._saved = steps_done

    def paused(self, index: int, decision: Decision | None, progress: Progress) -> None:
        """Save the state between two updates of a step, while the learners pause."""
        self._monitor.phase(self._working[0], "saving a checkpoint")
        self._save(
            State(
                next_step=index,
                reference_version=self._version_of(decision),
                updates=progress.updates,
                stats=asdict(progress.stats),
                decision=None if decision is None else asdict(decision),
                critic=None if progress.critic is None else asdict(progress.critic),
            )
        )
        self._saved = index
        self._monitor.phase(*self._working)

    def halted(self) -> None:
        """Give up the rollouts of the step in progress that have not arrived; the next attempt samples the same ones.

        Where steps are sampled ahead, it would sample them from newer weights: a checkpoint then waits for them.
        """
        if self._rollouts is not None and not self._config.max_staleness:
            self._rollouts.abandon()

    def _version_of(self, decision: Decision | None) -> int:
        """Return the version of the reference after a decision; without one, the version at the resume point."""
        return self._reference_version if decision is None else decision.version

    def _save(self, state: State) -> None:
        with self._pace.saving():
            if self._rollouts is None:
                self._checkpointer.save(state)
            else:
                self._checkpointer.save(state, meanwhile=self._rollouts.settle)
                oldest, uploads = self._checkpointer.oldest(), self._attempt.uploads
                self._rollouts.drop(oldest if uploads is None else uploads.oldest(oldest))
            self.models.drop()
        updates = {"updates": state.updates} if state.updates else {}
        self._attempt.record(Fact.checkpoint, step=state.next_step, reference=state.reference_version, **updates)
        if self._attempt.uploads is not None:
            self._attempt.uploads.saved(self._ledger.records)

    # -------------------------------------------------------------------------------------------- files

    def _write_round(self, step: int, metrics: Metrics) -> None:
        directory = self._directory.round(step)
        disk.make_directory(directory)
        body = {
            "round": step,
            "policy_version": step - 1,
            "reference": None if self._decision is None else asdict(self._decision),
            "settings": round_values(self._config, step - 1),
            "metrics": {name: value for name, value in metrics.items() if name.startswith(ROUND_METRICS)},
        }
        disk.write_atomic(directory / "round.json", json.dumps(body, indent=2))

    def _write_rows(self, path: Path, rows: Sequence[Sample] | Sequence[Answer]) -> None:
        if not rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), path)


def _scorer_metrics(scores: Scores) -> Metrics:
    """Return mean and standard deviation of each scorer, under TRL's names.

    A scorer that gave no score to any completion is left out.
    """
    metrics: Metrics = {"timing/score": scores.seconds}
    for name, values in scores.by_scorer.items():
        given = values[np.isfinite(values)]
        if len(given):
            metrics |= {f"rewards/{name}/mean": float(given.mean()), f"rewards/{name}/std": float(given.std())}
    return metrics | {f"rewards/{name}": number for name, number in scores.usage.items()}
