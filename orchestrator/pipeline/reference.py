"""The reference policy: its log-probabilities for each step, and the decision when to refresh it.

consumes   the chunks of a step, as they are requested
produces   handles to reference log-probabilities, and a Decision: keep, or refresh from the current policy
waits for  the step's first chunk, on which the drift is measured before the decision
unblocks   the learner
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.pipeline.sources import Chunk
from workers.config import ReferenceConfig
from workers.learner import Learner
from workers.reference import Reference
from workers.stats import Metrics
from workers.types import Drift, Experience, TokenShard
from workers.weights import Average

Write = Callable[[Path, Average | None], None]
"""Function that writes the policy, or its average with an earlier model, to a directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Decision on the reference before a step: keep it, refresh it from the policy, or distrust the policy.

    `drift` is None if it was not measured. Example: `Decision(action="refresh", reason="KL 1.3 ± 0.1 > max_kl 1",
    version=2, drift=Drift(…))`.
    """

    action: Literal["keep", "refresh", "roll_back", "abort"]
    reason: str
    version: int  # version of the policy that the reference holds from now on
    drift: Drift | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return the decision that `asdict` turned into `fields`."""
        return cls(**{**fields, "drift": None if fields["drift"] is None else Drift(**fields["drift"])})


class Drifted(Exception):
    """The policy is so far from the reference that the round before is taken back, or the run ends."""

    def __init__(self, step: int, decision: Decision) -> None:
        super().__init__(decision.reason)
        self.step, self.decision = step, decision


def decide(config: ReferenceConfig, *, step: int, version: int, drift: Drift | None) -> Decision:
    """Decide what to do with the reference before `step`. `drift` is None if nothing depends on it.

    A limit counts as exceeded if the lower bound of the KL's confidence interval exceeds it.
    """

    def over(limit: float | None, name: str) -> str | None:
        if drift is None or limit is None or drift.interval[0] <= limit:
            return None
        return f"KL {drift.kl:.3g} ± {drift.kl - drift.interval[0]:.2g} > {name} {limit:g}"

    if reason := over(config.abort_kl, "abort_kl"):
        return Decision(action="abort", reason=reason, version=version, drift=drift)
    if reason := over(config.roll_back_kl, "roll_back_kl"):
        return Decision(action="roll_back", reason=reason, version=version, drift=drift)
    if step == version:
        return Decision(action="keep", reason="it holds the current policy", version=version, drift=drift)
    if config.refresh == "never":
        return Decision(action="keep", reason="reference.refresh is never", version=version, drift=drift)
    if config.refresh == "ema":
        reason = f"reference.refresh is ema: {1 - config.ema_alpha:g}·reference + {config.ema_alpha:g}·policy"
        return Decision(action="refresh", reason=reason, version=step, drift=drift)
    if config.refresh == "every_round":
        return Decision(action="refresh", reason="reference.refresh is every_round", version=step, drift=drift)
    assert drift is not None
    if reason := over(config.max_kl, "max_kl"):
        return Decision(action="refresh", reason=reason, version=step, drift=drift)
    reason = f"KL {drift.kl:.3g} ± {drift.kl - drift.interval[0]:.2g} is not certainly over max_kl {config.max_kl:g}"
    return Decision(action="keep", reason=reason, version=version, drift=drift)


class ReferencePolicy(Protocol):
    """Source of each step's reference log-probabilities, or of hidden states from which they are computed."""

    version: int

    def begin(self, step: int, chunk: Chunk) -> None:
        """Start scoring a chunk of a later step, which has been requested, if the reference will not change."""
        ...

    def logprobs(self, step: int, chunk: Chunk) -> Sequence[Handle[TokenShard]] | None:
        """Score a chunk; None if the algorithm uses no reference. The first chunk of a step decides on a refresh."""
        ...

    def decision(self) -> Decision | None:
        """Return the decision on the reference before the newest step; None if there is nothing to decide."""
        ...


class NoReference:
    """Reference policy of algorithms without one."""

    version = 0

    def begin(self, step: int, chunk: Chunk) -> None:
        pass

    def logprobs(self, step: int, chunk: Chunk) -> None:
        return None

    def decision(self) -> None:
        return None


class AdapterOffReference:
    """Reference that is the model under the policy's adapters, scored by the policy gang."""

    version = 0

    def __init__(self, policy: Gang[Learner], *, temperature: float, cache: bool) -> None:
        """Create the reference. `temperature` is that of the loss."""
        self._policy, self._temperature, self._cache = policy, temperature, cache

    def begin(self, step: int, chunk: Chunk) -> None:
        pass  # the policy gang is busy training on the step before

    def logprobs(self, step: int, chunk: Chunk) -> Sequence[Handle[TokenShard]]:
        return self._policy.all(Learner.base_logprobs, chunk.experience, self._temperature, self._cache)

    def decision(self) -> Decision:
        return Decision(action="keep", reason="it is the model under the adapters", version=self.version)


