"""Checkpoints: when one is due, how it is written, and which one a run resumes from.

A checkpoint is written under a partial name, described by a manifest, and renamed when it is complete.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.config.run import CHECKPOINT_S, CHECKPOINT_SHARE
from orchestrator.errors import Problem, ResumeError, Superseded
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.writing import Writers
from orchestrator.rundir.manifest import (
    MISSING,
    STATE,
    State,
    files_of,
    list_checkpoints,
    position_of,
    read_state,
    seal,
    step_of,
    verify,
    write_state,
)
from orchestrator.rundir.stored import StoredRun
from workers.files.saved import Saved
from workers.files.shared_storage import eventually
from workers.learner import Learner


class Pace:
    """Checkpoint interval: a number of steps if the recipe gives one, else a time.

    The time between two checkpoints is at least CHECKPOINT_S, and so long that saving takes at most CHECKPOINT_SHARE of
    the time.
    """

    def __init__(self, every: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._last, self._took_s = clock(), 0.0  # end and duration of the last checkpoint

    def is_due(self, steps_done: int) -> bool:
        """Return True if a checkpoint is due after `steps_done` steps."""
        if self._every is not None:
            return steps_done % self._every == 0
        # A checkpoint of t seconds after w seconds of work takes t / (t + w) of the time.
        interval_s = max(CHECKPOINT_S, self._took_s * (1 / CHECKPOINT_SHARE - 1))
        return self._clock() - self._last >= interval_s

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure the time that a checkpoint takes."""
        started = self._clock()
        yield
        self._last = self._clock()
        self._took_s = self._last - started


class Checkpointer:
    """Writer of checkpoints. It saves the learners and the run's state, and keeps the newest `keep` checkpoints."""

    def __init__(
        self,
        learners: Learners | Writers,
        directory: Path,
        *,
        keep: int,
        about: Mapping[str, Any] | None = None,
        fence: Callable[[], None] = lambda: None,
        stored: StoredRun | None = None,
    ) -> None:
        """Write checkpoints to `directory`.

        Args:
            about: provenance for the manifests: run, software, ranks and data.
            fence: raises Superseded if another driver has taken over the run.
            stored: twin of the run in object storage; None: all machines see `directory`.
        """
        self._stored = stored
        self._learners, self._directory, self._keep, self._about = learners, directory, keep, about or {}
        self._fence = fence

    def save(self, state: State, *, meanwhile: Callable[[], None] = lambda: None) -> Path:
        """Save a checkpoint and return its directory. Old checkpoints are deleted once it is complete.

        `meanwhile` is called while the learners save, and must finish before the checkpoint is complete.
        """
        self._fence()
        target = self._directory / state.name
        aside = disk.fresh(target)
        try:
            self._write(aside, state, meanwhile)
            self._fence()
            disk.publish(target)
            self._settle({str(aside): str(target)})
        except Superseded:
            raise  # the partial checkpoint belongs to the other driver
        except BaseException:
            self._fence()  # the failure may be due to another driver that has removed the partial checkpoint
            shutil.rmtree(aside, ignore_errors=True)  # on a full disk, this makes room for exit.json
            raise
        self._drop_old(target)
        return target

    def _write(self, aside: Path, state: State, meanwhile: Callable[[], None]) -> None:
        saving = {role: gang.all(Learner.save, str(aside / role), {}) for role, gang in self.gangs().items()}
        meanwhile()
        reports = {role: wait(calls) for role, calls in saving.items()}
        write_state(aside, state)
        about = {**self._about, "step": state.next_step, "reference_version": state.reference_version}
        seal(aside, about, reports, own=[STATE], is_shared=self._stored is None)

    def _settle(self, renamed: Mapping[str, str], deleted: Sequence[str] = ()) -> None:
        """Rename and delete directories on the machines of the ranks, where each has its own."""
        if self._stored is not None:
            for gang in self.gangs().values():
                wait(gang.all(Learner.settle, renamed, deleted))

    def gangs(self) -> dict[str, Gang[Learner]]:
        """Return the gangs whose state a checkpoint holds, by the subdirectory that is theirs."""
        return self._learners.gangs()

    def _drop_old(self, new: Path) -> None:
        """Delete all but the newest checkpoints, once `new` is seen in full. Its ranks have read their files back.

        Raises:
            OSError: `new` is damaged; no checkpoint is deleted.
        """
        if self._stored is None and (damage := verify(new, hashes=False)):
            raise OSError(f"{new}: {damage} right after it was written; older checkpoints are kept")
        old = list_checkpoints(self._directory)[: -self._keep]
        for checkpoint in old:
            _delete(checkpoint)
        self._settle({}, [str(checkpoint) for checkpoint in old])

    def oldest(self) -> int:
        """Return the number of steps done in the oldest checkpoint; 0 if there is none."""
        return min((step_of(checkpoint) for checkpoint in list_checkpoints(self._directory)), default=0)

    def load(self, checkpoint: Path) -> None:
        """Restore the learners from a verified checkpoint. Each rank waits until it sees all files of its gang."""
        loading: list[Handle[Any]] = []
        for role, gang in self.gangs().items():
            loading += gang.all(Learner.load, str(checkpoint / role), saved_files(checkpoint, role, self._stored))
        wait(loading)


