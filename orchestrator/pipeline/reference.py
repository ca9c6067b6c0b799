"""The reference: its log-probabilities for each step, and the question whether it is still the right one.

consumes   the step's experience
produces   handles to reference log-probabilities, and a Decision: keep, or refresh from the current policy
waits for  the measured drift, only where the decision hangs on it
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
    """What became of the reference before a step, and why. `drift` is None when nothing had to be measured.

    Example: `Decision(action="refresh", reason="KL 1.3 > max_kl 1", version=2, drift=Drift(…))`.
    """

    action: Literal["keep", "refresh"]
    reason: str
    version: int  # of the policy that the reference holds from now on
    drift: Drift | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """From what `asdict` made of one."""
        return cls(**{**told, "drift": None if told["drift"] is None else Drift(**told["drift"])})


def decide(config: ReferenceConfig, *, step: int, version: int, measure: Callable[[], Drift]) -> Decision:
    """The pure rule. `measure` is called only when the answer hangs on it."""
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
    """Gives each step its reference log-probabilities; or what a whole distribution is read off, hidden states."""

    version: int

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        """Experience of a step to come is on its way; what can be done about it already may be begun."""
        ...

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> Sequence[Handle[TokenShard]] | None: ...

    def decision(self) -> Decision | None: ...


class NoReference:
    """For algorithms without a reference."""

    version = 0

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        pass

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        return None

    def decision(self) -> None:
        return None


class AdapterOffReference:
    """The model under the policy's adapters is the reference: the policy gang answers for it."""

    version = 0

    def __init__(self, policy: Gang[Learner], *, temperature: float, cache: bool) -> None:
        """`temperature` is that of the loss."""
        self._policy, self._temperature, self._cache = policy, temperature, cache

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        pass  # the policy gang is busy learning the step before

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> Sequence[Handle[TokenShard]]:
        return self._policy.all(Learner.base_logprobs, experience, self._temperature, self._cache)

    def decision(self) -> Decision:
        return Decision(action="keep", reason="it is the model under the adapters", version=self.version)


class ReferenceGang:
    """A reference gang whose weights may be replaced by the current policy's, by way of a directory."""

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
        """`temperature` is that of the loss; `sampling_temperature` the engine's, None: the same. `decided`: what
        became of the reference before the first step, where a run goes on in the middle of it."""
        self._reference, self._policy, self._config = reference, policy, config
        self._temperature, self._directory, self.version = temperature, directory, version
        self._sampling_temperature = sampling_temperature or temperature
        self._decision, self._decided = decided, decided is not None
        self._begun: dict[int, Sequence[Handle[TokenShard]]] = {}
        reference.when_restarted(self._bring)
        self._bring(reference)

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        if self._config.refresh == "never":  # else the reference may be another one when the step comes
            self._begun[step] = self._score(experience, self._temperature)

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> Sequence[Handle[TokenShard]]:
        shares = self._begun.pop(step, None)
        if self._decided:
            self._decided = False
            return shares if shares is not None else self._score(experience, self._temperature)

        def measure() -> Drift:
            nonlocal shares
            # Of two distributions at one temperature: what was sampled at 0.7 is far from any reference at 1.
            sampled = self._score(experience, self._sampling_temperature)
            if self._sampling_temperature == self._temperature:
                shares = sampled
            return self._reference.one(Reference.drift, experience, sampled).result()

        self._decision = decide(self._config, step=step, version=self.version, measure=measure)
        if self._decision.action == "refresh":
            self._refresh(step)
            shares = None
        return shares if shares is not None else self._score(experience, self._temperature)

    def decision(self) -> Decision | None:
        return self._decision

    def _score(self, experience: Sequence[Handle[Experience]], temperature: float) -> Sequence[Handle[TokenShard]]:
        return self._reference.all(Reference.logprobs, experience, temperature, self.version)

    def _bring(self, reference: Gang[Reference]) -> None:
        """To the version that the run holds; it is started with the model that the policy started from."""
        if self.version:
            wait(reference.all(Reference.load, str(self._directory(self.version)), self.version))

    def _refresh(self, version: int) -> None:
        directory = self._directory(version)
        wait(self._policy.all(Learner.export, str(disk.fresh(directory))))
        disk.publish(directory)
        wait(self._reference.all(Reference.load, str(directory), version))
        self.version = version


class Teacher:
    """A gang with another model that never changes: its log-probabilities, or its hidden states at each token."""

    version = 0

    def __init__(self, teacher: Gang[Reference], *, temperature: float, states: bool) -> None:
        """`temperature` is that of the log-probabilities; `states` asks for hidden states instead."""
        self._teacher, self._temperature, self._states = teacher, temperature, states
        self._begun: dict[int, Sequence[Handle[TokenShard]]] = {}

    def begin(self, step: int, experience: Sequence[Handle[Experience]]) -> None:
        self._begun[step] = self._ask(experience)

    def logprobs(self, step: int, experience: Sequence[Handle[Experience]]) -> Sequence[Handle[TokenShard]]:
        begun = self._begun.pop(step, None)
        return self._ask(experience) if begun is None else begun

    def decision(self) -> None:
        return None

    def _ask(self, experience: Sequence[Handle[Experience]]) -> Sequence[Handle[TokenShard]]:
        if self._states:
            return self._teacher.all(Reference.hidden, experience)
        return self._teacher.all(Reference.logprobs, experience, self._temperature)


def metrics_of(decision: Decision | None, step: int) -> Metrics:
    if decision is None:
        return {}
    drift = {f"drift/{name}": float(value) for name, value in asdict(decision.drift).items()} if decision.drift else {}
    return {"ref/age": float(step - decision.version), "ref/refreshed": float(decision.action == "refresh"), **drift}
