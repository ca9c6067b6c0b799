"""Refuse secrets in a recipe, which is copied into the run directory, job metadata and logs."""

from __future__ import annotations

import re
from typing import Any

from orchestrator.config.document import Document, KeyPath, dotted
from orchestrator.errors import SECRET, Problems

SECRET_KEY = re.compile(
    r"(^|_)(token|api_?key|secret|password|passwd|credentials|private_key|access_key)$", re.IGNORECASE
)
_REMOVED = object()


def find_secrets(document: Document, problems: Problems) -> None:
    """Add a problem for every key or value that looks like a secret, and remove it so that nothing prints it."""

    def clean(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            cleaned = {key: clean(item, (*path, key)) for key, item in value.items()}
            return {key: item for key, item in cleaned.items() if item is not _REMOVED}
        if isinstance(value, list):
            return [v for v in (clean(item, (*path, i)) for i, item in enumerate(value)) if v is not _REMOVED]
        named = bool(path) and isinstance(path[-1], str) and SECRET_KEY.search(path[-1])
        if not isinstance(value, str) or not (named or SECRET.search(value)):
            return value
        problems.add(
            f"{dotted(path)} = [redacted]",
            where=document.place(path).text,
            why="it looks like a secret; a recipe is copied into the run directory, job metadata and logs",
            fix="remove it and pass it by environment or file: HF_TOKEN, WANDB_API_KEY, RAY_AUTH_TOKEN_PATH",
        )
        return _REMOVED

    document.data = clean(document.data, ())