def saved_files(checkpoint: Path, role: str, stored: StoredRun | None) -> Saved:
    """Return the files of a gang in a verified checkpoint, for its ranks."""
    prefix = "" if stored is None else f"{stored.prefix_of(checkpoint)}/{role}"
    return Saved(files=files_of(checkpoint, role), prefix=prefix)


def roll_back(directory: Path, before: int) -> int | None:
    """Delete the newest checkpoints, so that the run resumes from the newest one at step `before` or earlier.

    If there is none that old, the run resumes from the oldest checkpoint. Return the step that it resumes from; None,
    without deleting anything, if there are fewer than two checkpoints.
    """
    *earlier, _ = [step_of(checkpoint) for checkpoint in list_checkpoints(directory)] or [0]
    if not earlier:
        return None
    target = max((step for step in earlier if step <= before), default=earlier[0])
    for checkpoint in list_checkpoints(directory):
        if step_of(checkpoint) > target:
            _delete(checkpoint)
    return target


def _delete(checkpoint: Path) -> None:
    checkpoint.rename(gone := disk.partial(checkpoint))  # first, so that no half of a checkpoint has its name
    shutil.rmtree(gone)


def newest(
    directory: Path, expected: tuple[int, int] | None = None, stored: StoredRun | None = None
) -> tuple[Path, State, Sequence[str]]:
    """Return the newest intact checkpoint, its state, and the damage to newer ones.

    Args:
        expected: position of a checkpoint that the ledger lists (see `ledger.checkpointed`). If it is not visible, wait
            for up to LAG_S seconds. None: the ledger lists none.
        stored: twin of the run, which then decides alone; None: the run has none.

    Raises:
        ResumeError: there is no intact checkpoint.
    """
    listed = _wait_for(directory, expected if stored is None else None)
    refused: list[str] = []
    if expected is not None and not _reaches(listed, expected):
        missing = State(next_step=expected[0], updates=expected[1], reference_version=0).name
        refused.append(f"{directory / missing}: {MISSING}")
    for checkpoint in reversed(listed):
        damage = verify(checkpoint) if stored is None else stored.damage(checkpoint)
        state = None if damage else read_state(checkpoint)
        if state is not None:
            return checkpoint, state, refused
        refused.append(f"{checkpoint}: {damage or f'{STATE} is not what was written'}")
    raise ResumeError(
        Problem(
            what="there is no checkpoint to resume from",
            where=str(directory),
            why="; ".join(refused) or "none was completed before the run stopped",
            fix="restore one from a backup, or run the recipe under another name",
        )
    )


def _wait_for(directory: Path, expected: tuple[int, int] | None) -> list[Path]:
    """List the checkpoints, waiting for the expected one: shared storage may show another machine's files late."""
    listed: list[Path] = []

    def reaches() -> bool:
        listed[:] = list_checkpoints(directory)
        return _reaches(listed, expected)

    eventually(reaches)
    return listed


def _reaches(listed: Sequence[Path], expected: tuple[int, int] | None) -> bool:
    return expected is None or (bool(listed) and position_of(listed[-1]) >= expected)
