"""Training of policy and critic on one step's batch, at the same time.

consumes   handles to experience, scores and reference log-probabilities
produces   metrics
waits for  all ranks
unblocks   publication
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.pipeline.sources import PendingBatch
from orchestrator.rundir.manifest import lost
from workers.files.shared_storage import eventually, not_seen
from workers.learner import Learner
from workers.spans import Progress, UpdateRange, cut_short, merge_spans, of_update
from workers.stats import Metrics, StepStats, flat, merge_ranks
from workers.types import TokenShard


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundStart:
    """Start of a round in the learners. Example: `RoundStart(settings={"beta": 0.05}, base="runs/a/base")`."""

    settings: Mapping[str, Any]  # of the algorithm, in place of those of the run
    base: str | None  # directory of the state that the round's updates start from; None: the current one


class Learners:
    """Policy gang, and the critic gang if the algorithm has a critic."""

    def __init__(
        self,
        policy: Gang[Learner],
        critic: Gang[Learner] | None,
        *,
        needs_old: bool = False,
        every_updates: int | None = None,
        progress: Progress | None = None,
        rounds: Callable[[int], RoundStart] | None = None,
        is_shared: bool = True,
    ) -> None:
        """Create the phase.

        Args:
            needs_old: the loss needs the policy's log-probabilities from before the step's first update.
            every_updates: number of updates between two pauses of a step; None: no pause.
            progress: progress of the first step, when resuming in the middle of it; None: start at its first update.
            rounds: returns what differs from round to round; None: nothing does.
            is_shared: all machines see what rank 0 writes; False: it goes to object storage.
        """
        self.policy, self.critic, self._needs_old = policy, critic, needs_old
        self._every, self._progress, self._rounds = every_updates, progress, rounds
        self._is_shared = is_shared

    def gangs(self) -> dict[str, Gang[Learner]]:
        """Return the gangs whose state a checkpoint holds, by the subdirectory that is theirs."""
        return {"policy": self.policy} | ({"critic": self.critic} if self.critic else {})

    def close(self) -> None:
        """End the gangs' processes in order. Waits for all ranks."""
        wait([handle for gang in self.gangs().values() for handle in gang.all(Learner.close)])

    def learn(
        self,
        step: int,
        pending: PendingBatch,
        reference: Sequence[Handle[TokenShard]] | None,
        pairs_file: str | None,
        pause: Callable[[Progress], None] = lambda progress: None,
        updated: Callable[[int, int, Metrics], None] = lambda update, num_updates, metrics: None,
        stop: Callable[[], bool] = lambda: False,
        halts: Callable[[], bool] = lambda: False,
    ) -> Metrics | None:
        """Run all updates of a step, one call each, and return the step's metrics; None if it halted between two.

        Args:
            pause: called between two updates, after every `every_updates` of them.
            updated: called after each update with its number, from 1, the step's number of updates, and its metrics.
            stop: asked after each update; true: leave out the updates that have not been requested.
            halts: asked after each update; true: pause, and leave the other updates to the next attempt.
        """
        if self._rounds is not None:
            begun = self._rounds(step)
            wait(self.policy.all(Learner.begin_round, begun.settings, begun.base))
        progress, self._progress = self._progress, None
        done = 0 if progress is None else progress.updates
        # Statistics of the step's updates so far. Merged one by one, so that a resumed step gives the same to the bit.
        stats, critic = (None, None) if progress is None else (progress.stats, progress.critic)
        inputs = self._inputs(pending, reference, is_begun=done > 0)
        calls = self._begin(step, inputs, pairs_file, UpdateRange(first=done, count=1))
        while True:
            update = merge_ranks(wait(calls.policy))
            if calls.critic:
                critic = _after(critic, merge_ranks(wait(calls.critic)))
            stats = _after(stats, update)
            made, left = int(update.facts["num_updates"]), update.left
            done += made
            stopping = bool(left) and stop()
            halting = bool(left) and not stopping and halts()
            pausing = halting or bool(left and self._every and done % self._every == 0)
            if left and not pausing and not stopping:  # the next update is on its way while this one is recorded
                calls = self._go_on(step, done)
            if made:
                updated(done, done + left, of_update(update, done + left))
            if not left or stopping:
                break
            if pausing:
                pause(Progress(updates=done, stats=stats, critic=critic))
                if halting:
                    return None
                calls = self._go_on(step, done)
        if pairs_file is not None and self._is_shared:
            self._require_round_files(Path(pairs_file).parent)
        metrics = flat(cut_short(stats, done))
        for name, value in flat(critic).items() if critic is not None else ():
            metrics[name if name.startswith(("loss/", "val/")) else f"critic/{name}"] = value
        if pending.resamples is not None:
            metrics["sampling/resamples"] = float(pending.resamples)
        return metrics

    def _require_round_files(self, directory: Path) -> None:
        """Check that what rank 0 wrote of a round (its pairs, if it has any) is here. Raise FilesLost if not."""
        sizes = self.policy.one(Learner.sizes_in, str(directory), "*.parquet").result()
        if not eventually(lambda: not not_seen(directory, sizes)):
            raise lost(f"policy rank 0 wrote {', '.join(not_seen(directory, sizes))}, not seen from here", directory)

    def _inputs(
        self, pending: PendingBatch, reference: Sequence[Handle[TokenShard]] | None, *, is_begun: bool
    ) -> _Inputs:
        """Request what the learners themselves compute for each chunk, before the step's first update.

        In a step that an earlier attempt has begun (`is_begun`) their checkpoint holds it.
        """
        values = old = None
        if is_begun:
            return _Inputs(scored=(pending.experience, pending.scores, reference, None), old=None)
        if self.critic:
            values = [h for chunk in pending.chunks for h in self.critic.all(Learner.infer, chunk.experience)]
        if self._needs_old:  # a rank executes its calls in order
            old = [h for c in pending.chunks for h in self.policy.all(Learner.infer, c.experience, as_sampled=True)]
        return _Inputs(scored=(pending.experience, pending.scores, reference, values), old=old)

    def _begin(self, step: int, inputs: _Inputs, pairs_file: str | None, span: UpdateRange) -> _Calls:
        policy = self.policy.all(Learner.step, step, *inputs.scored, pairs_file, inputs.old, span)
        critic = self.critic.all(Learner.step, step, *inputs.scored, None, inputs.old, span) if self.critic else ()
        return _Calls(policy=policy, critic=critic)

    def _go_on(self, step: int, done: int) -> _Calls:
        span = UpdateRange(first=done, count=1)
        critic = self.critic.all(Learner.more, step, span) if self.critic else ()
        return _Calls(policy=self.policy.all(Learner.more, step, span), critic=critic)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inputs:
    """Arguments of `Learner.step`: experience, scores, reference and values; and the policy's log-probabilities."""

    scored: tuple[Any, ...]
    old: Sequence[Handle[TokenShard]] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Calls:
    """One update, requested from every rank."""

    policy: Sequence[Handle[StepStats]]
    critic: Sequence[Handle[StepStats]]


def _after(before: StepStats | None, update: StepStats) -> StepStats:
    """Combine the statistics of earlier updates of a step with those of the next one."""
    return update if before is None else merge_spans([before, update])
