"""Training of policy and critic on one step's batch, at the same time.

consumes   handles to experience, scores and reference log-probabilities
produces   metrics
waits for  all ranks
unblocks   publication
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.pipeline.sources import PendingBatch
from workers.learner import Learner
from workers.spans import Progress, UpdateRange, merge_spans
from workers.types import Metrics, TokenShard, flat, merge_ranks, merge_stats


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
    ) -> None:
        """Create the phase.

        Args:
            needs_old: the loss needs the policy's log-probabilities from before the step's first update.
            every_updates: number of updates between two pauses of a step; None: no pause.
            progress: progress of the first step, when resuming in the middle of it; None: start at its first update.
        """
        self.policy, self.critic, self._needs_old = policy, critic, needs_old
        self._every, self._progress = every_updates, progress

    def learn(
        self,
        step: int,
        pending: PendingBatch,
        reference: Sequence[Handle[TokenShard]] | None,
        pairs_file: str | None,
        pause: Callable[[Progress], None] = lambda progress: None,
    ) -> Metrics:
        """Run all updates of a step and return its metrics. `pause` is called between two spans of updates."""
        values = self.critic.all(Learner.infer, pending.experience) if self.critic else None
        scored = (pending.experience, pending.scores, reference, values)
        # A rank executes its calls in order: this runs before the step's first update.
        old = self.policy.all(Learner.infer, pending.experience, as_sampled=True) if self._needs_old else None
        progress, self._progress = self._progress, None
        done = 0 if progress is None else progress.updates
        policy_stats = self.policy.all(
            Learner.step, step, *scored, pairs_file, old, UpdateRange(first=done, count=self._every)
        )
        critic_stats = self.critic.all(Learner.step, step, *scored, None, old) if self.critic else []
        stats = merge_ranks(wait(policy_stats))
        if progress is not None:
            stats = merge_spans(progress.stats, stats)
        while stats.left:
            done += self._every or 0
            pause(Progress(updates=done, stats=stats))
            policy_stats = self.policy.all(
                Learner.step, step, *scored, None, old, UpdateRange(first=done, count=self._every)
            )
            stats = merge_spans(stats, merge_ranks(wait(policy_stats)))
        metrics = flat(stats)
        if critic_stats:
            for name, value in merge_stats(wait(critic_stats)).items():
                metrics[name if name.startswith(("loss/", "val/")) else f"critic/{name}"] = value
        if pending.resamples is not None:
            metrics["sampling/resamples"] = float(pending.resamples)
        return metrics
