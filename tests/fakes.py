"""Fakes that record their calls, and builders of small, literal experience.

The workers of a gang append to one shared list of events, so that a test can compare all calls of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.cluster.base import Handle
from orchestrator.monitor import Sink
from orchestrator.monitor.alarms import Alarm
from orchestrator.monitor.phase import Phase
from orchestrator.pipeline.reference import Decision
from orchestrator.pipeline.sources import PendingBatch
from workers.files.saved import Saved
from workers.files.written import Report, report
from workers.ragged import Ragged
from workers.spans import Progress, UpdateRange
from workers.stats import Metrics, StepStats
from workers.types import Drift, Example, Experience, Finish, Prompt, Sample, Sampling, Scores, TokenShard, merge
from workers.weights import Average, Entry, Manifest, Rendezvous

Events = list[str]
ALL_UPDATES = UpdateRange()


# ------------------------------------------------------------------------------------------------ experience


def experience(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    *,
    logprobs: Sequence[float] | None = None,
    rewards: Sequence[float] | None = None,
    version: int = 0,
    **changes: Any,
) -> Experience:
    """Return experience of groups (prompt, completions) of tokens, with read-only arrays as in Ray's object store.

    Prompt g gets the id `p<g>`. `logprobs` holds one value per completion token, all completions in a row; it is None
    for experience from a dataset.
    """
    completions = [tokens for _, group in groups for tokens in group]
    given: dict[str, Any] = {
        "prompts": tuple(Prompt(id=f"p{g}", text="") for g in range(len(groups))),
        "prompt_tokens": Ragged.of([prompt for prompt, _ in groups]),
        "completions": Ragged.of(completions),
        "group_offsets": np.cumsum([0, *(len(group) for _, group in groups)]).astype(np.int64),
        "logprobs": None if logprobs is None else np.array(logprobs, np.float32),
        "versions": np.full(len(completions), version, np.int32),
        "finish": np.full(len(completions), Finish.stop, np.int32),
        "rewards": None if rewards is None else np.array(rewards, np.float32),
    }
    batch = Experience(**given | changes)
    read_only(batch)
    return batch


def read_only(value: Any) -> None:
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    elif is_dataclass(value):
        for field in fields(value):
            read_only(getattr(value, field.name))


# ------------------------------------------------------------------------------------------------ workers


class FakeRollout:
    """Rollout whose i-th completion of a prompt is the token i, sampled at the last received version."""

    def __init__(self, events: Events, *, index: int = 0, **_: Any) -> None:
        self._events, self._index, self._version = events, index, 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        versions: tuple[int, int] | None = None,
        file_prefix: str | None = None,
        chunk: int = 0,
    ) -> Experience:
        self._events.append(f"rollout {self._index}: generate {' '.join(p.id for p in prompts)} from v{self._version}")
        group = [[token] for token in range(sampling.num_generations)]
        count = len(prompts) * sampling.num_generations
        return experience(
            [([7], group)] * len(prompts),
            prompts=tuple(prompts),
            logprobs=[-1.0] * count,
            version=self._version,
            chunk=chunk,
        )

    def receive_weights(self, manifest: Manifest, version: int, sent: object) -> float:
        self._events.append(f"rollout {self._index}: receive v{version}")
        self._version = version
        return 0.25


class FakeReward:
    """Reward that scores each completion with its first token."""

    def __init__(self, events: Events, **_: Any) -> None:
        self._events = events

    def score(self, parts: Sequence[Experience], file_prefix: str | None = None) -> Scores:
        whole = merge(parts)
        self._events.append(f"reward: score {' '.join(p.id for p in whole.prompts)}")
        rewards = np.array([float(tokens[0]) for tokens in whole.completions], np.float32)
        return Scores(rewards=rewards, by_scorer={"first": rewards}, seconds=0.5, chunk=whole.chunk)


class FakeReference:
    """Reference that returns empty shards and a given drift."""

    def __init__(self, events: Events, *, rank: int = 0, drift: Drift | None = None, **_: Any) -> None:
        self._events, self._rank, self._drift, self._version = events, rank, drift, 0

    def load(self, path: str, version: int = 0) -> None:
        self._version = version
        self._events.append(f"reference {self._rank}: load {Path(path).name}")

    def logprobs(self, parts: Sequence[Experience], temperature: float = 1.0, version: int | None = None) -> TokenShard:
        assert version is None or version == self._version
        self._events.append(f"reference {self._rank}: logprobs at {temperature:g}")
        return TokenShard(completions=np.zeros(0, np.int64), values=np.zeros(0, np.float32))

    def hidden(self, parts: Sequence[Experience]) -> TokenShard:
        self._events.append(f"reference {self._rank}: hidden states")
        return TokenShard(completions=np.zeros(0, np.int64), values=np.zeros((0, 4), np.float32))

    def drift(self, parts: Sequence[Experience], shares: Sequence[TokenShard]) -> Drift:
        assert self._drift is not None, "no drift was expected to be measured"
        self._events.append(f"reference {self._rank}: drift of {len(shares)} shares")
        return self._drift


class FakeLearner:
    """Learner that records the versions of the experience it trains on. Its checkpoint is a file with `weights`.

    A step has `num_updates` updates. The gradient norm of the n-th one is n, and its loss 0.5 n.
    """

    def __init__(
        self, events: Events, *, head: str = "logprobs", rank: int = 0, num_updates: int = 1, **_: Any
    ) -> None:
        self._events, self._num_updates, self._rank = events, num_updates, rank
        self._name = f"{'policy' if head == 'logprobs' else 'critic'} {rank}"
        self.weights = b"weights"

    def step(
        self,
        step: int,
        parts: Sequence[Experience],
        scores: Any,
        reference: Any,
        values: Any,
        pairs_file: Any = None,
        old: Any = None,
        span: UpdateRange = ALL_UPDATES,
    ) -> StepStats:
        versions = sorted({int(v) for part in parts for v in part.versions})
        offered = {"scores": scores, "reference": reference, "values": values, "old": old}
        given = [name for name, value in offered.items() if value is not None]
        self._events.append(
            f"{self._name}: learn step {step} from v{','.join(map(str, versions))} with {' '.join(given) or 'nothing'}"
        )
        stats = self._updates(span)
        stats.facts["num_tokens"] = 8.0
        return stats

    def more(self, step: int, span: UpdateRange) -> StepStats:
        self._events.append(f"{self._name}: update {span.first + 1} of step {step}")
        return self._updates(span)

    def _updates(self, span: UpdateRange) -> StepStats:
        """Return the span's part of the step's mean over all updates, as a learner does."""
        last = self._num_updates if span.count is None else min(self._num_updates, span.first + span.count)
        made = range(span.first + 1, last + 1)
        facts = {"num_updates": float(len(made))} | ({"grad_norm": float(np.mean(made))} if made else {})
        loss = sum(0.5 * n for n in made) / max(1, self._num_updates)
        return StepStats(sums={"loss": loss}, maxima={}, facts=facts, left=self._num_updates - last)

    def sizes_in(self, directory: str, pattern: str) -> Mapping[str, int]:
        return {}

    def infer(self, parts: Sequence[Experience], as_sampled: bool = False) -> TokenShard:
        self._events.append(f"{self._name}: infer{' as sampled' if as_sampled else ''}")
        return TokenShard(completions=np.zeros(0, np.int64), values=np.zeros(0, np.float32))

    def base_logprobs(self, parts: Sequence[Experience], temperature: float, cache: bool) -> TokenShard:
        self._events.append(f"{self._name}: base logprobs at {temperature:g}{' cached' if cache else ''}")
        return TokenShard(completions=np.zeros(0, np.int64), values=np.zeros(0, np.float32))

    def open_weights(self, segment: str | None, rendezvous: Rendezvous | None) -> Manifest:
        self._events.append(f"{self._name}: open weights")
        entry = Entry(name="w", dtype="float32", shape=(1,), offset=0)
        return Manifest(entries=(entry,), segment=segment, rendezvous=rendezvous)

    def send_weights(self) -> float:
        self._events.append(f"{self._name}: send weights")
        return 0.125

    def export(self, directory: str, average: Average | None = None, target: str | None = None) -> Report:
        mixed = f" with {1 - average.alpha:g} of {Path(average.directory).name}" if average else ""
        self._events.append(f"{self._name}: export {Path(directory).name}{mixed}")
        if self._rank:
            return self._report(Path(directory), writes=False)
        (model := Path(directory) / "model.safetensors").write_bytes(self.weights)
        return self._report(Path(directory), model)

    def save(self, directory: str, state: Mapping[str, Any]) -> Report:
        self._events.append(f"{self._name}: save {Path(directory).name}")
        Path(directory).mkdir(parents=True, exist_ok=True)
        (file := Path(directory) / f"{self._name}.bin").write_bytes(self.weights)
        return self._report(Path(directory), file)

    def _report(self, directory: Path, *paths: Path, writes: bool = True) -> Report:
        return report(directory, paths, role=self._name.split()[0], rank=self._rank, writes=writes)

    def load(self, directory: str, saved: Saved | None = None) -> Mapping[str, Any]:
        self._events.append(f"{self._name}: load {Path(directory).parent.name}/{Path(directory).name}")
        self.weights = (Path(directory) / f"{self._name}.bin").read_bytes()
        return {}


class FakeEncoder:
    """Encoder that encodes every example as one token."""

    def __init__(self, events: Events, **_: Any) -> None:
        self._events = events

    def encode(self, examples: Sequence[Example]) -> Experience:
        self._events.append(f"encoder: encode {' '.join(e.prompt.id for e in examples)}")
        return experience([([7], [[1]])] * len(examples), prompts=tuple(e.prompt for e in examples))


# ------------------------------------------------------------------------------------------------ around the loop


class EventRecorder:
    """Recorder that records its calls as events and stores the metrics in a list."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.metrics: list[Metrics] = []
        self.num_chunks: list[int] = []  # by step

    def planned(self, step: int) -> None:
        self._events.append(f"planned {step}")

    def arrived(self, step: int, pending: PendingBatch) -> None:
        pending.wait()
        self.num_chunks.append(len(pending.chunks))
        self._events.append(f"arrived {step}")

    def pairs_file(self, step: int) -> str | None:
        return None

    def updated(self, step: int, update: int, num_updates: int, metrics: Metrics) -> None:
        self._events.append(f"update {update} of {num_updates} in {step}")

    def paused(self, step: int, decision: Decision | None, progress: Progress) -> None:
        self._events.append(f"paused {step} after {progress.updates}")

    def halted(self) -> None:
        self._events.append("halted")

    def trained(self, step: int, decision: Decision | None) -> None:
        self._events.append(f"trained {step}" + (f" ({decision.action} v{decision.version})" if decision else ""))

    def committed(self, step: int, metrics: Metrics, scores: Sequence[Handle[Scores]] | None) -> None:
        self._events.append(f"committed {step}")
        self.metrics.append(metrics)


