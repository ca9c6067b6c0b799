"""Job scripts for Slurm: golden files, quoting in a real shell, refusals, and options of sbatch."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from render_tools import working_directory

from orchestrator.cli.main import main
from orchestrator.errors import BadInput
from orchestrator.launch.base import JobRequest, Package, Pods
from orchestrator.launch.render_slurm import nodes_of, place_of, render, seconds_of
from orchestrator.launch.targets import SlurmTarget

GOLDEN = Path(__file__).parents[2] / "golden" / "render"
HEAD = Pods(role="head", count=1, gpus=0, cpus=8, memory_gib=16)
EIGHT_GPUS = Pods(role="worker", count=2, gpus=8, cpus=96, memory_gib=1000)
FIVE_CPUS = Pods(role="worker", count=1, gpus=0, cpus=5, memory_gib=22)
LARGE = JobRequest(
    id="rlhf-grpo-70b-1a2b3c4d",
    run="grpo-70b",
    command=("rlhf", "run", "configs/70b/grpo.yaml", "output_dir=/shared/runs"),
    package=Package(root=Path("/anywhere"), files={"configs/70b/grpo.yaml": "9f86"}, bytes=1024, digest="1a2b3c4d"),
    directories=("/shared/runs/grpo-70b",),
    pods=(HEAD, EIGHT_GPUS),
    grace_s=1260.0,
    priority=-5,
    secrets={"WANDB_API_KEY": "/secrets/wandb"},
)
SMALL = JobRequest(
    id="rlhf-base-5e6f7a8b", run="base", command=("rlhf", "run", "/shared/base.yaml"), pods=(HEAD, FIVE_CPUS)
)


def target(**settings: Any) -> SlurmTarget:
    return SlurmTarget(engine="slurm", work_dir="/shared/jobs", **settings)


H100 = target(
    partition="h100",
    account="alignment",
    qos="normal",
    time_limit="2-00:00:00",
    activate="source /shared/rlhf/.venv/bin/activate",
    options={"constraint": "nvlink", "exclude": "node[7-8]"},
)
CPUS = target(gpus_per_node=0, cpus_per_node=3)
SCRIPTS = {"slurm_70b": (LARGE, H100), "slurm_cpu": (SMALL, CPUS)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_equal_to_its_golden_header_and_the_shipped_body(name: str) -> None:
    """Compare with the header in the repository, which was written on another machine by another user."""
    body = files("orchestrator.launch").joinpath("slurm_job.sh").read_text("utf-8")
    golden, text = GOLDEN / f"{name}.sh", render(*SCRIPTS[name])
    header = text.removesuffix(body)
    if not golden.exists():
        golden.write_text(header)
        pytest.fail(f"{golden} was missing, and is written now: look at it")
    assert text == golden.read_text("utf-8") + body, f"delete {golden} to write it anew"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_a_script(name: str, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render(*SCRIPTS[name]))
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="there is no shellcheck")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render(*SCRIPTS[name]))
    found = subprocess.run(["shellcheck", "--exclude=SC1091", str(script)], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_a_shell_reads_the_command_as_it_was_given(tmp_path: Path) -> None:
    words = ("rlhf", "run", "my recipe.yaml", 'note="it\'s $HOME; `id`"', "a\nb", "*", "ä")
    header = render(replace(SMALL, command=words), CPUS).split("activate()")[0]
    script = tmp_path / "header.sh"
    script.write_text(header + 'printf "%s\\0" "${command[@]}"\n')
    read = subprocess.run(["bash", str(script)], capture_output=True, check=True, env={}).stdout.decode()
    assert tuple(read.split("\0")[:-1]) == words


def test_a_script_names_secrets_and_holds_none() -> None:
    text = render(LARGE, H100)
    assert "command=(rlhf entry secrets WANDB_API_KEY=/secrets/wandb -- rlhf run" in text
    assert "#SBATCH --export=NIL" in text, "the submitter's environment stays where it is"
    assert "/anywhere" not in text, "the submitter's paths mean nothing on the cluster"


def test_every_job_can_be_found_told_and_started_again() -> None:
    options = re.findall(r"^#SBATCH --(\S+)", render(LARGE, H100), re.MULTILINE)
    assert options[:2] == ["job-name=rlhf-grpo-70b-1a2b3c4d", "comment=rlhf:rlhf-grpo-70b-1a2b3c4d"]
    assert {"requeue", "open-mode=append", "output=/shared/jobs/rlhf-grpo-70b-1a2b3c4d/job-%j.log"} <= set(options)
    assert "signal=B:TERM@1320" in options, "the grace of the run, and a minute to clean up"
    assert {"nodes=2", "gres=gpu:8", "exclusive", "mem=0", "nice=5", "time=2-00:00:00"} <= set(options)
    assert {"partition=h100", "account=alignment", "qos=normal", "constraint=nvlink"} <= set(options)


@pytest.mark.parametrize(
    ("pods", "settings", "nodes"),
    [
        ((), {}, 1),  # whatever the target has
        ((HEAD, EIGHT_GPUS), {}, 2),  # the head is on the first of them
        ((HEAD, FIVE_CPUS), {"gpus_per_node": 0, "cpus_per_node": 5}, 1),
        ((HEAD, FIVE_CPUS), {"gpus_per_node": 0, "cpus_per_node": 3}, 2),  # 5 CPUs on nodes of 3
        ((HEAD, FIVE_CPUS), {"gpus_per_node": 0}, 1),  # a whole node, however large
    ],
)
def test_the_number_of_nodes(pods: tuple[Pods, ...], settings: dict[str, Any], nodes: int) -> None:
    assert nodes_of(replace(SMALL, pods=pods), target(**settings)) == nodes


def test_a_job_without_known_needs_gets_a_node_with_all_its_gpus() -> None:
    text = render(replace(SMALL, pods=()), target(gpus_per_node=4))
    assert "#SBATCH --nodes=1\n" in text
    assert "#SBATCH --gres=gpu:4\n" in text
    assert "\nnum_gpus=4\n" in text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),  # minutes
        ("1:30", 90),  # minutes:seconds
        ("1:30:00", 5400),
        ("1-12", 129600),  # days-hours: 36 h
        ("2-00:30", 174600),  # 48.5 h
        ("0-01:00:05", 3605),
        ("soon", None),
        ("1:2:3:4", None),
        ("UNLIMITED", None),
    ],
)
def test_time_limits_in_slurms_formats(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("request_", "settings", "words"),
    [
        (replace(SMALL, priority=3), {}, "Slurm lets users only lower the priority"),
        (SMALL, {"time_limit": "20"}, "time_limit 20 is too short"),  # twice 600 + 60 s are 22 minutes
        (SMALL, {"time_limit": "soon"}, "not a time"),
        (replace(SMALL, grace_s=70000.0), {}, "needs 70060 s to stop"),
        (LARGE, {"gpus_per_node": 4}, "a machine with 8 GPUs is needed"),
        (SMALL, {"partition": "a\n#SBATCH --uid=0"}, "partition of the target has a space"),
    ],
)
def test_requests_that_slurm_cannot_run(request_: JobRequest, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=re.escape(words)):
        render(request_, target(**settings))


def test_the_shortest_time_limit_is_accepted() -> None:
    assert "#SBATCH --time=22\n" in render(SMALL, target(time_limit="22"))


def test_the_place_of_a_job() -> None:
    assert place_of(target(), "rlhf-a") == "/shared/jobs/rlhf-a"
    beside = SlurmTarget(engine="slurm", output_dir="/shared/runs")
    assert place_of(beside, "rlhf-a") == "/shared/jobs/rlhf-a"


@pytest.mark.parametrize("settings", [{}, {"work_dir": "/my jobs"}, {"work_dir": "/%j"}])
def test_storage_that_cannot_hold_a_job(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="work_dir"):
        place_of(SlurmTarget(engine="slurm", **settings), "rlhf-a")


@pytest.mark.parametrize(
    ("recipe", "on", "nodes"),
    [
        ("configs/quickstart/offline_dpo.yaml", "cpus", 1),  # all workers of a recipe that samples share a node
        ("configs/8b/grpo.yaml", "h100", 1),
        ("configs/70b/dpo.yaml", "h100", 8),  # 64 GPUs
    ],
)
def test_the_command_prints_the_script_of_a_recipe(
    recipe: str,
    on: str,
    nodes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(working_directory(tmp_path))
    targets = {
        "h100": {"engine": "slurm", "output_dir": "/shared/runs"},
        "cpus": {"engine": "slurm", "output_dir": "/shared/runs", "gpus_per_node": 0, "cpus_per_node": 16},
    }
    (tmp_path / "targets.yaml").write_text(yaml.safe_dump(targets))
    monkeypatch.setenv("RLHF_TARGETS", str(tmp_path / "targets.yaml"))
    assert main(["render", "slurm", recipe, "--on", on]) == 0
    first = capsys.readouterr().out
    assert f"#SBATCH --nodes={nodes}\n" in first
    assert f"command=(rlhf run {recipe} output_dir=/shared/runs)" in first
    assert main(["render", "slurm", recipe, "--on", on]) == 0
    assert capsys.readouterr().out == first


def test_a_target_of_another_engine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "slurm", "configs/8b/grpo.yaml", "--on", "local"]) == 2
    assert "the target's engine is local" in capsys.readouterr().err
