"""Jobs on a real Slurm with three hosts and real Ray: they run, are looked at, stop, and survive whatever hits them.

A run that lost a host, was put back into the queue, reached its time limit or was stopped ends with the weights of the
undisturbed run, bit for bit, and does at most one checkpoint interval again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import slurm_task
import yaml
from slurm_hosts import SlurmHosts, why_not
from slurm_task import EVERY, RANKS, STEPS

from orchestrator.launch.base import Job, JobRequest, JobState
from orchestrator.launch.slurm import SlurmLauncher
from orchestrator.launch.targets import SlurmTarget
from orchestrator.rundir.ledger import Fact, account, read_ledger

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.timeout(2400),
]

RUN_S = 600.0  # for a run on a machine with two cores, from start to end
BIN = Path(sys.executable).parent


class Cluster:
    """Slurm, a target that leads to it, and the commands of a user."""

    def __init__(self, slurm: SlurmHosts) -> None:
        self.slurm, self.runs = slurm, slurm.shared / "runs"
        self.task = slurm.shared / "task"
        self.task.mkdir()
        slurm_task.write_task(self.task)
        self.settings = {
            "gpus_per_node": 0,
            "cpus_per_node": 3,  # four ranks and the process of the dataset need two hosts
            "work_dir": str(slurm.shared / "jobs"),
            "activate": f"source {BIN}/activate",
        }
        self.targets = slurm.directory / "targets.yaml"
        self.targets.write_text(yaml.safe_dump({"three": {"engine": "slurm", **self.settings}}))

    def launcher(self, **settings: Any) -> SlurmLauncher:
        return SlurmLauncher(SlurmTarget(engine="slurm", **{**self.settings, **settings}))

    def rlhf(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user does, in the directory of the task."""
        environment = {**os.environ, "RLHF_TARGETS": str(self.targets)}
        return subprocess.run(
            [str(BIN / "rlhf"), *arguments],
            capture_output=True,
            text=True,
            cwd=self.task,
            env=environment,
            timeout=RUN_S,
        )

    def asked(self, verb: str, *arguments: str) -> Any:
        """Return the JSON document of a verb."""
        done = self.rlhf(verb, *arguments, "--on", "three", "--json")
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def submit(self, name: str) -> str:
        """Submit the run `name`, unless it was before, and return the job's id."""
        recipe = slurm_task.write_recipe(self.task, self.runs, name)
        done = self.rlhf("submit", recipe.name, "--on", "three")
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[0]

    def find(self, id: str) -> Job:
        job = self.launcher().find(id)
        assert job is not None
        return job

    def step(self, name: str) -> int:
        """Return the last step that the run has committed; 0 before the first."""
        ledger = self.runs / name / "ledger.jsonl"
        records = read_ledger(ledger)[0] if ledger.exists() else ()
        return max((r.step for r in records if r.fact is Fact.committed), default=0)

    def until(self, id: str, condition: Callable[[], bool], within_s: float = RUN_S) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, self.story(id)
            assert not self.find(id).state.is_finished, self.story(id)
            time.sleep(0.3)

    def ended(self, id: str, within_s: float = RUN_S) -> Job:
        deadline = time.monotonic() + within_s
        while not (job := self.find(id)).state.is_finished:
            assert time.monotonic() < deadline, self.story(id)
            time.sleep(1)
        return job

    def story(self, id: str) -> str:
        """Return what is known of a job, for a failure's message."""
        log = "".join(self.launcher().logs(id))
        return f"{self.find(id)}\n{log[-4000:]}\n{self.slurm.words(*self.slurm.names)}"

    def host_of(self, log: str) -> str:
        """Return the host of the process that writes this log."""
        command = f"ls -l /proc/[0-9]*/fd 2> /dev/null | grep -q {log}"
        return next(host for host in self.slurm.names if self.slurm.inside(host, command).returncode == 0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with SlurmHosts.open() as slurm:
        yield Cluster(slurm)


@pytest.fixture(scope="module")
def expected(cluster: Cluster) -> str:
    """Return the weights of the undisturbed run. It runs once, for whichever test asks first."""
    id = cluster.submit("whole")
    job = cluster.ended(id)
    assert job.state is JobState.succeeded, cluster.story(id)
    return slurm_task.weights(cluster.runs / "whole")


# ------------------------------------------------------------------------------------------ one job


def test_b6_equal_submissions_at_once_are_one_job(cluster: Cluster) -> None:
    """Submit each of twenty jobs twice at once. They are held, so that none starts."""
    held = {"options": {"hold": ""}}

    def submit(id: str) -> bool:
        return cluster.launcher(**held).submit(JobRequest(id=id, run="held", command=("true",))).is_new

    ids = [f"rlhf-held-{i}" for i in range(20)]
    with ThreadPoolExecutor(2) as pool:
        new = [sorted(pool.map(submit, [id, id])) for id in ids]
    numbers = subprocess.run(
        ["squeue", "--noheader", "--states=all", f"--name={','.join(ids)}", "--format=%j"],
        capture_output=True,
        text=True,
    )
    for id in ids:
        subprocess.run(["scancel", f"--name={id}"], check=True)
    assert new == [[False, True]] * 20
    assert sorted(numbers.stdout.split()) == sorted(ids)


def test_b7_a_host_that_cannot_start_ray_ends_the_job_at_once_and_is_named(cluster: Cluster) -> None:
    cluster.slurm.inside("n2", "mount -o remount,ro /tmp")
    try:
        launcher = cluster.launcher(options={"exclude": "n3"})
        command = ("python", "-c", "print('the run was started')")
        five = slurm_task.pods(cpus=5)
        launcher.submit(JobRequest(id="rlhf-broken", run="broken", command=command, pods=five))
        cluster.until("rlhf-broken", lambda: cluster.find("rlhf-broken").started is not None)
        began = time.time()
        job = cluster.ended("rlhf-broken")
    finally:
        cluster.slurm.inside("n2", "mount -o remount,rw /tmp")
    log = "".join(launcher.logs("rlhf-broken"))
    assert (job.state, job.exit_code) == (JobState.failed, 3), log
    assert time.time() - began < 60
    assert re.search(r"Ray has ended on n2 with exit code \d+", log), log
    assert re.search(r"n2: .*Read-only file system", log), log
    assert "the run was started" not in log


def test_jobs_share_a_host(cluster: Cluster) -> None:
    """Run two jobs on one host at once: each has its own Ray, and finds itself in it."""
    launcher = cluster.launcher(cpus_per_node=1, options={"nodelist": "n3", "mem": "4G"})
    script = (
        "import ray, time; ray.init(); time.sleep(20); print(len(ray.nodes()), 'node'); assert len(ray.nodes()) == 1"
    )
    ids = ["rlhf-one", "rlhf-other"]
    for id in ids:
        launcher.submit(JobRequest(id=id, run=id, command=("python", "-c", script), pods=slurm_task.pods(cpus=1)))
    jobs = [cluster.ended(id) for id in ids]
    assert [job.state for job in jobs] == [JobState.succeeded] * 2, cluster.story(ids[0]) + cluster.story(ids[1])
    started, ended = ([getattr(job, when) or 0.0 for job in jobs] for when in ("started", "ended"))
    assert max(started) < min(ended), "they did not run at the same time"
    assert left_behind(cluster) == ""


def test_b4_a_job_runs_on_two_hosts_and_answers(cluster: Cluster) -> None:
    id = cluster.submit("whole")
    cluster.until(id, lambda: cluster.step("whole") >= 2)
    hosts = [cluster.host_of(f"policy-{rank}.log") for rank in range(RANKS)]
    networks = {cluster.slurm.inside(host, "readlink /proc/self/ns/net").stdout for host in hosts}
    assert len(networks) >= 2, hosts
    (listed,) = (job for job in cluster.asked("jobs")["jobs"] if job["id"] == id)
    assert (listed["state"], listed["directories"]) == ("RUNNING", [str(cluster.runs / "whole")])
    assert cluster.asked("status", id)["run"]["num_steps"] == STEPS
    assert "step " in cluster.asked("logs", id)["text"], "the log of a running job can be read"
    assert cluster.asked("logs", id, "--role", "policy", "--rank", "3")["log"].endswith("policy-3.log")
    elsewhere = replace(cluster.find(id), directories=("/only/there/run",))  # as from a machine without the storage
    output = cluster.launcher().execute(elsewhere, ["--version"])
    assert (output.exit_code, output.stdout[:5]) == (0, "rlhf "), output
    waited = cluster.rlhf("submit", "whole.yaml", "--on", "three", "--wait")
    assert waited.returncode == 0, waited.stderr
    assert "submitted before" in waited.stderr
    assert cluster.find(id).state is JobState.succeeded
    assert cluster.asked("why", id)["lines"]
    assert tokens_in(cluster.slurm.shared / "jobs" / id) == []
    assert left_behind(cluster) == ""


def test_b5_a_run_that_is_disturbed_in_every_way_ends_as_if_nothing_had_happened(
    cluster: Cluster, expected: str
) -> None:
    id, directory = cluster.submit("disturbed"), cluster.runs / "disturbed"
    for attempt, (name, disturb) in enumerate(DISTURBANCES.items(), start=1):
        before = cluster.step("disturbed")
        cluster.until(id, lambda: cluster.step("disturbed") >= before + EVERY + 1)  # noqa: B023
        number = re.sub(r"\D", "", cluster.find(id).engine_state)
        killed = disturb(cluster, id, number)
        if name == "stop":
            job = cluster.ended(id)
            assert (job.state, job.exit_code) == (JobState.stopped, 143), cluster.story(id)
            assert "stop" in " ".join(cluster.asked("why", id)["lines"]).lower()
            resumed = cluster.rlhf("resume", id, "--on", "three")
            assert resumed.returncode == 0, resumed.stderr
        else:
            cluster.until(id, lambda: cluster.find(id).state is JobState.preempted, 180)
            scontrol("update", f"JobId={number}", "TimeLimit=60")
        if killed:
            cluster.slurm.boot(killed)
        cluster.until(id, lambda: len(list(directory.glob("logs/attempt-*"))) > attempt)  # noqa: B023
    job = cluster.ended(id)
    assert job.state is JobState.succeeded, cluster.story(id)
    assert slurm_task.weights(directory) == expected
    records = read_ledger(directory / "ledger.jsonl")[0]
    accounted = account(records)
    assert accounted.lost == accounted.repeated == ()
    starts = [i for i, record in enumerate(records) if record.fact is Fact.attempt]
    totals = [account(records[: start + 1]).redone for start in starts]
    redone = dict(zip(DISTURBANCES, (after - before for before, after in pairwise(totals)), strict=True))
    assert {name: steps for name, steps in redone.items() if steps > EVERY} == {}
    assert redone["time limit"] == redone["stop"] == 0, "the run had time to save"
    assert left_behind(cluster) == ""


def _stop(cluster: Cluster, id: str, number: str) -> None:
    assert cluster.rlhf("stop", id, "--on", "three").returncode == 0


def _requeue(cluster: Cluster, id: str, number: str) -> None:
    scontrol("requeue", number)


def _reach_time_limit(cluster: Cluster, id: str, number: str) -> None:
    started = cluster.find(id).started
    assert started is not None
    minutes = int((time.time() - started) / 60) + 2
    host, rank = cluster.host_of("policy-1.log"), "ls -d /proc/[0-9]*/fd/1 -l | grep policy-1.log | cut -d / -f 3"
    cluster.slurm.inside(host, f"kill -STOP $({rank})")  # else the run may be done before Slurm looks, twice a minute
    scontrol("update", f"JobId={number}", f"TimeLimit={minutes}")
    cluster.until(id, (cluster.runs / "disturbed" / "stop").exists, 180)
    cluster.slurm.inside(host, f"kill -CONT $({rank})")


def _kill_rank_1(cluster: Cluster, id: str, number: str) -> str:
    host = cluster.host_of("policy-1.log")
    cluster.slurm.kill(host)
    return host


def _kill_head(cluster: Cluster, id: str, number: str) -> str:
    asked = ["squeue", "--noheader", f"--jobs={number}", "--Format=BatchHost"]
    host = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    cluster.slurm.kill(host)
    return host


DISTURBANCES: dict[str, Callable[[Cluster, str, str], str | None]] = {
    "host of rank 1": _kill_rank_1,
    "host of the head": _kill_head,
    "requeue": _requeue,
    "time limit": _reach_time_limit,
    "stop": _stop,
}
"""Each by its name. A host that was killed is returned."""


def scontrol(*arguments: str) -> None:
    done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def tokens_in(place: Path) -> list[str]:
    """Return the files of a job that hold what looks like a Ray token, or that lie in its private directory."""
    files = [path for path in place.rglob("*") if path.is_file()]
    return [str(path) for path in files if re.search(rb"\b[0-9a-f]{64}\b", path.read_bytes()) or "private" in str(path)]


def left_behind(cluster: Cluster) -> str:
    """Return the processes and files of Ray on the hosts, after a moment in which they may end."""
    command = "ps axo stat=,args= | grep -E '^[^Z]+ .*(raylet|gcs_server|ray::)' | grep -v grep; ls -d /tmp/rlhf-*"
    found = ""
    for _ in range(60):
        outputs = {host: cluster.slurm.inside(host, command).stdout for host in cluster.slurm.names}
        found = "".join(f"{host}: {output}" for host, output in outputs.items() if output)
        if not found:
            break
        time.sleep(1)
    return found