class EventSink(Sink):
    """Sink of the monitor that records notes, alarms, phases and their progress as events, and metrics as rows."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.rows: dict[int, Metrics] = {}
        self.updates: list[tuple[int, int, Metrics]] = []  # step, number of the update, metrics

    def phase(self, role: str, text: str) -> None:
        self._events.append(f"{role} is {text}" if text else f"{role} is done")

    def advance(self, phase: Phase) -> None:
        self._events.append(f"{phase.role} has {phase.done} of {phase.total} {phase.unit} of step {phase.step}")

    def update(self, step: int, update: int, metrics: Metrics) -> None:
        self.updates.append((step, update, dict(metrics)))

    def step(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        self._events.append(f"logged {step}")
        self.rows[step] = dict(metrics)

    def alarm(self, alarm: Alarm) -> None:
        self._events.append(str(alarm))

    def note(self, text: str) -> None:
        self._events.append(text)


# ------------------------------------------------------------------------------------------------ a gang


@dataclass(frozen=True)
class RecordedHandle:
    """Handle that records each wait as an event."""

    name: str
    value: Any
    events: Events

    def result(self, timeout_s: float | None = None) -> Any:
        self.events.append(f"wait for {self.name}")
        return self.value

    def wait(self) -> None:
        self.events.append(f"wait for {self.name} to be there")

    def has_ended(self) -> bool:
        return True


class RecordingGang:
    """Gang whose members return the result of a method from `answers`. Calls and waits are recorded as events."""

    def __init__(self, role: str, size: int, answers: Mapping[str, Any], events: Events) -> None:
        self.role, self._size, self._answers, self._events = role, size, answers, events
        self.arguments: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return self._size

    def meeting_point(self) -> tuple[str, int]:
        return "10.0.0.7", 29500

    def when_restarted(self, restore_state: Callable[[Any], None]) -> None:
        self.restore_state = restore_state

    def all(self, method: Callable[..., Any], *args: Any) -> list[RecordedHandle]:
        self._events.append(f"{self.role}.{method.__name__}")
        self.arguments.append(args)
        name, value = f"{self.role}.{method.__name__}", self._answers[method.__name__]
        return [RecordedHandle(f"{name} {i}", value, self._events) for i in range(self._size)]
