"""Refuse user files that would be imported instead of this program's packages.

Ray puts the directory that a run is started in, or a job's upload, first on the actors' path: an `orchestrator.py`
there hides the package of this name.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from orchestrator.errors import Problems

PACKAGES = ("orchestrator", "workers")


def refuse_shadows(directory: Path, problems: Problems) -> None:
    """Add a problem for every file in `directory` that hides one of `PACKAGES`.

    A folder without `__init__.py` hides nothing, and neither does the checkout that this program runs from.
    """
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        ours = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        for file in (directory / package / "__init__.py", directory / f"{package}.py"):
            if file.is_file() and file.resolve() != ours:
                mine = file.parent if file.name == "__init__.py" else file
                problems.add(
                    f"`{mine.name}` would be imported instead of this program's own package `{package}`",
                    where=str(mine),
                    why="actors import modules from the directory that a run is started in first",
                    fix=f"rename {mine.name}, or start the run in another directory (--working-dir of a job)",
                )
