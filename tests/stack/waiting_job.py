"""Job of `test_waiting_jobs.py`: it waits as `rlhf run` does, and takes every CPU of the cluster for a while.

    python waiting_job.py DIRECTORY SECONDS NUM_STAGES

Every stage has a placement of its own. All but the last stage last until DIRECTORY/go exists, so that the test can
submit further jobs meanwhile. Events are appended to DIRECTORY/events.jsonl.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator.cluster.turn import submission_id
from orchestrator.driver.door import wait_at_the_door
from orchestrator.terminal import say


class Sleeper:
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def report(directory: Path, event: str, **details: Any) -> None:
    line = json.dumps({"id": submission_id(), "event": event, "time": time.time(), **details})
    with (directory / "events.jsonl").open("a") as file:
        file.write(line + "\n")


def peak_mib() -> float:
    """Return the largest memory that this process has had in use so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def stage(directory: Path, seconds: float, go: Path | None) -> None:
    from orchestrator.cluster.base import GangPlan, Resources, wait
    from orchestrator.cluster.ray_cluster import RayCluster
    from orchestrator.config import ClusterConfig

    resources = Resources(cpus=4.0, environment={"PYTHONPATH": str(Path(__file__).parent)})
    plan = GangPlan(role="policy", start=Sleeper, arguments=[{}], resources=resources)
    cluster = RayCluster(ClusterConfig(device="cpu"))
    try:
        gangs = cluster.spawn([plan], lambda text: report(directory, text or "placed"))
        wait(gangs["policy"].all(Sleeper.sleep, seconds))
        deadline = time.monotonic() + 120
        while go is not None and not go.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        report(directory, "done")
    finally:
        cluster.shutdown()


def main(directory: Path, seconds: float, num_stages: int) -> None:
    wait_at_the_door([], say)
    heavy = sorted({"ray", "torch", "vllm"} & set(sys.modules))
    report(directory, "at the door", peak_mib=peak_mib(), heavy=heavy, pid=os.getpid())
    for number in range(num_stages):
        stage(directory, seconds, directory / "go" if number < num_stages - 1 else None)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import waiting_job  # the workers import it by this name

    waiting_job.main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
