"""Rollouts on disk, stored until no checkpoint needs them: the workers write the files, the ledger lists them.

    begun ──► experience on disk ──► GENERATED ──► scores on disk ──► SCORED ──► a newer checkpoint ──► dropped

A step that the ledger lists as generated is not sampled again, and one that it lists as scored is not scored again: the
first recorded score counts. A checkpoint waits for the rollouts in flight, so that a resumed run trains on the same
completions, of the same versions, as an uninterrupted one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.errors import Problem, ResumeError
from orchestrator.pipeline.sources import PendingBatch, StoredRollouts
from orchestrator.rundir.ledger import Fact, Ledger
from orchestrator.rundir.manifest import damage
from workers.files.quarantine import LIST, quarantined
from workers.files.rollout_files import read_manifest

STORED = (Fact.generated, Fact.scored)


class Rollouts:
    """Stored rollouts of a run, during one attempt. Implements the source's `RolloutStore`.

    Its methods take the `index` of a step, which counts from 0 as in the loop. Files and ledger hold the `step`, which
    counts from 1.
    """

    def __init__(self, directory: Path, ledger: Ledger, *, attempt: int, note: Callable[[str], None]) -> None:
        self._directory, self._ledger, self._attempt, self._note = directory, ledger, attempt, note
        self._pending: dict[int, PendingBatch] = {}  # by index, not in the ledger yet
        # Records of earlier attempts by (index, fact), the newest of each.
        self._recorded = {
            (r.step - 1, r.fact): r.details for r in ledger.records if r.fact in STORED and "files" in r.details
        }
        self._reported = set[str]()  # ids of the quarantined prompts
        self._report_quarantined()

    # -------------------------------------------------------------------------------------------- for the source

    def file_prefix(self, index: int, part: int) -> str:
        """Return the prefix of the files that store the `part`-th sampling of a step."""
        directory = self._directory / f"step-{index + 1}"
        disk.make_directory(directory)
        return f"{directory}/" if part == 0 else f"{directory}/further-{part}-"

    def find(self, index: int) -> StoredRollouts | None:
        """Return the verified rollouts of a step; None if it must be sampled."""
        generated, scored = self._recorded.get((index, Fact.generated)), self._recorded.get((index, Fact.scored))
        if generated is None:
            return None
        if damage := self._damage(generated):
            self._note(f"step {index + 1} is sampled again: {damage}")
            return None
        if scored is not None and (damage := self._damage(scored)):
            self._note(f"step {index + 1} is scored again: {damage}")
            scored = None
        return StoredRollouts(
            experience=self._files(generated),
            scores=None if scored is None else self._files(scored),
            resamples=generated.get("resamples"),
            rows=tuple(generated["rows"]) if "rows" in generated else None,
        )

    def require(self, index: int) -> None:
        """Check that the rollouts of a step are stored. It is trained in part, so it cannot be sampled again.

        Raises:
            ResumeError: the rollouts are missing or damaged.
        """
        stored = self.find(index)
        if stored is None or stored.scores is None:
            raise ResumeError(
                Problem(
                    what=f"the rollouts of step {index + 1} are missing or damaged, and part of the step is trained",
                    where=str(self._directory / f"step-{index + 1}"),
                    why="the rest of the step must be trained on the same completions",
                    fix=f"restore them, or remove checkpoints/step-{index}-update-* to resume from the one before",
                )
            )

    def register(self, index: int, pending: PendingBatch) -> None:
        """Note that the rollouts of a step have been requested."""
        self._pending[index] = pending

    # -------------------------------------------------------------------------------------------- for the recorder

    def record(self, index: int) -> None:
        """Wait for a step's experience, then for its scores, and record each in the ledger."""
        pending = self._pending.pop(index, None)
        if pending is None:  # recorded at a checkpoint
            return
        for experience in pending.experience:
            experience.wait()
        further = {} if pending.resamples is None else {"resamples": pending.resamples, "rows": list(pending.rows)}
        self._append(Fact.generated, index, pending.file_stems, further)
        for scores in pending.scores or ():
            scores.wait()
        self._append(Fact.scored, index, pending.score_file_stems, {})
        self._report_quarantined()

    def settle(self) -> None:
        """Wait until all rollouts in flight are on disk and in the ledger."""
        for index in sorted(self._pending):
            self.record(index)

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

    def _append(self, fact: Fact, index: int, stems: Sequence[str] | None, further: Mapping[str, Any]) -> None:
        """Record a step in the ledger. `stems` None: the step was recalled, so its earlier record is repeated."""
        details = dict(self._recorded[index, fact]) if stems is None else {**self._described(stems), **further}
        self._ledger.append(fact, attempt=self._attempt, step=index + 1, **{**details, "recalled": stems is None})

    def _described(self, stems: Sequence[str]) -> dict[str, Any]:
        written = [read_manifest(stem) for stem in stems]
        return {
            "files": [{**asdict(w), "path": str(Path(w.path).relative_to(self._directory.parent))} for w in written],
            "completions": sum(w.completions for w in written),
        }

    def _files(self, details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        return tuple((str(self._directory.parent / f["path"]), f["sha256"]) for f in details["files"])

    def _damage(self, details: Mapping[str, Any]) -> str:
        return next(filter(None, (damage(self._directory.parent, file) for file in details["files"])), "")
