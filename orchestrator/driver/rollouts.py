"""Rollouts on disk, stored until no checkpoint needs them: the workers write the files, the ledger lists them.

    requested ──► experience on disk ──► GENERATED ──► scores on disk ──► SCORED ──► a newer checkpoint ──► dropped

A step arrives in chunks, each with records of its own. A chunk that the ledger lists as generated is not sampled again,
and one that it lists as scored is not scored again: the first recorded score counts. A checkpoint waits for the
rollouts in flight, so that a resumed run trains on the same completions, of the same versions, as an uninterrupted one.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.cluster.base import Cluster, Handle
from orchestrator.driver.assembly import Material, prompts_per_step
from orchestrator.driver.chunk_progress import ChunkProgress
from orchestrator.driver.context import AttemptContext
from orchestrator.driver.resume import ResumePoint
from orchestrator.errors import Problem, ResumeError
from orchestrator.pipeline.sources import Chunk, StoredChunk
from orchestrator.rundir.ledger import STORED, Fact, Ledger
from orchestrator.rundir.manifest import damage, lost
from orchestrator.rundir.stored import StoredRun, explained
from workers.files.mirror import WAIT_S
from workers.files.quarantine import LIST, quarantined
from workers.files.rollout_files import StoredFile, parse_manifest, read_manifest
from workers.files.shared_storage import eventually, size_of
from workers.storage import StorageError


class Rollouts:
    """Stored rollouts of a run, during one attempt. Implements the source's `RolloutStore`.

    Its methods take the `index` of a step, which counts from 0 as in the loop. Files and ledger hold the `step`, which
    counts from 1.
    """

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        *,
        attempt: int,
        note: Callable[[str], None],
        wait_first: Callable[[Sequence[Handle[Any]]], None],
        arrived: Callable[[str, int, Chunk], None] = lambda role, index, chunk: None,
        stored: StoredRun | None = None,
    ) -> None:
        """Continue the records of a run.

        Args:
            wait_first: waits until one of several calls has succeeded.
            arrived: called with "rollout" or "reward" when a chunk of a step is sampled or scored.
            stored: twin of the run in object storage; None: all machines see `directory`.
        """
        self._stored = stored
        self._directory, self._ledger, self._attempt, self._note = directory, ledger, attempt, note
        self._wait_first, self._arrived = wait_first, arrived
        # Chunks by index of the step, not in the ledger yet: to be generated, to be scored; each in order.
        self._generating: dict[int, deque[Chunk]] = {}
        self._scoring: dict[int, deque[Chunk]] = {}
        # Records of earlier attempts by (index, chunk, fact), the newest of each.
        self._recorded: dict[tuple[int, int, Fact], Mapping[str, Any]] = {}
        for record in ledger.records:
            if record.fact in STORED and "files" in record.details:
                self._recorded[record.step - 1, record.details["chunk"], record.fact] = record.details
            elif (target := record.rolled_back_to) is not None:  # the steps after it are sampled anew
                self._recorded = {key: details for key, details in self._recorded.items() if key[0] < target}
        self._is_recording = False
        self._reported = set[str]()  # ids of the quarantined prompts
        self._report_quarantined()

    # -------------------------------------------------------------------------------------------- for the source

    def file_prefix(self, index: int, chunk: int) -> str:
        """Return the prefix of the files that store a chunk of a step."""
        directory = self._directory / f"step-{index + 1}"
        disk.make_directory(directory)
        return f"{directory}/chunk-{chunk}-"

    def num_prompts(self, index: int, chunk: int) -> int | None:
        """Return the number of prompts of a recorded chunk, also if its files are damaged; None if none is recorded."""
        generated = self._recorded.get((index, chunk, Fact.generated))
        return None if generated is None else int(generated["prompts"])

    def find(self, index: int, chunk: int) -> StoredChunk | None:
        """Return a chunk's verified rollouts; None if it must be sampled."""
        generated, scored = (self._recorded.get((index, chunk, fact)) for fact in STORED)
        if generated is None:
            return None
        what = f"step {index + 1}, chunk {chunk + 1}"
        if damage := self._damage(generated):
            self._note(f"{what} is sampled again: {damage}")
            return None
        if scored is not None and (damage := self._damage(scored)):
            self._note(f"{what} is scored again: {damage}")
            scored = None
        return StoredChunk(experience=self._files(generated), scores=None if scored is None else self._files(scored))

    def require(self, index: int) -> None:
        """Check that the rollouts of a step are stored: weights that would sample them again are gone.

        Raises:
            ResumeError: the rollouts are missing or damaged.
        """
        chunks = [chunk for step, chunk, fact in self._recorded if step == index and fact == Fact.scored]
        if not chunks or any((stored := self.find(index, c)) is None or stored.scores is None for c in chunks):
            raise ResumeError(
                Problem(
                    what=f"the rollouts of step {index + 1} are missing or damaged, and part of the step is trained",
                    where=str(self._directory / f"step-{index + 1}"),
                    why="the rest of the step must be trained on the same completions",
                    fix=f"restore them, or remove checkpoints/step-{index}-update-* to resume from the one before",
                )
            )

    def register(self, index: int, chunk: Chunk) -> None:
        """Note that a chunk of a step has been requested."""
        self._generating.setdefault(index, deque()).append(chunk)
        self._scoring.setdefault(index, deque()).append(chunk)

    def wait_for(self, index: int, chunk: int) -> None:
        """Wait until a chunk of a step is scored and recorded. What else ends meanwhile is recorded at once."""
        while any(waiting.index <= chunk for waiting in self._scoring.get(index, ())):
            if not self.record_ended() and (handles := self._next_handles()):  # none: the last one has just ended
                self._wait_first(handles)

    # -------------------------------------------------------------------------------------------- for the recorder

    def record(self, index: int) -> None:
        """Wait until all requested chunks of a step are scored, and record each in the ledger."""
        self.wait_for(index, max((chunk.index for chunk in self._scoring.get(index, ())), default=-1))

    def record_ended(self) -> bool:
        """Record what has ended, without waiting: the chunks of each step in order. Return whether anything had.

        A call that has failed has ended, too, and is made again here. Meanwhile the cluster may call this method
        (`Cluster.when_idle`): then it does nothing, or a chunk would be recorded twice.
        """
        if self._is_recording:
            return False
        self._is_recording = True
        try:
            return self._record_ended()
        finally:
            self._is_recording = False

    def _record_ended(self) -> bool:
        recorded = False
        for index in sorted(self._scoring):
            generating, scoring = self._generating[index], self._scoring[index]
            while generating and all(handle.has_ended() for handle in generating[0].experience):
                self._generated(index, generating[0])
                generating.popleft()
                recorded = True
            while len(scoring) > len(generating) and all(h.has_ended() for h in scoring[0].scores or ()):
                self._scored(index, scoring[0])
                scoring.popleft()
                recorded = True
            if not scoring:
                del self._generating[index], self._scoring[index]
        return recorded

    def _next_handles(self) -> list[Handle[Any]]:
        """Return the calls that are recorded next: the first chunk of each kind, of each step."""
        handles: list[Handle[Any]] = []
        for index, scoring in self._scoring.items():
            if generating := self._generating[index]:
                handles += [h for h in generating[0].experience if not h.has_ended()][:1]
            if len(scoring) > len(generating):
                handles += [h for h in scoring[0].scores or () if not h.has_ended()][:1]
        return handles

    def _generated(self, index: int, chunk: Chunk) -> None:
        for experience in chunk.experience:
            experience.wait()
        self._append(Fact.generated, index, chunk, chunk.file_stems)
        self._arrived("rollout", index, chunk)

    def _scored(self, index: int, chunk: Chunk) -> None:
        for scores in chunk.scores or ():
            scores.wait()
        self._append(Fact.scored, index, chunk, chunk.score_file_stems)
        self._arrived("reward", index, chunk)
        self._report_quarantined()

    def settle(self) -> None:
        """Wait until all rollouts in flight are on disk and in the ledger."""
        for index in sorted(self._scoring):
            self.record(index)

    def abandon(self) -> None:
        """Record what has ended, and wait for nothing else that is in flight."""
        self.record_ended()
        self._generating, self._scoring = {}, {}

    def drop(self, steps_done: int) -> None:
        """Delete the rollouts of the first `steps_done` steps, which no remaining checkpoint needs."""
        for old in self._directory.glob("step-*"):
            if int(old.name.removeprefix("step-")) <= steps_done:
                shutil.rmtree(old)

    def _report_quarantined(self) -> None:
        """Report each prompt that is left out because it crashed engines, once per attempt."""
        path = self._directory / LIST
        for entry in quarantined(path):
            if entry["prompt"] not in self._reported:
                self._note(f"prompt {entry['prompt']} is left out: it crashed engines {entry['deaths']} times ({path})")
            self._reported.add(entry["prompt"])

    # -------------------------------------------------------------------------------------------- ledger and files

    def _append(self, fact: Fact, index: int, chunk: Chunk, stems: Sequence[str] | None) -> None:
        """Record a chunk in the ledger. `stems` None: it was recalled, so its earlier record is repeated."""
        recalled = stems is None
        details = dict(self._recorded[index, chunk.index, fact]) if stems is None else self._described(stems)
        details |= {"chunk": chunk.index, "prompts": chunk.prompts, "recalled": recalled}
        self._ledger.append(fact, attempt=self._attempt, step=index + 1, **details)

    def _described(self, stems: Sequence[str]) -> dict[str, Any]:
        written = [_seen(stem, self._stored) for stem in stems]
        return {
            "files": [{**asdict(w), "path": str(Path(w.path).relative_to(self._directory.parent))} for w in written],
            "completions": sum(w.completions for w in written),
        }

    def _files(self, details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        return tuple((str(self._directory.parent / f["path"]), f["sha256"]) for f in details["files"])

    def _damage(self, details: Mapping[str, Any]) -> str:
        return next(filter(None, map(self._damage_of, details["files"])), "")

    def _damage_of(self, file: Mapping[str, Any]) -> str:
        """Return a description of the damage to a file; empty if it is intact, here or in storage."""
        here = damage(self._directory.parent, file)
        if not here or self._stored is None:
            return here
        with explained(self._stored.storage.url):
            return "" if self._stored.has(file["path"], file["bytes"]) else here


def _seen(stem: str, stored: StoredRun | None = None) -> StoredFile:
    """Return the manifest of a worker's file, once the driver sees both, here or in storage.

    Raises:
        FilesLost: it does not see them.
    """
    found: list[StoredFile] = []

    def is_here() -> bool:
        with suppress(OSError, ValueError):
            found[:] = [read_manifest(stem)]
        return bool(found) and size_of(Path(found[0].path)) == found[0].bytes

    def is_stored() -> bool:
        assert stored is not None
        with suppress(StorageError, ValueError):
            content = stored.storage.get(stored.name_of(Path(f"{stem}.json")))
            if content is not None:
                found[:] = [parse_manifest(content)]
                return stored.storage.size(stored.name_of(Path(found[0].path))) == found[0].bytes
        return False

    seen = eventually(is_here) if stored is None else eventually(lambda: is_here() or is_stored(), WAIT_S)
    if not seen:
        raise lost(f"a worker wrote {Path(stem).name}.safetensors, which is not seen from here", Path(stem).parent)
    return found[0]


def open_rollouts(
    attempt: AttemptContext, material: Material, point: ResumePoint, cluster: Cluster, poll: Callable[[], None]
) -> Rollouts | None:
    """Return the store of rollouts of an attempt; None if the experience comes from a dataset.

    `poll` is called while the driver waits for results, as the store's own `record_ended` is.
    """
    config = attempt.config
    if config.data.prompts is None:
        return None
    rollouts = Rollouts(
        attempt.directory.rollouts,
        attempt.ledger,
        attempt=attempt.number,
        note=attempt.monitor.note,
        wait_first=cluster.wait_first,
        arrived=ChunkProgress(attempt.monitor, partial(prompts_per_step, config, material)).arrived,
        stored=attempt.stored,
    )
    if point.state.updates:  # part of a step is trained; what is sampled ahead came from earlier weights, too
        first = point.state.next_step
        for index in range(first, min(first + config.max_staleness + 1, material.max_steps)):
            rollouts.require(index)

    def idle() -> None:
        rollouts.record_ended()  # whatever the driver waits for, what has ended is recorded soon
        poll()

    cluster.when_idle(idle)
    return rollouts
