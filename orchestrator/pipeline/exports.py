"""Models written by the policy's ranks: a model counts once the driver sees every file that a rank reported.

policy ──export──► directory ──reports──► manifest.json ──► renamed
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from orchestrator import disk
from orchestrator.cluster.base import Gang, wait
from orchestrator.rundir.manifest import WHOLE, seal
from workers.learner import Learner
from workers.weights import Average


class Uploads(Protocol):
    """Object storage of a run, to which ranks upload what they write."""

    def written(self, target: Path) -> None:
        """Store the manifest of a directory, once its files are stored."""
        ...


def write_model(
    policy: Gang[Learner],
    target: Path,
    average: Average | None = None,
    *,
    uploads: Uploads | None = None,
    fence: Callable[[], None] = lambda: None,
) -> None:
    """Write the policy's model, or an `average` of it and an earlier one, to `target`, which it replaces.

    Args:
        uploads: storage of the run; None: `target` is on storage that every machine sees.
        fence: raises Superseded if another driver has taken over the run meanwhile.

    Raises:
        FilesLost: the directory does not hold what the ranks wrote.
    """
    aside = disk.fresh(target)
    export(policy, aside, average, target=target, is_shared=uploads is None)
    fence()
    disk.publish(target)
    if uploads is not None:
        wait(policy.all(Learner.settle, {str(aside): str(target)}))
        uploads.written(target)


def export(
    policy: Gang[Learner],
    directory: Path,
    average: Average | None = None,
    *,
    target: Path | None = None,
    is_shared: bool = True,
) -> None:
    """Write a model to an empty directory, with a manifest. Arguments as in `write_model` and `seal`."""
    named = None if target is None else str(target)
    seal(directory, {}, {WHOLE: wait(policy.all(Learner.export, str(directory), average, named))}, is_shared=is_shared)
