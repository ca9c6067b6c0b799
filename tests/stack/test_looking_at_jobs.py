"""Jobs of a real, full Ray cluster, seen from a machine without their run directories: status, why, rounds, logs, stop.

Also the exit codes of `wait_for_job`, and a secret that only the job sees.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from job_cluster import job_cluster

from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.launch.base import JobRequest, JobState
from orchestrator.launch.ray import RayLauncher
from orchestrator.launch.targets import RayTarget
from orchestrator.launch.wait import wait_for_job
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger

pytestmark = [
    pytest.mark.stack,
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),  # Ray 2.60 with aiohttp 3.14
]

RECIPE = """\
name: a
model: {path: org/model}
data: {prompts: prompts.jsonl}
reward: [{type: math}]
algorithm: {type: dpo, max_steps: 40}
"""
FILLER = """\
import time
import ray
ray.init(log_to_driver=False, logging_level="WARNING")
assert ray.util.placement_group([{"CPU": 1}]).wait(60)
print("the cluster is full", flush=True)
time.sleep(600)
"""


class At:
    """One cluster, its launcher, and `rlhf` with the options that name it."""

    def __init__(self, address: str, token: Path) -> None:
        self.address, self.token = address, token
        self.launcher = RayLauncher(RayTarget(engine="ray", address=address, token_file=token))

    def submit(self, id: str, script: str, **options: object) -> str:
        request = JobRequest(id=id, run=id, command=(sys.executable, "-c", script), **options)  # type: ignore[arg-type]
        return self.launcher.submit(request).job.id

    def rlhf(self, *arguments: str) -> int:
        return main([*arguments, "--cluster", self.address, "--token-file", str(self.token)])


def without_times(text: str) -> str:
    return re.sub(r"just now|\d+ \w+ ago", "TIME", text)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[At]:
    with job_cluster(tmp_path_factory.mktemp("home")) as (address, token):
        yield At(address, token)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """Make the directory of a run of two rounds that only the cluster knows of: nothing here is called by its path."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    config = load(tmp_path / "recipe.yaml", [f"output_dir={tmp_path / 'runs'}"]).stages[-1]
    directory = RunDirectory.create(config, RECIPE)
    attempt, metrics = directory.start_attempt(), MetricsFile(directory.metrics)
    with Ledger.open(directory.ledger) as ledger:
        ledger.append(Fact.attempt, attempt=attempt, step=0)
        ledger.append(Fact.placed, attempt=attempt, step=0, devices={"policy": 1.0})
        for step in (1, 2):
            for fact in (Fact.planned, Fact.generated, Fact.scored, Fact.trained, Fact.published, Fact.committed):
                ledger.append(fact, attempt=attempt, step=step)
            metrics.append(step, {"pairs/count": 10.0 * step, "reward": 0.5, "timing/step": 2.0})
    (directory.logs(attempt) / "policy-1.log").write_text("written by rank 1\n“é”\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return directory


def test_a9_everything_about_a_run_is_answered_from_the_cluster(
    at: At, shared: RunDirectory, capfd: pytest.CaptureFixture[str]
) -> None:
    id = at.submit("rlhf-full-12345678", FILLER, directories=(str(shared.path),))
    until(lambda: "the cluster is full" in "".join(at.launcher.logs(id)))

    def answer(*arguments: str) -> str:
        capfd.readouterr()
        assert at.rlhf(*arguments) == 0
        captured = capfd.readouterr()
        assert captured.err == "", "nothing of Ray is printed"
        return captured.out

    with shared.held():
        here = main(["why", str(shared.path)])
        assert here == 0
        explained = capfd.readouterr().out
        assert without_times(answer("why", id)) == without_times(explained)
        status = json.loads(answer("status", id, "--json"))
        assert (status["state"], status["job"]["id"], status["run"]["step"]) == ("RUNNING", id, 2)
        assert (status["run"]["step_s"], status["run"]["directory"]) == (2.0, str(shared.path))
        assert "round      2 of 40 done\n" in answer("status")
        assert answer("logs", id, "--role", "policy", "--rank", "1") == "written by rank 1\n“é”\n"
        assert json.loads(answer("rounds", id, "--json"))["rounds"][1]["metrics"]["pairs/count"] == 20.0
        assert answer("logs", id) == "the cluster is full\n"
        answer("stop", id)
        assert (shared.path / "stop").is_file()
    assert [job["id"] for job in json.loads(answer("jobs", "--json"))["jobs"]] == [id], "looks are no jobs"
    assert at.rlhf("why", str(shared.path.parent / "nowhere")) == 2
    assert "not a run directory" in capfd.readouterr().err
    (job,) = (job for job in at.launcher._jobs.list() if job.id == id)
    assert job.status == "RUNNING", "a stop file is no signal: this job does not read it"
    at.launcher._jobs.stop(id)
    until(lambda: (found := at.launcher.find(id)) is not None and found.state is JobState.stopped)
    assert at.rlhf("status", id) == 143


def test_a9_waiting_ends_with_the_exit_code_of_the_run(at: At) -> None:
    """Check with jobs that end like a run: all are submitted before the first one is waited for."""
    ids = {
        code: at.submit(f"rlhf-code-{code:08}", f"print('step 1'); raise SystemExit({code})")
        for code in (0, 2, 3, 4, 5, 143)
    }
    for code, id in ids.items():
        lines: list[str] = []
        assert wait_for_job(at.launcher, id, lines.append) == code
        assert lines.count("step 1") == 1
        state = {0: "SUCCEEDED", 143: "STOPPED"}.get(code, "FAILED")
        assert lines[-1].startswith(f"{id} {state}")
    assert at.rlhf("logs", "-f", ids[5]) == 5


def test_t17_a_secret_by_file_is_seen_by_the_job_alone(at: At, tmp_path: Path) -> None:
    canary = secrets.token_hex(20)
    (tmp_path / "wandb").write_text(canary + "\n")
    script = (
        "import glob, os, time\n"
        "print('length', len(os.environ['WANDB_API_KEY']), flush=True)\n"
        "key = os.environ['WANDB_API_KEY'].encode()\n"
        "print('lines', sum(key in open(p, 'rb').read() for p in glob.glob('/proc/[0-9]*/cmdline')), flush=True)\n"
        "time.sleep(1)"
    )
    id = at.submit("rlhf-secret-12345678", script, secrets={"WANDB_API_KEY": str(tmp_path / "wandb")})
    assert wait_for_job(at.launcher, id, lambda _: None) == 0
    log = "".join(at.launcher.logs(id))
    assert log == "length 40\nlines 0\n"
    headers = {"Authorization": f"Bearer {at.token.read_text()}"}
    listing = requests.get(f"http://{at.address}/api/jobs/", headers=headers, timeout=10).text
    assert shlex.join(["entry", "secrets", f"WANDB_API_KEY={tmp_path / 'wandb'}"]) in listing
    assert canary not in listing + log


def test_a_job_that_failed_is_resumed_on_the_cluster(at: At) -> None:
    id = at.submit("rlhf-again-12345678", "raise SystemExit(4)")
    assert wait_for_job(at.launcher, id, lambda _: None) == 4
    assert at.rlhf("resume", id) == 0
    assert wait_for_job(at.launcher, id, lambda _: None) == 4
    found = at.launcher.find(id)
    assert found is not None
    assert found.id == f"{id}-2"
