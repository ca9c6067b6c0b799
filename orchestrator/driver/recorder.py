"""What a step leaves behind: facts in the ledger, metrics, samples, evaluations, checkpoints.

    planned ─► trained (with the reference's decision) ─► committed (evaluated, written down, checkpointed)

The loop counts from 0; files, ledger and metrics count turns from 1: turn n makes version n, and row 0 of the metrics
is the model before the first turn.
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
from orchestrator.driver.checkpoint import Checkpointer, Pace
from orchestrator.driver.rollouts import Rollouts
from orchestrator.evaluation.answer import Answer
from orchestrator.evaluation.held_out import Evaluator
from orchestrator.monitor import Monitor
from orchestrator.pipeline.reference import Decision
from orchestrator.pipeline.sources import PendingBatch
from orchestrator.rundir.cost import Meter
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger
from orchestrator.rundir.manifest import State
from workers.spans import Progress
from workers.types import Metrics, Sample, Scores, merge_scores


class Recorder:
    """Writes down one attempt of a run."""

    def __init__(
        self,
        directory: RunDirectory,
        ledger: Ledger,
        monitor: Monitor,
        checkpointer: Checkpointer,
        held_out: Evaluator | None,
        *,
        attempt: int,
        steps_done: int,
        num_tokens: float,
        max_steps: int,
        evaluate_every: int | None,
        pace: Pace,
        rollouts: Rollouts | None,
        rounds: bool,
        reference_version: int = 0,
        max_device_seconds: float | None = None,
    ) -> None:
        self._directory, self._ledger, self._monitor = directory, ledger, monitor
        self._checkpointer, self._held_out = checkpointer, held_out
        self._attempt, self._max_steps = attempt, max_steps
        self.steps_done = steps_done  # committed so far
        self._num_tokens = num_tokens  # of all turns so far
        self._evaluate_every, self._pace = evaluate_every, pace
        self._rollouts = rollouts  # None: the experience is a dataset's
        self._rounds = rounds  # a step is a round, whose pairs and decision are kept
        self._saved = steps_done or -1  # the next_step of the newest checkpoint; nothing is saved before the first
        self._warned = False  # of a step that learned nothing
        self._meter, self._budget = Meter(ledger.records), max_device_seconds
        self.is_spent = self._over_budget()  # asked once a step: what comes last is then known when it is committed
        self._decision: Decision | None = None
        self._reference_version = reference_version  # what the run went on with

    def _over_budget(self) -> bool:
        self._meter.read(self._ledger.records)
        return self._budget is not None and self._meter.device_seconds >= self._budget

    # -------------------------------------------------------------------------------------------- of a step

    def baseline(self) -> None:
        """Evaluate the model as it was given."""
        if self._held_out is not None:
            self._monitor.step(0, self.evaluate(0), ())

    def planned(self, step: int) -> None:
        self._ledger.append(Fact.planned, attempt=self._attempt, step=step + 1)
        if self._rollouts is not None:
            self._monitor.phase("rollout", "generating")

    def arrived(self, step: int, pending: PendingBatch) -> None:
        """Returns when the batch of this step is complete; what is sampled from now on is for a later one."""
        if self._rollouts is not None:
            self._rollouts.record(step)
        else:
            pending.wait()
            self._ledger.append(Fact.scored, attempt=self._attempt, step=step + 1)
        if self._rollouts is not None:
            self._monitor.phase("rollout", "")
        self._monitor.phase("policy", "learning")

    def pairs_file(self, step: int) -> str | None:
        """Where the policy writes a round's pairs."""
        return str(self._directory.round(step + 1) / "pairs.parquet") if self._rounds else None

    def trained(self, step: int, decision: Decision | None) -> None:
        self._monitor.phase("policy", "")
        self._decision = decision
        reference = None if decision is None else decision.version
        self._ledger.append(Fact.trained, attempt=self._attempt, step=step + 1, reference=reference)

    def committed(self, step: int, metrics: Metrics, scores: Sequence[Handle[Scores]] | None) -> None:
        done = step + 1
        self._ledger.append(Fact.published, attempt=self._attempt, step=done, version=done)
        samples: tuple[Sample, ...] = ()
        if scores is not None:
            scored = merge_scores(wait(scores))
            samples = scored.samples
            metrics |= _scorer_metrics(scored)
        metrics["throughput/tokens_per_s"] = metrics.get("num_tokens", 0.0) / metrics["timing/step"]
        self._num_tokens += metrics.get("num_tokens", 0.0)
        metrics["num_tokens"] = self._num_tokens
        self.is_spent = self._over_budget()
        evaluated: dict[str, float] = {}
        if self._due(done, self._evaluate_every):
            metrics |= self.evaluate(done)
            evaluated = {"evaluating_s": round(metrics.get("timing/evaluate", 0.0), 3)}
        self._ledger.fence()
        if self._rounds:
            metrics["round/index"] = float(done)
            self._write_round(done, metrics)
        self._write_rows(self._directory.samples(done), samples)
        self._monitor.step(done, metrics, samples)
        if metrics.get("num_updates") == 0 and not self._warned:  # once; the end of the run tells the share
            self._monitor.note(f"step {done} learned nothing: no group of completions had rewards that differ enough")
            self._warned = True
        self._ledger.append(Fact.committed, attempt=self._attempt, step=done, **evaluated)
        self.steps_done = done
        if self._due(done, None) or self._pace.is_due(done):
            self.checkpoint(done)

    def _due(self, done: int, every: int | None) -> bool:
        return done == self._max_steps or self.is_spent or (every is not None and done % every == 0)

    # -------------------------------------------------------------------------------------------- now and then

    def evaluate(self, version: int) -> Metrics:
        """Held-out metrics of `version`, which the engines hold, or will when they have worked off their calls."""
        if self._held_out is None:
            return {}
        self._monitor.phase(self._held_out.role, f"evaluating version {version}")
        started = time.monotonic()
        found = self._held_out.evaluate()
        self._monitor.phase(self._held_out.role, "")
        path = self._directory.samples(version)
        self._write_rows(path.with_name(f"eval-{path.name}"), found.samples)
        self._write_rows(self._directory.answers(version), found.answers)
        return found.metrics | {"timing/evaluate": time.monotonic() - started}

    def checkpoint(self, next_step: int) -> None:
        """Save the state from which `next_step` follows, once."""
        if self._saved == next_step:
            return
        self._monitor.phase("policy", "saving a checkpoint")
        reference = self._reference_version if self._decision is None else self._decision.version
        self._save(State(next_step=next_step, reference_version=reference))
        self._saved = next_step

    def paused(self, step: int, decision: Decision | None, progress: Progress) -> None:
        """The learners pause in the middle of a step: save the state from which its next update follows."""
        reference = self._reference_version if decision is None else decision.version
        told = None if decision is None else asdict(decision)
        stats = asdict(progress.stats)
        updates = progress.updates
        self._save(State(next_step=step, reference_version=reference, updates=updates, stats=stats, decision=told))
        self._monitor.phase("policy", "learning")

    def _save(self, state: State) -> None:
        with self._pace.saving():
            if self._rollouts is None:
                self._checkpointer.save(state)
            else:
                self._checkpointer.save(state, meanwhile=self._rollouts.settle)
                self._rollouts.drop(self._checkpointer.oldest())
        within = {"updates": state.updates} if state.updates else {}
        self._ledger.append(
            Fact.checkpoint, attempt=self._attempt, step=state.next_step, reference=state.reference_version, **within
        )

    # -------------------------------------------------------------------------------------------- files

    def _write_round(self, index: int, metrics: Metrics) -> None:
        directory = self._directory.round(index)
        disk.make_directory(directory)
        decision = None if self._decision is None else asdict(self._decision)
        kept = ("pairs/", "rewards/", "eval/", "objective/", "reward", "loss", "logps/")
        told = {name: value for name, value in metrics.items() if name.startswith(kept)}
        disk.write_atomic(
            directory / "round.json",
            json.dumps({"round": index, "policy_version": index - 1, "reference": decision, "metrics": told}, indent=2),
        )

    def _write_rows(self, path: Path, rows: Sequence[Sample] | Sequence[Answer]) -> None:
        if not rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), path)


def _scorer_metrics(scores: Scores) -> Metrics:
    """Mean and spread of each scorer, under TRL's names; a scorer that passed on every completion has none."""
    metrics: Metrics = {"timing/score": scores.seconds}
    for name, values in scores.by_scorer.items():
        given = values[np.isfinite(values)]
        if len(given):
            metrics |= {f"rewards/{name}/mean": float(given.mean()), f"rewards/{name}/std": float(given.std())}
    return metrics
