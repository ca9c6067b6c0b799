"""Targets: names of clusters in targets.yaml, and which of them a command means."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.launch.launchers import launcher_for
from orchestrator.launch.local import LocalLauncher
from orchestrator.launch.ray import RayLauncher
from orchestrator.launch.targets import LocalTarget, RayTarget, chosen_target, find_target, load_targets

FILE = """\
h100: {engine: ray, address: "http://head:8265", output_dir: /shared/runs, secrets: {WANDB_API_KEY: /run/secrets/wandb}}
prod: {engine: kuberay, image: "ghcr.io/team/rlhf@sha256:0", namespace: rlhf}
hpc: {engine: slurm, partition: gpu}
"""


@pytest.fixture(autouse=True)
def targets_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("RLHF_TARGET", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / "targets.yaml"
    path.write_text(FILE)
    monkeypatch.setenv("RLHF_TARGETS", str(path))
    return path


def test_targets_are_read_by_name() -> None:
    assert {name: target.engine for name, target in load_targets().items()} == {
        "local": "local",
        "h100": "ray",
        "prod": "kuberay",
        "hpc": "slurm",
    }
    target = find_target("h100")
    assert isinstance(target, RayTarget)
    assert (target.address, target.output_dir) == ("http://head:8265", "/shared/runs")
    assert target.secrets == {"WANDB_API_KEY": "/run/secrets/wandb"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("h100: {engine: ray}", "h100.ray.address"),
        ("h100: {engine: ray, address: head, outputdir: /a}", "h100.ray.outputdir"),
        ("h100: {engine: ray, address: head, output_dir: runs}", "h100.ray.output_dir"),
        ("h100: {engine: lsf}", "h100"),
        ("H100: {engine: local}", "H100.[key]"),
        ("h100: [", "the targets cannot be read"),
    ],
)
def test_a_mistake_in_the_file_is_named(targets_yaml: Path, text: str, what: str) -> None:
    targets_yaml.write_text(text)
    with pytest.raises(BadInput) as caught:
        load_targets()
    (problem,) = caught.value.problems
    assert (problem.what, problem.where) == (what, str(targets_yaml))


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_target() is None
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:8265")
    assert chosen_target() == RayTarget(engine="ray", address="http://other:8265")
    monkeypatch.setenv("RLHF_TARGET", "hpc")
    assert chosen_target() == find_target("hpc") == find_target(None)
    assert chosen_target("h100") == find_target("h100")
    assert chosen_target(None, "head") == RayTarget(engine="ray", address="head")
    with pytest.raises(BadInput, match="--on and --cluster are given"):
        chosen_target("h100", "head")
    with pytest.raises(BadInput, match="did you mean h100"):
        chosen_target("h10")


def test_each_engine_has_its_launcher_and_none_is_loaded_for_another() -> None:
    assert isinstance(launcher_for(LocalTarget(engine="local")), LocalLauncher)
    assert isinstance(launcher_for(find_target("h100")), RayLauncher)
    for name, kind in (("prod", "KubeRayLauncher"), ("hpc", "SlurmLauncher")):
        assert type(launcher_for(find_target(name))).__name__ == kind
    script = (
        "import sys\n"
        "from orchestrator.launch.launchers import launcher_for\n"
        "from orchestrator.launch.targets import find_target\n"
        "for name in ('local', 'h100', 'prod', 'hpc'): launcher_for(find_target(name))\n"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
