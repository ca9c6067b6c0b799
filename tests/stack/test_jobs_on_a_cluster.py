"""Jobs on a real cluster with token authentication: refused without the token, run, submitted once, stopped, listed."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from orchestrator.cli.main import main
from orchestrator.cluster.job_server import Server
from orchestrator.cluster.ray_jobs import Job, JobRequest, Jobs
from orchestrator.errors import ClusterError

pytestmark = pytest.mark.stack


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Start a one-node cluster with a HOME of its own, and yield the address of its dashboard and its token file."""
    home = tmp_path_factory.mktemp("home")
    token = home / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    port = free_port()
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--temp-dir=/tmp/r{os.getpid()}"]
    command += ["--num-cpus=1", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    variables = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | variables
    with open(home / "log", "w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        server = Server.at(f"127.0.0.1:{port}", token_file=token)
        deadline = time.monotonic() + 60
        while True:
            try:
                server.check()
                break
            except ClusterError:
                assert head.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline, (home / "log").read_text()
                time.sleep(0.5)
        yield f"127.0.0.1:{port}", token
    finally:
        family = psutil.Process(head.pid).children(recursive=True)
        for process in (head, *family):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(30)
        psutil.wait_procs(family, timeout=30)
        shutil.rmtree(f"/tmp/r{os.getpid()}", ignore_errors=True)


def finished(jobs: Jobs, id: str) -> Job:
    deadline = time.monotonic() + 60
    while not (job := jobs.get(id)).is_finished:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # Ray 2.60 with aiohttp 3.14
def test_a_job_from_submission_to_its_log(
    cluster: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, token = cluster
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "somewhere.else:1")  # an explicit address takes precedence
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ClusterError, match="the token step failed"):
        Jobs.connect(Server.at(address))
    (tmp_path / "wrong").write_text("b" * 64)
    with pytest.raises(ClusterError, match="refuses this token"):
        Jobs.connect(Server.at(address, token_file=tmp_path / "wrong"))
    assert stat.S_IMODE(token.stat().st_mode) == 0o600

    upload = tmp_path / "upload"
    upload.mkdir()
    (upload / "hello.txt").write_text("hello from the upload")
    (upload / ".env").write_text("SECRET=1")
    jobs = Jobs.connect(Server.at(address, token_file=token))
    request = JobRequest(
        id="rlhf-hello-1", entrypoint="cat hello.txt; ls -A", working_dir=upload, metadata={"rlhf_run": "a"}
    )
    submitted = jobs.submit(request)
    assert submitted.is_new
    assert finished(jobs, "rlhf-hello-1").status == "SUCCEEDED"
    assert not jobs.submit(request).is_new
    log = jobs.logs("rlhf-hello-1")
    assert "hello from the upload" in log
    assert ".env" not in log

    failing = JobRequest(id="rlhf-fails-1", entrypoint="exit 2")
    jobs.submit(failing)
    assert finished(jobs, "rlhf-fails-1").exit_code == 2
    sleeper = JobRequest(id="rlhf-fails-1", entrypoint="echo started; sleep 60")
    resubmitted = jobs.submit(sleeper)
    assert (resubmitted.is_new, resubmitted.job.id) == (True, "rlhf-fails-1-2")
    log_chunks = jobs.follow(resubmitted.job.id)
    assert any("started" in chunk for chunk in log_chunks)
    log_chunks.close()
    jobs.stop(resubmitted.job.id)
    assert finished(jobs, resubmitted.job.id).status == "STOPPED"
    assert [job.id for job in jobs.list()] == ["rlhf-fails-1-2", "rlhf-fails-1", "rlhf-hello-1"]
    assert jobs.newest().metadata == {}


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
def test_status_shows_the_progress_of_a_running_job(
    cluster: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    address, token = cluster
    jobs = Jobs.connect(Server.at(address, token_file=token))
    line = "round 2/3  rollout 1,536 of 8,192 prompts  12/s  9:14 left"
    jobs.submit(JobRequest(id="rlhf-long-1", entrypoint=f"echo 'starting Ray'; echo '{line}'; sleep 60"))
    deadline = time.monotonic() + 60
    shown = ""
    while "progress" not in shown and time.monotonic() < deadline:
        assert main(["status", "--cluster", address, "--token-file", str(token), "rlhf-long-1"]) == 0
        shown = capsys.readouterr().out
        time.sleep(0.2)
    assert f"progress  {line}\n" in shown
    assert "status    RUNNING\n" in shown
    jobs.stop("rlhf-long-1")
    assert finished(jobs, "rlhf-long-1").status == "STOPPED"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/jobs/"),
        ("POST", "/api/jobs/"),
        ("DELETE", "/api/jobs/rlhf-hello-1"),
        ("POST", "/api/jobs/rlhf-hello-1/stop"),
        ("GET", "/api/jobs/rlhf-hello-1/logs"),
        ("GET", "/api/packages/gcs/any.zip"),
        ("PUT", "/api/packages/gcs/any.zip"),
        ("GET", "/nodes?view=summary"),
        ("GET", "/api/v0/actors"),
        ("GET", "/logical/actors"),
        ("GET", "/api/component_activities"),
        ("GET", "/worker/traceback?pid=1&ip=127.0.0.1&native=0"),
    ],
)
def test_t19_nobody_without_the_token_gets_an_answer(cluster: tuple[str, Path], method: str, path: str) -> None:
    for headers in ({}, {"Authorization": f"Bearer {'b' * 64}"}, {"Authorization": ""}):
        answer = requests.request(method, f"http://{cluster[0]}{path}", json={}, headers=headers, timeout=10)
        assert answer.status_code in (401, 403), answer.text


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
def test_t17_no_secret_of_the_sender_travels_with_a_job(
    cluster: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check what Ray lists of a job: everyone who may list jobs sees its entrypoint, metadata and environment."""
    address, token = cluster
    canaries = {"WANDB_API_KEY": secrets.token_hex(20), "HF_TOKEN": f"hf_{secrets.token_hex(16)}"}
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "demonstrations.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: a\nmodel: {path: m}\ndata: {dataset: demonstrations.jsonl}\nalgorithm: {type: sft}\n")
    arguments = ["--cluster", address, "--token-file", str(token), "--working-dir", str(tmp_path)]
    assert main(["submit", str(recipe), *arguments]) == 0
    listing = requests.get(
        f"http://{address}/api/jobs/", headers={"Authorization": f"Bearer {'a' * 64}"}, timeout=10
    ).text
    assert "rlhf run recipe.yaml" in listing
    assert not [name for name, value in {**canaries, "token": token.read_text()}.items() if value in listing]
