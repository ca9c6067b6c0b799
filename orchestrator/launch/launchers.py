"""The launcher of a target. Its engine's module is imported only then."""

from __future__ import annotations

from pathlib import Path

from orchestrator.launch.base import Launcher
from orchestrator.launch.targets import KubeRayTarget, LocalTarget, RayTarget, Target


def launcher_for(target: Target, *, token_file: Path | None = None) -> Launcher:
    """Return the launcher of a target. `token_file`: file with a Ray cluster's token; None: the target's own."""
    if isinstance(target, LocalTarget):
        from orchestrator.launch.local import LocalLauncher

        return LocalLauncher()
    if isinstance(target, RayTarget):
        from orchestrator.launch.ray import RayLauncher

        return RayLauncher(target, token_file=token_file)
    if isinstance(target, KubeRayTarget):
        from orchestrator.launch.kuberay import KubeRayLauncher

        return KubeRayLauncher(target)
    from orchestrator.launch.slurm import SlurmLauncher

    return SlurmLauncher(target)
