"""The reference policy: its log-probabilities for each step, and the decision when to refresh it.

consumes   the step's experience
produces   handles to reference log-probabilities, and a Decision: keep, or refresh from the current policy
waits for  the measured drift, only if the decision depends on it
unblocks   the learner
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from orchestrator import disk
from orchestrator.cluster.base import Gang, Handle, wait
from workers.config import ReferenceConfig
from workers.learner import Learner
from workers.reference import Reference
from workers.types import Drift, Experience, Metrics, TokenShard


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Decision to keep or to refresh the reference before a step. `drift` is None if it was not measured.

    Example: `Decision(action="refresh", reason="KL 1.3 > max_kl 1", version=2, drift=Drift(…))`.
    """

    action: Literal["keep", "refresh"]
    reason: str
    version: int  # version of the policy that the reference holds from now on
    drift: Drift | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return the decision that `asdict` turned into `fields`."""
        return cls(**{**fields, "drift": None if fields["drift"] is None else Drift(**fields["drift"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceLogprobs:
    """Reference log-probabilities of one step, and the decision on the reference that preceded them.

    Example: `ReferenceLogprobs(handles=[…], decision=Decision(action="keep", …))`.
    """

    handles: Sequence[Handle[TokenShard]] | None = None  # None: the algorithm uses no reference
    decision: Decision | None = None  # None: there is nothing to decide


def decide(config: ReferenceConfig, *, step: int, version: int, measure: Callable[[], Drift]) -> Decision:
    """Decide whether to refresh the reference before `step`. `measure` is called only if the decision depends on it."""
    if step == version:
        return Decision(action="keep", reason="it holds the current policy", version=version)
    if config.refresh == "never":
        return Decision(action="keep", reason="reference.refresh is never", version=version)
    if config.refresh == "every_round":
        return Decision(action="refresh", reason="reference.refresh is every_round", version=step)
    drift = measure()
    over = drift.kl > config.max_kl
    return Decision(
        action="refresh" if over else "keep",
        reason=f"KL {drift.kl:.3g} {'>' if over else '<='} max_kl {config.max_kl:g}",
        version=step if over else version,
        drift=drift,
    )


class ReferencePolicy(Protocol):
    """Source of each step's reference log-probabilities, or of hidden states from which they are computed."""

    version: int

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        """Start scoring experience of a later step, which has been requested, if the reference will not change."""
        ...

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> ReferenceLogprobs: ...


class NoReference:
    """Reference policy of algorithms without one."""

    version = 0

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        pass

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> ReferenceLogprobs:
        return ReferenceLogprobs()


class AdapterOffReference:
    """Reference that is the model under the policy's adapters, scored by the policy gang."""

    version = 0

    def __init__(self, policy: Gang[Learner], *, temperature: float, cache: bool) -> None:
        """Create the reference. `temperature` is that of the loss."""
        self._policy, self._temperature, self._cache = policy, temperature, cache

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        pass  # the policy gang is busy training on the step before

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> ReferenceLogprobs:
        handles = self._policy.all(Learner.base_logprobs, experience, self._temperature, self._cache)
        decision = Decision(action="keep", reason="it is the model under the adapters", version=self.version)
        return ReferenceLogprobs(handles=handles, decision=decision)


class ReferenceGang:
    """Reference with a gang of its own. A refresh loads the current policy, by way of a directory."""

    def __init__(
        self,
        reference: Gang[Reference],
        policy: Gang[Learner],
        config: ReferenceConfig,
        *,
        temperature: float,
        sampling_temperature: float | None = None,
        directory: Callable[[int], Path],
        version: int = 0,
        decided: Decision | None = None,
    ) -> None:
        """Load the reference that the run holds.

        Args:
            temperature: of the loss.
            sampling_temperature: of the rollout engine (default: `temperature`).
            directory: returns the directory of a version of the reference.
            version: version of the policy that the reference holds.
            decided: decision already taken for the first step, when resuming in the middle of it.
        """
        self._reference, self._policy, self._config = reference, policy, config
        self._temperature, self._directory, self.version = temperature, directory, version
        self._sampling_temperature = sampling_temperature or temperature
        self._decided = decided
        self._begun: dict[int, Sequence[Handle[TokenShard]]] = {}
        reference.when_restarted(self._restore_state)
        self._restore_state(reference)

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        if self._config.refresh == "never":  # else the reference may be refreshed before the step
            self._begun[step] = self._score(experience, self._temperature)

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> ReferenceLogprobs:
        shards = self._begun.pop(step, None)

        def measure() -> Drift:
            nonlocal shards
            # Drift compares distributions at the same temperature: samples at 0.7 are far from any reference at 1.
            sampled = self._score(experience, self._sampling_temperature)
            if self._sampling_temperature == self._temperature:
                shards = sampled
            return self._reference.one(Reference.drift, experience, sampled).result()

        decision, self._decided = self._decided, None
        if decision is None:
            decision = decide(self._config, step=step, version=self.version, measure=measure)
            if decision.action == "refresh":
                self._refresh(step)
                shards = None
        handles = shards if shards is not None else self._score(experience, self._temperature)
        return ReferenceLogprobs(handles=handles, decision=decision)

    def _score(self, experience: Sequence[Handle[Experience]], temperature: float) -> Sequence[Handle[TokenShard]]:
        return self._reference.all(Reference.logprobs, experience, temperature, self.version)

    def _restore_state(self, reference: Gang[Reference]) -> None:
        """Load the version that the run holds. A new worker holds the model that the policy started from."""
        if self.version:
            wait(reference.all(Reference.load, str(self._directory(self.version)), self.version))

    def _refresh(self, version: int) -> None:
        directory = self._directory(version)
        wait(self._policy.all(Learner.export, str(disk.fresh(directory))))
        disk.publish(directory)
        wait(self._reference.all(Reference.load, str(directory), version))
        self.version = version


class Teacher:
    """Reference that is another model and never changes: its log-probabilities, or its hidden states at each token."""

    version = 0

    def __init__(self, teacher: Gang[Reference], *, temperature: float, states: bool) -> None:
        """Create the reference: log-probabilities at `temperature`, or hidden states if `states` is true."""
        self._teacher, self._temperature, self._states = teacher, temperature, states
        self._begun: dict[int, Sequence[Handle[TokenShard]]] = {}

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        self._begun[step] = self._score(experience)

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> ReferenceLogprobs:
        begun = self._begun.pop(step, None)
        return ReferenceLogprobs(handles=self._score(experience) if begun is None else begun)

    def _score(self, experience: Sequence[Handle[Experience]]) -> Sequence[Handle[TokenShard]]:
        if self._states:
            return self._teacher.all(Reference.hidden, experience)
        return self._teacher.all(Reference.logprobs, experience, self._temperature)


def metrics_of(decision: Decision | None, step: int) -> Metrics:
    if decision is None:
        return {}
    drift = {f"drift/{name}": float(value) for name, value in asdict(decision.drift).items()} if decision.drift else {}
    return {"ref/age": float(step - decision.version), "ref/refreshed": float(decision.action == "refresh"), **drift}
