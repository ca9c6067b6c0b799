"""Policy and critic learn from a step's evidence, at the same time.

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
    """The policy gang, and the critic's where the algorithm has one."""

    def __init__(
        self,
        policy: Gang[Learner],
        critic: Gang[Learner] | None,
        *,
        needs_old: bool = False,
        every_updates: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`every_updates`: how many of them a step makes between two pauses; None: all. `progress`: how far the first
        step had come when its checkpoint was made; None: it begins."""
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
        """All updates of a step. `pause` is called between two spans of them, while nobody learns."""
        values = self.critic.all(Learner.infer, pending.experience) if self.critic else None
        scored = (pending.experience, pending.scores, reference, values)
        # A rank works off its calls in order: what it infers here is from before the step's first update.
        old = self.policy.all(Learner.infer, pending.experience, as_sampled=True) if self._needs_old else None
        progress, self._progress = self._progress, None
        done = 0 if progress is None else progress.updates
        learned = self.policy.all(
            Learner.step, step, *scored, pairs_file, old, UpdateRange(first=done, count=self._every)
        )
        criticised = self.critic.all(Learner.step, step, *scored, None, old) if self.critic else []
        stats = merge_ranks(wait(learned))
        if progress is not None:
            stats = merge_spans(progress.stats, stats)
        while stats.left:
            done += self._every or 0
            pause(Progress(updates=done, stats=stats))
            learned = self.policy.all(
                Learner.step, step, *scored, None, old, UpdateRange(first=done, count=self._every)
            )
            stats = merge_spans(stats, merge_ranks(wait(learned)))
        metrics = flat(stats)
        if criticised:
            for name, value in merge_stats(wait(criticised)).items():
                metrics[name if name.startswith(("loss/", "val/")) else f"critic/{name}"] = value
        if pending.resamples is not None:
            metrics["sampling/resamples"] = float(pending.resamples)
        return metrics
