"""Fake attempt of a run: a process that writes a ledger and exit.json, or is killed before.

    python fake_attempt.py DIRECTORY ENDING [ENDING …]      the ending of the first attempt, of the second, …

An ending is `done` or STEP:HOW. STEP is the number of committed steps. HOW is `kill` (SIGKILL), `orphan` (SIGKILL, with
a child process left behind), `quiet` (exit code 1 without exit.json), `superseded` (exit code 6 without exit.json),
`wait` (for a signal), `asked` (a worker fails after somebody has asked for the end), or the cause of an error.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger

CODES = {"worker_failed": 4, "bad_input": 2, "cluster_lost": 3, "error": 1}


def main(path: str, *endings: str) -> int:
    directory = RunDirectory(Path(path))
    directory.path.mkdir(exist_ok=True)
    with directory.held(), Ledger.open(directory.ledger) as ledger:
        attempt = directory.start_attempt()
        first = max((r.step for r in ledger.records if r.fact == Fact.checkpoint), default=0)
        ledger.append(Fact.attempt, attempt=attempt, step=first)
        ending = endings[min(attempt, len(endings)) - 1]
        steps_done, _, outcome = ending.rpartition(":")
        for step in range(first + 1, int(steps_done or 9) + 1):
            ledger.append(Fact.committed, attempt=attempt, step=step)
            ledger.append(Fact.checkpoint, attempt=attempt, step=step)
        if outcome == "orphan":  # like Ray's processes if they hang
            orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            (directory.path / "orphan").write_text(str(orphan.pid))
        if outcome in ("kill", "orphan"):
            os.kill(os.getpid(), signal.SIGKILL)
        if outcome == "quiet":
            os._exit(1)
        if outcome == "superseded":
            os._exit(6)
        if outcome == "wait":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            print("waiting", flush=True)
            time.sleep(600)
        if outcome == "asked":
            (directory.path / "stop").touch()
            outcome = "worker_failed"
        cause, code = ("completed", 0) if outcome == "done" else (outcome, CODES[outcome])
        reached = int(steps_done or 9)
        directory.write_exit(cause=cause, message=f"it was {cause}", exit_code=code, attempt=attempt, step=reached)
        return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
