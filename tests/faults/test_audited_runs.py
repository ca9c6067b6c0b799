"""Warnings of the audit in the output of a whole run on pairs."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import cpu_run
import pytest

from orchestrator.config import RunConfig
from orchestrator.driver.attempt import Attempt
from orchestrator.rundir.directory import RunDirectory
from orchestrator.signals import StopRequest

pytestmark = pytest.mark.slow


def settings_of(root: Path) -> RunConfig:
    """Write pairs on which two objectives disagree, and return the recipe of two steps on them."""
    cpu_run.write_task(root)
    rows = [{"prompt": f"{a}>", "chosen": "aa", "rejected": "bcd", "objective": "a"} for a in cpu_run.ALPHABET[:4]]
    rows += [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "objective": "b"} for row in rows]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    algorithm = {"type": "dpo", "batch_size": 4, "max_steps": 2, "learning_rate": 1e-3}
    data = {"dataset": str(root / "pairs.jsonl")}
    return cpu_run.config(root, root / "runs", "grpo", algorithm=algorithm, data=data, reward=[])


def printed(settings: RunConfig) -> str:
    """Run an attempt and return what it printed."""
    out = io.StringIO()
    directory = RunDirectory.create(settings, "")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), StopRequest() as stop:
        Attempt(settings, directory, stop, start_cluster=cpu_run.local_cluster).run()
    return out.getvalue()


def test_a_run_on_pairs_prints_the_warnings_of_the_audit(tmp_path: Path) -> None:
    text = printed(settings_of(tmp_path))
    assert text.count("audit: the objectives `a` and `b` decide 4 of 4 shared comparisons (100%) in opposite ways") == 1