class ReferenceGang:
    """Reference with a gang of its own. A refresh loads the current policy, by way of a directory.

    With `refresh: ema` it loads the average of the policy and the reference before, which the policy's gang writes.
    """

    def __init__(
        self,
        reference: Gang[Reference],
        write: Write,
        config: ReferenceConfig,
        *,
        temperature: float,
        drift_temperature: Callable[[int], float] | None = None,
        directory: Callable[[int], Path],
        version: int = 0,
        decided: Decision | None = None,
    ) -> None:
        """Load the reference that the run holds.

        Args:
            write: writes the policy to a directory, as it is or averaged with an earlier model.
            temperature: of the loss.
            drift_temperature: returns that of a step's samples, at which the drift is measured before the step; None:
                the drift is measured only where `refresh` depends on it, at `temperature`.
            directory: returns the directory of a version of the reference.
            version: version of the policy that the reference holds.
            decided: decision already taken for the first step, when resuming in the middle of it.
        """
        self._reference, self._write, self._config = reference, write, config
        self._temperature, self._directory, self.version = temperature, directory, version
        self._measures = drift_temperature is not None or config.refresh == "when_drifted"
        self._drift_temperature = drift_temperature or (lambda step: temperature)
        self._decided, self._decision = decided, decided
        self._begun: dict[tuple[int, int], Sequence[Handle[TokenShard]]] = {}
        reference.when_restarted(self._restore_state)
        self._restore_state(reference)

    def begin(self, step: int, chunk: Chunk) -> None:
        if self._config.refresh == "never":  # else the reference may be refreshed before the step
            self._begun[step, chunk.index] = self._score(chunk.experience, self._temperature)

    def logprobs(self, step: int, chunk: Chunk) -> Sequence[Handle[TokenShard]]:
        shards = self._begun.pop((step, chunk.index), None)
        if chunk.index == 0:
            shards = self._decide(step, chunk, shards)
        return shards if shards is not None else self._score(chunk.experience, self._temperature)

    def decision(self) -> Decision | None:
        return self._decision

    def _decide(
        self, step: int, chunk: Chunk, shards: Sequence[Handle[TokenShard]] | None
    ) -> Sequence[Handle[TokenShard]] | None:
        """Decide on the reference before `step`. Return the chunk's log-probabilities, if they have been requested.

        Raises:
            Drifted: the policy is too far from the reference.
        """
        decision, self._decided = self._decided, None
        if decision is None:
            drift = None
            if self._measures:
                # Drift compares distributions at the same temperature: samples at 0.7 are far from a reference at 1.
                sampling = self._drift_temperature(step)
                same = sampling == self._temperature
                begun = shards if same else None
                sampled = begun or self._score(chunk.experience, sampling)
                shards = sampled if same else shards
                drift = self._reference.one(Reference.drift, chunk.experience, sampled).result()
            decision = decide(self._config, step=step, version=self.version, drift=drift)
            if decision.action in ("roll_back", "abort"):
                raise Drifted(step, decision)
            if decision.action == "refresh":
                self._refresh(step)
                shards = None
        self._decision = decision
        return shards

    def _score(self, experience: Sequence[Handle[Experience]], temperature: float) -> Sequence[Handle[TokenShard]]:
        return self._reference.all(Reference.logprobs, experience, temperature, self.version)

    def _restore_state(self, reference: Gang[Reference]) -> None:
        """Load the version that the run holds. A new worker holds the model that the policy started from."""
        if self.version:
            wait(reference.all(Reference.load, str(self._directory(self.version)), self.version))

    def _refresh(self, version: int) -> None:
        directory = self._directory(version)
        average = None
        if self._config.refresh == "ema":
            average = Average(directory=str(self._directory(self.version)), alpha=self._config.ema_alpha)
        self._write(directory, average)
        wait(self._reference.all(Reference.load, str(directory), version))
        self.version = version


class Teacher:
    """Reference that is another model and never changes: its log-probabilities, or its hidden states at each token."""

    version = 0

    def __init__(self, teacher: Gang[Reference], *, temperature: float, states: bool) -> None:
        """Create the reference: log-probabilities at `temperature`, or hidden states if `states` is true."""
        self._teacher, self._temperature, self._states = teacher, temperature, states
        self._begun: dict[tuple[int, int], Sequence[Handle[TokenShard]]] = {}

    def begin(self, step: int, chunk: Chunk) -> None:
        self._begun[step, chunk.index] = self._score(chunk.experience)

    def logprobs(self, step: int, chunk: Chunk) -> Sequence[Handle[TokenShard]]:
        begun = self._begun.pop((step, chunk.index), None)
        return self._score(chunk.experience) if begun is None else begun

    def decision(self) -> None:
        return None

    def _score(self, experience: Sequence[Handle[Experience]]) -> Sequence[Handle[TokenShard]]:
        if self._states:
            return self._teacher.all(Reference.hidden, experience)
        return self._teacher.all(Reference.logprobs, experience, self._temperature)


def metrics_of(decision: Decision | None, step: int) -> Metrics:
    if decision is None:
        return {}
    drift = {f"drift/{name}": float(value) for name, value in asdict(decision.drift).items()} if decision.drift else {}
    return {"ref/age": float(step - decision.version), "ref/refreshed": float(decision.action == "refresh"), **drift}
