"""Upload of a working directory to the cluster: excluded files and the size limit."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

from orchestrator.errors import BadInput, Problem

EXCLUDES = (
    # caches and builds, secrets, results of other runs; .gitignore is honoured as well
    ".git", ".venv", "venv", "__pycache__", "*.pyc", ".*_cache", ".tox", ".eggs", "*.egg-info", "build", "dist",
    "node_modules", "runs", "wandb",
    ".env", ".netrc", "*.pem", "*.key", "auth_token", ".ssh", ".aws", ".kube",
)  # fmt: skip
MAX_BYTES = 200 * 2**20  # Ray itself refuses 500 MiB


def check_size(directory: Path) -> int:
    """Return the number of bytes to upload. Raise BadInput with the largest entries if there are too many."""
    if not directory.is_dir():
        problem = Problem(what="no such directory", where=str(directory), fix="give --working-dir an existing one")
        raise BadInput(problem)
    sizes: dict[str, int] = {}
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not is_excluded(name)]
        for name in files:
            path = Path(folder) / name
            if not is_excluded(name) and path.is_file():
                top = path.relative_to(directory).parts[0]
                sizes[top] = sizes.get(top, 0) + path.stat().st_size
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:4]
        raise BadInput(
            Problem(
                what=f"the upload of {_mib(total)} exceeds the limit of {_mib(MAX_BYTES)}",
                where=str(directory),
                why="the largest are " + ", ".join(f"{name} ({_mib(sizes[name])})" for name in largest),
                fix="keep models and data on storage that the cluster can read, or give a smaller --working-dir",
            )
        )
    return total


def is_excluded(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in EXCLUDES)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
