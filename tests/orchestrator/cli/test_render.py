"""Command `rlhf render kuberay`: targets, options, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from recipe_dir import RecipeDir

from orchestrator.cli.main import main

IMAGE = "registry.example/rlhf@sha256:" + "0" * 64
RECIPE = """name: a
model: {path: Qwen/Qwen3-8B}
data: {dataset: trl-lib/ultrafeedback_binarized}
algorithm: {type: dpo, max_steps: 10}
policy: {num_ranks: 5}
reference: {num_ranks: 4}
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("RLHF_TARGET", raising=False)
    (recipe_dir.path / "a.yaml").write_text(RECIPE)
    targets = recipe_dir.path / "targets.yaml"
    targets.write_text(
        f"prod: {{engine: kuberay, image: '{IMAGE}', volume_claim: runs, queue: team-a, gpu: H200}}\n"
        "login: {engine: slurm}\n"
    )
    monkeypatch.setenv("RLHF_TARGETS", str(targets))

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["render", "kuberay", "a.yaml", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def job_of(text: str) -> dict[str, Any]:
    return next(each for each in yaml.safe_load_all(text) if each["kind"] == "RayJob")


def test_a_target_decides(run: Run) -> None:
    code, out, _ = run("--on", "prod", "seed=3")
    job = job_of(out)
    assert code == 0
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert job["spec"]["suspend"] is True
    assert job["spec"]["entrypoint"].endswith("rlhf run --attempts 5 a.yaml seed=3 output_dir=/runs")


def test_idle_gpus_are_named_beside_the_manifests(run: Run) -> None:
    code, out, err = run("--image", IMAGE, "--attempts", "2")
    assert code == 0
    assert err == "rlhf: 7 of 16 GPUs would be idle\n"  # 5 and 4 ranks on whole nodes of 8
    assert "--attempts 2" in job_of(out)["spec"]["entrypoint"]
    assert "suspend" not in job_of(out)["spec"]


def test_too_few_gpus_are_refused(run: Run) -> None:
    code, out, err = run("--image", IMAGE, "--gpus", "8xH100")
    assert (code, out) == (2, "")
    assert "16 GPUs are needed, 8 given" in err
    assert "rlhf plan a.yaml --gpus 8xH100" in err


def test_a_target_of_another_engine_is_refused(run: Run) -> None:
    code, out, err = run("--on", "login")
    assert (code, out) == (2, "")
    assert "the target's engine is slurm" in err


def test_without_target_and_image_it_says_what_to_give(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "no target is given" in err


def test_a_tag_is_no_image(run: Run) -> None:
    code, out, err = run("--image", "rlhf:latest")
    assert (code, out) == (2, "")
    assert "NAME@sha256:DIGEST" in err
