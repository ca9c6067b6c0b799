"""Checkpoints: when one is due, written aside, described by a manifest, renamed into place, and the one to go on
from."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.cluster.base import wait
from orchestrator.config.run import CHECKPOINT_S, CHECKPOINT_SHARE
from orchestrator.errors import Problem, ResumeError, Superseded
from orchestrator.pipeline.learning import Learners
from orchestrator.rundir.manifest import (
    STATE,
    State,
    list_checkpoints,
    position_of,
    read_state,
    seal,
    step_of,
    verify,
    write_state,
)
from workers.learner import Learner

LAG_S = 10.0  # by which a directory on shared storage may show what it was before
LOOK_S = 0.25


class Pace:
    """When the next checkpoint is due: by steps where the recipe counts them, else by the clock and by what the last
    one took."""

    def __init__(self, every: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._since, self._took_s = clock(), 0.0

    def is_due(self, steps_done: int) -> bool:
        if self._every is not None:
            return steps_done % self._every == 0
        # A checkpoint of t seconds after w seconds of work takes t / (t + w) of the time.
        cheap_s = self._took_s * (1 / CHECKPOINT_SHARE - 1)
        return self._clock() - self._since >= max(CHECKPOINT_S, cheap_s)

    @contextmanager
    def saving(self) -> Iterator[None]:
        begun = self._clock()
        yield
        self._since = self._clock()
        self._took_s = self._since - begun


class Checkpointer:
    """Saves the learners and the run's state, and keeps the newest few."""

    def __init__(
        self,
        learners: Learners,
        directory: Path,
        *,
        keep: int,
        about: Mapping[str, Any] | None = None,
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        """`about`: what every manifest says of the run, its software, its ranks and its data. `fence` raises when the
        run is another driver's."""
        self._learners, self._directory, self._keep, self._about = learners, directory, keep, about or {}
        self._fence = fence

    def save(self, state: State, *, meanwhile: Callable[[], None] = lambda: None) -> Path:
        """One checkpoint; the ones before it are dropped only when it is complete. `meanwhile` is what else must
        be done before it counts; the learners are saving while it is called."""
        self._fence()
        target = self._directory / state.name
        aside = disk.fresh(target)
        try:
            self._write(aside, state, meanwhile)
            self._fence()
            disk.publish(target)
        except Superseded:
            raise  # what lies aside is the other driver's
        except BaseException:
            self._fence()  # it may have failed for the other driver's having swept it away
            shutil.rmtree(aside, ignore_errors=True)  # on a full disk, how the run ended must have room
            raise
        self._drop_old(target)
        return target

    def _write(self, aside: Path, state: State, meanwhile: Callable[[], None]) -> None:
        saving = self._learners.policy.all(Learner.save, str(aside / "policy"), {})
        if self._learners.critic:
            saving = [*saving, *self._learners.critic.all(Learner.save, str(aside / "critic"), {})]
        meanwhile()
        wait(saving)
        write_state(aside, state)
        seal(aside, {**self._about, "step": state.next_step, "reference_version": state.reference_version})

    def _drop_old(self, new: Path) -> None:
        """Keeps the newest few; nothing is dropped for a checkpoint that cannot be read back."""
        if damage := verify(new):
            raise OSError(f"{new}: {damage} right after it was written; the checkpoints before it are kept")
        for old in list_checkpoints(self._directory)[: -self._keep]:
            old.rename(gone := disk.partial(old))  # at once, so that no half of it bears its name
            shutil.rmtree(gone)

    def oldest(self) -> int:
        """The turn of the oldest checkpoint there is; 0 where there is none."""
        return min((step_of(checkpoint) for checkpoint in list_checkpoints(self._directory)), default=0)

    def load(self, checkpoint: Path) -> None:
        """Bring the learners back to where `checkpoint` found them."""
        loading = self._learners.policy.all(Learner.load, str(checkpoint / "policy"))
        if self._learners.critic:
            loading = [*loading, *self._learners.critic.all(Learner.load, str(checkpoint / "critic"))]
        wait(loading)


def go_back(directory: Path, before: int) -> int | None:
    """Drop the newest checkpoints, so that the run goes on from the newest one that is at `before` or earlier, or else
    from the oldest that is kept; None, and nothing is dropped, when there is none to go back to.
    """
    *earlier, _ = [step_of(checkpoint) for checkpoint in list_checkpoints(directory)] or [0]
    if not earlier:
        return None
    target = max((step for step in earlier if step <= before), default=earlier[0])
    for checkpoint in list_checkpoints(directory):
        if step_of(checkpoint) > target:
            checkpoint.rename(gone := disk.partial(checkpoint))  # at once, so that no half of it bears its name
            shutil.rmtree(gone)
    return target


def newest(directory: Path, expected: tuple[int, int] | None = None) -> tuple[Path, State, Sequence[str]]:
    """The newest checkpoint whose files are all as the manifest has them, and what is wrong with newer ones.

    `expected`: what the ledger says is there (`ledger.checkpointed`); while it is not seen it is waited for. None: it
    says nothing.

    Raises:
        ResumeError: there is none.
    """
    listed = _listed(directory, expected)
    refused: list[str] = []
    if expected is not None and not _reaches(listed, expected):
        missing = State(next_step=expected[0], updates=expected[1], reference_version=0).name
        refused.append(f"{directory / missing}: the ledger calls it complete, and it is not there")
    for checkpoint in reversed(listed):
        damage = verify(checkpoint)
        state = None if damage else read_state(checkpoint)
        if state is not None:
            return checkpoint, state, refused
        refused.append(f"{checkpoint}: {damage or f'{STATE} is not what was written'}")
    raise ResumeError(
        Problem(
            what="there is no checkpoint to go on from",
            where=str(directory),
            why="; ".join(refused) or "none was finished before the run stopped",
            fix="restore it from a copy, or start the recipe anew under another name",
        )
    )


def _listed(directory: Path, expected: tuple[int, int] | None) -> list[Path]:
    """Another machine's view of shared storage may lag behind what this run's last driver wrote."""
    until = time.monotonic() + LAG_S
    while not _reaches(listed := list_checkpoints(directory), expected) and time.monotonic() < until:
        time.sleep(LOOK_S)
    return listed


def _reaches(listed: Sequence[Path], expected: tuple[int, int] | None) -> bool:
    return expected is None or (bool(listed) and position_of(listed[-1]) >= expected)
