"""Overrides of a run that exists: settings of hardware and reporting may change, settings of training may not.

`rlhf resume runs/NAME policy.num_ranks=1` is allowed. `algorithm.beta=0.2` would be another run and is refused.
`rlhf filter runs/NAME algorithm.per_prompt=2` is allowed, and `rollout.temperature=0.7` is refused.
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
    "reference.roll_back_kl",
    "reference.abort_kl",
    "teacher.num_ranks",
    "rollout.num_engines",
    "reward_workers",
    "cluster",
    "checkpoint",
    "evaluation.every",
    "export",
    "alarms",
    "report_to",
    "wandb",
)


def apply_overrides(
    directory: RunDirectory,
    overrides: Sequence[str],
    *,
    may_change: Sequence[str] = MAY_CHANGE,
    why: str = "it would change the training in the middle of the run",
) -> RunConfig:
    """Return the config of a run with `overrides` applied. Nothing is written.

    Args:
        may_change: keys that may change, each with all keys below it.
        why: reason for which no other key may.

    Raises:
        BadInput: an override cannot be read.
        ResumeError: an override changes another setting; the error gives the old and the new value.
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
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in may_change):
            fix = f"leave it, or run the recipe under another name; these may change: {', '.join(may_change)}"
            refused.add(f"{key} was {show(before)} and would be {show(after)}", where="command line", why=why, fix=fix)
    if refused:
        raise ResumeError(refused)
    return new


def record_overrides(directory: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """Write `config` to `resolved.json` if it differs. Return the changed settings, for the ledger."""
    changed = {key: after for key, _, after in differences(resolved(directory.config()), resolved(config))}
    if changed:
        disk.write_atomic(directory.resolved, json.dumps(resolved(config), indent=2) + "\n")
    return changed
