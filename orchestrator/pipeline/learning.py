"""Policy and critic learn from a step's evidence, at the same time.

consumes   handles to experience, scores and reference log-probabilities
produces   metrics
waits for  all ranks
unblocks   publication
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.pipeline.sources import Arrival
from workers.learner import Learner
from workers.types import Metrics, TokenShare, merge_stats


class Learners:
    """The policy gang, and the critic's where the algorithm has one."""

    def __init__(self, policy: Gang[Learner], critic: Gang[Learner] | None, *, needs_old: bool = False) -> None:
        self.policy, self.critic, self._needs_old = policy, critic, needs_old

    def learn(
        self, step: int, arrival: Arrival, reference: Sequence[Handle[TokenShare]] | None, pairs_file: str | None
    ) -> Metrics:
        values = self.critic.all(Learner.infer, arrival.experience) if self.critic else None
        evidence = (arrival.experience, arrival.scores, reference, values)
        # A rank works off its calls in order: what it infers here is from before the step's first update.
        old = self.policy.all(Learner.infer, arrival.experience, as_sampled=True) if self._needs_old else None
        learned = self.policy.all(Learner.step, step, *evidence, pairs_file, old)
        criticised = self.critic.all(Learner.step, step, *evidence, None, old) if self.critic else []
        metrics = merge_stats(wait(learned))
        if criticised:
            for name, value in merge_stats(wait(criticised)).items():
                metrics[name if name.startswith(("loss/", "val/")) else f"critic/{name}"] = value
        if arrival.resamples is not None:
            metrics["sampling/resamples"] = float(arrival.resamples)
        return metrics
