"""Models written by the policy's ranks: a model counts once the driver sees every file that a rank reported.

policy ──export──► directory ──reports──► manifest.json
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.cluster.base import Gang, wait
from orchestrator.rundir.manifest import WHOLE, seal
from workers.learner import Learner
from workers.weights import Average


def export(policy: Gang[Learner], directory: Path, average: Average | None = None) -> None:
    """Write the policy's model, or an `average` of it and an earlier one, to an empty directory, with a manifest.

    Raises:
        FilesLost: the directory does not hold what the ranks wrote.
    """
    seal(directory, {}, {WHOLE: wait(policy.all(Learner.export, str(directory), average))})
