"""Jobs on a real cluster with token authentication: refused without the token, run, submitted once, stopped, listed."""

from __future__ import annotations

import json
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from job_cluster import finished, job_cluster

from orchestrator.cli.main import main
from orchestrator.cluster.job_server import Server
from orchestrator.cluster.ray_jobs import JobRequest, Jobs
from orchestrator.errors import ClusterError
from orchestrator.launch.package import MIB, Named, build_package, write_zip

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with job_cluster(tmp_path_factory.mktemp("home")) as found:
        yield found


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
    (upload / ".gitignore").write_text("hello.txt")
    (upload / "hello.txt").write_text("hello from the upload")
    (upload / "other.txt").write_text("not named")
    write_zip(build_package([Named(path="hello.txt", by="a test")], upload), tmp_path / "package.zip")
    jobs = Jobs.connect(Server.at(address, token_file=token))
    archive = tmp_path / "package.zip"
    request = JobRequest(
        id="rlhf-hello-1", entrypoint="cat hello.txt; ls -A", archive=archive, metadata={"rlhf_run": "a"}
    )
    submitted = jobs.submit(request)
    assert submitted.is_new
    assert finished(jobs, "rlhf-hello-1").status == "SUCCEEDED"
    assert not jobs.submit(request).is_new
    log = jobs.logs("rlhf-hello-1")
    assert "hello from the upload" in log
    assert "other.txt" not in log

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
    assert jobs.list()[0].metadata == {}


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
    assert f"progress   {line}\n" in shown
    assert "state      RUNNING\n" in shown
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
    recipe.write_text("name: a\nmodel: {path: org/m}\ndata: {dataset: demonstrations.jsonl}\nalgorithm: {type: sft}\n")
    arguments = [
        "--cluster",
        address,
        "--token-file",
        str(token),
        "--working-dir",
        str(tmp_path),
        f"output_dir={tmp_path}",
    ]
    assert main(["submit", str(recipe), *arguments]) == 0
    listing = requests.get(
        f"http://{address}/api/jobs/", headers={"Authorization": f"Bearer {'a' * 64}"}, timeout=10
    ).text
    assert "rlhf run recipe.yaml" in listing
    assert not [name for name, value in {**canaries, "token": token.read_text()}.items() if value in listing]


RECIPE = """\
stages:
  - recipe: base.yaml
  - name: final
    model: {from_stage: base, dtype: float32}
    data: {dataset: data/pairs.jsonl}
    algorithm: {type: dpo, batch_size: 4, max_steps: 1}
    cluster: {cpus_per_worker: 0.25}
"""
BASE = """\
name: base
model: {path: data/model, dtype: float32}
data: {dataset: data/demonstrations.jsonl}
algorithm: {type: sft, batch_size: 4, max_steps: 1}
cluster: {cpus_per_worker: 0.25}
"""


def test_a1_a10_a_recipe_whose_data_git_ignores_runs_and_all_its_stages_write_to_the_output_dir(
    cluster: tuple[str, Path], qwen2: Path, tmp_path: Path
) -> None:
    """Submit from a fresh clone with data that the recipe names, and wait for the end of the run."""
    address, token = cluster
    clone, shared = tmp_path / "clone", tmp_path / "shared"
    shutil.copytree(qwen2, clone / "data")
    (clone / ".gitignore").write_text("/data/\n/runs/\n")
    subprocess.run(["git", "init", "-q", str(clone)], check=True)
    (clone / "recipe.yaml").write_text(RECIPE)
    (clone / "base.yaml").write_text(BASE)
    command = [sys.executable, "-m", "orchestrator.cli", "submit", "recipe.yaml", "--cluster", address]
    command += ["--token-file", str(token), "--wait", "--json", f"output_dir={shared}"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)  # no line of Ray's is among it
    assert (document["exit_code"], document["directories"]) == (0, [f"{shared}/base", f"{shared}/final"])
    assert "INFO" not in done.stderr
    for name in ("base", "final"):
        assert (shared / name / "model" / "model.safetensors").exists()
    assert json.loads((shared / "final" / "resolved.json").read_text())["model"]["path"] == f"{shared}/base/model"
    assert not (clone / "runs").exists()


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
def test_a11_64_mib_are_shipped_and_arrive(cluster: tuple[str, Path], tmp_path: Path) -> None:
    address, token = cluster
    with open(tmp_path / "data.bin", "wb") as file:
        file.truncate(64 * MIB)
    package = build_package([Named(path="data.bin", by="a test")], tmp_path)
    write_zip(package, tmp_path / "package.zip")
    jobs = Jobs.connect(Server.at(address, token_file=token))
    jobs.submit(JobRequest(id="rlhf-large-1", entrypoint="sha256sum data.bin", archive=tmp_path / "package.zip"))
    assert finished(jobs, "rlhf-large-1").status == "SUCCEEDED"
    assert f"{package.files['data.bin']}  data.bin" in jobs.logs("rlhf-large-1")


SLOW_TO_STOP = """\
import signal, sys, time
def stop(*_):
    time.sleep(5)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("started", flush=True)
time.sleep(120)
"""


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
def test_a_stopped_job_has_the_time_that_it_asked_for(cluster: tuple[str, Path], tmp_path: Path) -> None:
    """Stop a job that needs longer than the 3 s that Ray gives one by default."""
    address, token = cluster
    (tmp_path / "slow.py").write_text(SLOW_TO_STOP)
    write_zip(build_package([Named(path="slow.py", by="a test")], tmp_path), archive := tmp_path / "package.zip")
    jobs = Jobs.connect(Server.at(address, token_file=token))
    entrypoint = f"exec {sys.executable} slow.py"
    jobs.submit(JobRequest(id="rlhf-slow-1", entrypoint=entrypoint, archive=archive, grace_s=60))
    deadline = time.monotonic() + 60
    while "started" not in jobs.logs("rlhf-slow-1"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    jobs.stop("rlhf-slow-1")
    assert finished(jobs, "rlhf-slow-1").status == "STOPPED"
    assert "saved" in jobs.logs("rlhf-slow-1")
