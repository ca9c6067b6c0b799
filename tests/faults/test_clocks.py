"""A clock that jumps: order depends on sequence numbers alone, and deadlines on a clock that cannot be set."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import cpu_run
import pytest
import run_in_process
from injection import Disk
from run_in_process import World

from orchestrator.cli.main import main
from orchestrator.rundir.ledger import read_ledger

ROOT = Path(__file__).parents[2]
DAYS_3 = 3 * 86400.0


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
def test_a_clock_that_jumps_back_changes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Set the clock back by three days after the first step, and by three more in the attempt after a kill."""
    run, real = world.root / "clock" / "run", time.time

    def first(disk: Disk) -> None:
        metrics = run / "metrics.jsonl"
        time.time = lambda: real() - DAYS_3 * (metrics.exists() and metrics.stat().st_size > 0)  # in this fork only
        disk.kill_at = world.log.index("mkdir run/.model.partial")
        cpu_run.run(world.config("clock"))

    def second(disk: Disk) -> None:
        time.time = lambda: real() - 2 * DAYS_3
        cpu_run.run(world.config("clock"))

    assert run_in_process.run_attempt(world.root / "clock", first) == -9
    assert run_in_process.run_attempt(world.root / "clock", second) == 0
    times = [record.time for record in read_ledger(run / "ledger.jsonl")[0]]
    assert sum(after < before - DAYS_3 / 2 for before, after in itertools.pairwise(times)) == 2
    assert main(["ledger", "verify", str(run)]) == 0
    assert main(["why", str(run)]) == 0
    assert "complete" in capsys.readouterr().out
    assert run_in_process.run_to_end(world, "clock") == 0


def test_the_wall_clock_only_records_and_shows_times() -> None:
    """Check that the wall clock is used only to record or show a time. Waiting uses the monotonic clock."""
    wall_clock = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(now|today|utcnow)\(|\bgmtime\(|st_mtime|\bgetmtime\(")
    found = {
        str(path.relative_to(ROOT))
        for package in ("orchestrator", "workers")
        for path in (ROOT / package).rglob("*.py")
        if wall_clock.search(path.read_text())
    }
    assert found == {
        "orchestrator/cli/jobs.py",  # duration of a running job
        "orchestrator/data/template.py",  # date for chat templates
        "orchestrator/driver/recorder.py",  # cost since the newest record
        "orchestrator/driver/small_files.py",  # whether a file has changed since it was stored
        "orchestrator/evaluation/evaluate.py",  # date of the evaluation
        "orchestrator/evaluation/judge_labels.py",  # date of the comparison
        "orchestrator/launch/local.py",  # times of a job
        "orchestrator/launch/slurm.py",  # whether the lock of a submission is that of a dead process
        "orchestrator/monitor/progress_file.py",  # time of the newest report
        "orchestrator/monitor/prometheus_runs.py",  # how long a run has waited, or gone without a record
        "orchestrator/plan/work.py",  # whether a file has changed since its rows were counted
        "orchestrator/rundir/incidents.py",
        "orchestrator/rundir/ledger.py",
        "orchestrator/rundir/stop.py",  # when a stop was asked for
        "orchestrator/rundir/why.py",  # how long ago
        "orchestrator/signals.py",  # when a signal came
    }
