"""Values that a run may be given anew when it goes on: where it runs, how it is told, never what it learns.

`rlhf resume runs/NAME policy.num_ranks=1` is allowed, `algorithm.beta=0.2` is another run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from orchestrator import disk
from orchestrator.config.document import Document, Location
from orchestrator.config.overrides import apply, parse_overrides
from orchestrator.config.recipe import from_resolved, resolved
from orchestrator.config.run import RunConfig
from orchestrator.config.values import show
from orchestrator.errors import Problems, ResumeError
from orchestrator.rundir.directory import RunDirectory, differences

MAY_CHANGE = (
    "policy.num_ranks",
    "critic.num_ranks",
    "reference.num_ranks",
    "teacher.num_ranks",
    "rollout.num_engines",
    "reward_workers",
    "cluster",
    "checkpoint",
    "evaluation.every",
    "alarms",
    "report_to",
    "wandb",
)


def apply_overrides(directory: RunDirectory, overrides: Sequence[str]) -> RunConfig:
    """The config of a run with `overrides` laid over it; what ran is kept in `resolved.json`.

    Raises:
        BadInput: an override that cannot be read.
        ResumeError: one that would make it another run, with what it was and what it would be.
    """
    old = directory.config()
    if not overrides:
        return old
    problems = Problems()
    document = Document(data=resolved(old), places={(): Location(text=str(directory.resolved))})
    for override in parse_overrides(overrides, [old.name], problems):
        apply(override, document, problems)
    problems.raise_if_any()
    new = from_resolved(document.data, "command line")
    refused = Problems()
    for key, before, after in differences(resolved(old), resolved(new)):
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE):
            why = "with it the rest of the run would learn something else than what came before"
            fix = f"leave it, or start the recipe anew under another name; may change: {', '.join(MAY_CHANGE)}"
            refused.add(f"{key} was {show(before)} and would be {show(after)}", where="command line", why=why, fix=fix)
    if refused:
        raise ResumeError(refused)
    return new


def record_overrides(directory: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """Make `config` what the directory says runs here; returns what changed, for the ledger."""
    told = {key: after for key, _, after in differences(resolved(directory.config()), resolved(config))}
    if told:
        disk.write_atomic(directory.resolved, json.dumps(resolved(config), indent=2) + "\n")
    return told
