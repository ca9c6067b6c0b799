"""Commands of a rendered pod on real Ray: KubeRay's way to submit, the hook of a pod that ends, the next cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from job_cluster import job_cluster
from processes import eventually

from orchestrator.launch.needs import node_of, with_needs
from orchestrator.launch.render_kuberay import render
from orchestrator.launch.request import Asked, make_request, read_content
from orchestrator.launch.targets import KubeRayTarget
from orchestrator.rundir.directory import JOB, RunDirectory
from orchestrator.rundir.ledger import Fact, read_ledger

pytestmark = [pytest.mark.stack, pytest.mark.long]  # minutes: two clusters, one after the other

RECIPES = Path(__file__).parent / "recipes"
STEPS = 80


def rendered(work: Path, package: Path, runs: Path, model: Path) -> dict[str, Any]:
    target = KubeRayTarget(
        engine="kuberay", image="a@sha256:" + "0" * 64, volume_claim="runs", output_dir=str(runs), gpu="CPU"
    )
    overrides = (f"model.path={model}", f"algorithm.max_steps={STEPS}", f"checkpoint.every={STEPS}")
    asked = Asked(file=Path("base.yaml"), overrides=overrides, working_dir=work, attempts=2)
    content = read_content(asked, target)
    request, _ = with_needs(make_request(asked, content, target, package), content, node_of(target))
    job = render(request, target)[-1]
    return job


def steps_of(run: RunDirectory) -> int:
    if not run.ledger.exists():
        return 0
    return sum(record.fact is Fact.committed for record in read_ledger(run.ledger)[0])


def test_a_preempted_job_saves_and_its_next_cluster_goes_on(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, package, runs, home = (tmp_path / name for name in ("work", "package", "runs", "home"))
    for folder in (work, package, runs, home):
        folder.mkdir()
    shutil.copy(RECIPES / "base.yaml", work)
    shutil.copy(qwen2 / "demonstrations.jsonl", work)
    monkeypatch.chdir(work)
    job = rendered(work, package, runs, qwen2 / "model")
    entry = job["spec"]["entrypoint"].replace("--chdir=/package", f"--chdir={package}").replace("$$(", "$(")
    [container] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    hook, run = container["lifecycle"]["preStop"]["exec"]["command"], RunDirectory(runs / "base")
    monkeypatch.setenv(JOB, job["metadata"]["name"])
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    with job_cluster(home, num_cpus=4) as (address, token):
        variables = {"HOME": str(home), "PATH": programs, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | variables

        def submit(id: str) -> subprocess.Popen[bytes]:
            command = f"ray job submit --address http://{address} --submission-id {id} -- {entry} ;"
            with open(home / id, "wb") as log:
                return subprocess.Popen(["bash", "-ce", command], env=environment, stdout=log, stderr=log)

        first = submit("first")
        assert eventually(lambda: steps_of(run) >= 2 or first.poll() is not None, 240), (home / "first").read_text()
        assert first.poll() is None, (home / "first").read_text()
        ended = subprocess.run(hook, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert (ended.returncode, ended.stdout) == (0, "")
        assert first.wait(60) == 1  # from which KubeRay sees that the job has failed, and starts it again
        body, done = json.loads(run.exit.read_text()), steps_of(run)
        assert (body["exit_code"], body["cause"], body["job"]) == (143, "preempted", job["metadata"]["name"])
        assert 2 <= done < STEPS
        second = submit("second")
        assert second.wait(240) == 0, (home / "second").read_text()
    assert run.is_complete
    assert run.last_attempt == 2
    assert steps_of(run) == STEPS  # none was done again
