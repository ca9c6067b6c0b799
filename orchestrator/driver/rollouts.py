"""What was sampled and scored, kept until no checkpoint needs it: the workers write it, the ledger names it.

    begun ──► experience on disk ──► GENERATED ──► scores on disk ──► SCORED ──► a newer checkpoint ──► dropped

A step that the ledger knows is never sampled again, and what the ledger calls scored is never scored again: the first
score that was recorded counts. A checkpoint waits for what is in flight, so that a run that goes on from it learns from
the same completions, of the same versions, as one that was never stopped.
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
from workers.files.rollout_files import receipt

KNOWN = (Fact.generated, Fact.scored)


class Rollouts:
    """The rollouts of one run, in one of its attempts. Implements the source's `Keeper`."""

    def __init__(self, directory: Path, ledger: Ledger, *, attempt: int, note: Callable[[str], None]) -> None:
        self._directory, self._ledger, self._attempt, self._note = directory, ledger, attempt, note
        self._begun: dict[int, PendingBatch] = {}  # by step, not in the ledger yet
        # What earlier attempts have recorded, the last word on each step; steps count from 0 here.
        self._known = {
            (r.step - 1, r.fact): r.details for r in ledger.records if r.fact in KNOWN and "files" in r.details
        }
        self._told = set[str]()  # prompts that are left out
        self._tell_left_out()

    # -------------------------------------------------------------------------------------------- for the source

    def place(self, step: int, part: int) -> str:
        """How names of files begin that keep the `part`-th sampling of a step."""
        directory = self._directory / f"step-{step + 1}"
        disk.make_directory(directory)
        return f"{directory}/" if part == 0 else f"{directory}/further-{part}-"

    def known(self, step: int) -> StoredRollouts | None:
        """What is there of a step, verified; None: it is to be sampled."""
        generated, scored = self._known.get((step, Fact.generated)), self._known.get((step, Fact.scored))
        if generated is None:
            return None
        if damage := self._damage(generated):
            self._note(f"step {step + 1} is sampled anew: {damage}")
            return None
        if scored is not None and (damage := self._damage(scored)):
            self._note(f"step {step + 1} is scored anew: {damage}")
            scored = None
        return StoredRollouts(
            experience=self._files(generated),
            scores=None if scored is None else self._files(scored),
            resamples=generated.get("resamples"),
            rows=tuple(generated["rows"]) if "rows" in generated else None,
        )

    def require(self, step: int) -> None:
        """The learners stand in the middle of `step`, so the engines cannot sample for it what they sampled before.

        Raises:
            ResumeError: its rollouts are not what was written.
        """
        known = self.known(step)
        if known is None or known.scores is None:
            raise ResumeError(
                Problem(
                    what=f"the rollouts of step {step + 1} are gone, and a part of it is learned",
                    where=str(self._directory / f"step-{step + 1}"),
                    why="the other part must be learned from the same completions",
                    fix=f"restore them, or remove checkpoints/step-{step}-update-* to go on from the one before",
                )
            )

    def begun(self, step: int, pending: PendingBatch) -> None:
        """Something is on its way that the ledger is to know of."""
        self._begun[step] = pending

    # -------------------------------------------------------------------------------------------- for the recorder

    def record(self, step: int) -> None:
        """Wait for a step's experience, then for its scores, and say of each that it is there."""
        pending = self._begun.pop(step, None)
        if pending is None:  # recorded at a checkpoint
            return
        for experience in pending.experience:
            experience.wait()
        further = {} if pending.resamples is None else {"resamples": pending.resamples, "rows": list(pending.rows)}
        self._append(Fact.generated, step, pending.kept, further)
        for scores in pending.scores or ():
            scores.wait()
        self._append(Fact.scored, step, pending.kept_scores, {})
        self._tell_left_out()

    def settle(self) -> None:
        """Everything in flight is on disk and in the ledger."""
        for step in sorted(self._begun):
            self.record(step)

    def drop(self, steps_done: int) -> None:
        """Remove the rollouts of the first `steps_done` steps: no checkpoint that is left needs them."""
        for old in self._directory.glob("step-*"):
            if int(old.name.removeprefix("step-")) <= steps_done:
                shutil.rmtree(old)

    def _tell_left_out(self) -> None:
        """Of prompts that ended their engines, once in an attempt."""
        path = self._directory / LIST
        for entry in quarantined(path):
            if entry["prompt"] not in self._told:
                self._note(
                    f"prompt {entry['prompt']} is left out: engines died of it, {entry['deaths']} times ({path})"
                )
            self._told.add(entry["prompt"])

    # -------------------------------------------------------------------------------------------- ledger and files

    def _append(self, fact: Fact, step: int, stems: Sequence[str] | None, further: Mapping[str, Any]) -> None:
        """`stems` None: it was recalled; what the ledger said of it, it says again."""
        details = dict(self._known[step, fact]) if stems is None else {**self._described(stems), **further}
        self._ledger.append(fact, attempt=self._attempt, step=step + 1, **{**details, "recalled": stems is None})

    def _described(self, stems: Sequence[str]) -> dict[str, Any]:
        written = [receipt(stem) for stem in stems]
        return {
            "files": [{**asdict(w), "path": str(Path(w.path).relative_to(self._directory.parent))} for w in written],
            "completions": sum(w.completions for w in written),
        }

    def _files(self, details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        return tuple((str(self._directory.parent / f["path"]), f["sha256"]) for f in details["files"])

    def _damage(self, details: Mapping[str, Any]) -> str:
        return next(filter(None, (damage(self._directory.parent, file) for file in details["files"])), "")
