"""Calibration recovers the constants of a simulated run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.config import RunConfig, load, resolved
from orchestrator.errors import BadInput
from orchestrator.plan.calibrate import calibrate, describe
from orchestrator.plan.constants import DEFAULT, Constants
from orchestrator.plan.gpus import CPU_RANK, GPUS, Gpu
from orchestrator.plan.plan import shapes_of
from orchestrator.plan.step import step_time
from orchestrator.plan.work import Lengths, work_of
from orchestrator.rundir.directory import RunDirectory

CONFIGS = Path(__file__).parents[3] / "configs"
TRUE = replace(
    DEFAULT,
    train_mfu=0.11,
    score_mfu=0.11 * 0.45 / 0.35,
    update_overhead_s=0.5,
    # an engine half as fast in every term
    prefill_mfu=0.275,
    decode_mbu=0.3,
    decode_mfu=0.35,
    sequence_s=160e-6,
    publish_latency_s=0.0,
    broadcast_bytes_per_s=4e9,
)
RESPONSES = (200, 900, 400, 1000, 300, 800, 500, 700, 600, 250, 950)


def a_run(
    tmp_path: Path,
    recipe: str,
    constants: Constants,
    gpu: Gpu,
    responses: tuple[int, ...] = RESPONSES,
    overrides: tuple[str, ...] = (),
    **devices: object,
) -> RunDirectory:
    """Write the directory of a run whose times are the planner's under `constants`."""
    config = load(CONFIGS / recipe, [f"output_dir={tmp_path}", *overrides]).stages[-1]
    directory = RunDirectory(tmp_path / config.name)
    directory.logs(1).mkdir(parents=True)
    directory.resolved.write_text(json.dumps(resolved(config)))
    if devices:
        (directory.logs(1) / "devices.json").write_text(json.dumps(devices))
    with open(directory.metrics, "w") as metrics:
        tokens = 0.0
        for i, response in enumerate(responses):
            row = a_row(config, constants, gpu, response)
            tokens += row["num_tokens"]
            metrics.write(json.dumps({"step": i + 1, **row, "num_tokens": tokens}) + "\n")
    return directory


def a_row(config: RunConfig, constants: Constants, gpu: Gpu, response: int) -> dict[str, float]:
    work = work_of(config, Lengths(prompt=100, response=response))
    time = step_time(config, shapes_of(config), gpu, work, constants)
    row = {
        "num_tokens": work.sequences * work.context,  # each completion with its prompt
        "num_updates": float(work.updates),
        "timing/learn": time.busy["learn"]["policy"],
        "timing/step": time.step_s,
    }
    if work.sampled:
        row["completions/mean_length"] = float(response)
        row["timing/generate"] = time.busy["generate"]["rollout"]
        row["timing/publish"] = time.busy["publish"]["policy"]
    return row


def test_it_finds_the_constants_that_made_the_run(tmp_path: Path) -> None:
    directory = a_run(tmp_path, "8b/grpo.yaml", TRUE, GPUS["H200"], cuda=True, accelerators=["H200"])
    calibration = calibrate(directory)
    assert calibration.device is GPUS["H200"]
    assert calibration.fitted_steps == 5  # every other of the ten after the first
    for name in Constants.__dataclass_fields__:
        assert getattr(calibration.constants, name) == pytest.approx(getattr(TRUE, name), rel=1e-3), name
    assert {check.phase for check in calibration.checks} == {"learn", "generate", "publish", "step"}
    assert all(check.ratio == pytest.approx(1, rel=1e-3) for check in calibration.checks)
    assert "train_mfu" in "\n".join(describe(calibration))


def test_checks_show_when_held_out_steps_differ(tmp_path: Path) -> None:
    """Check the ratio if the fitted steps ran twice as fast as the steps between them."""
    directory = a_run(tmp_path, "8b/grpo.yaml", TRUE, GPUS["H100"], cuda=True, accelerators=["H100"])
    rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    for row in rows[2::2]:
        row["timing/learn"] *= 2
    directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn = next(check for check in calibrate(directory).checks if check.phase == "learn")
    assert learn.ratio == pytest.approx(0.5, rel=0.05)


def test_updates_of_one_size_leave_no_fixed_cost(tmp_path: Path) -> None:
    # The policy does not score: its share of the peak would be derived from that in training, which is too low here.
    changes = ("algorithm.vllm_importance_sampling_correction=false",)
    devices = {"cuda": True, "accelerators": ["H100"]}
    directory = a_run(tmp_path, "8b/grpo.yaml", TRUE, GPUS["H100"], (500,) * 8, changes, **devices)
    calibration = calibrate(directory)
    assert calibration.constants.update_overhead_s == 0.0
    assert calibration.constants.train_mfu < TRUE.train_mfu  # it includes the fixed cost
    assert all(check.ratio == pytest.approx(1, rel=1e-3) for check in calibration.checks)


def test_a_run_on_cpus_with_a_dataset(tmp_path: Path) -> None:
    """Check a run that times only learning; prompts and completions are assumed to be equally long."""
    constants = replace(DEFAULT, train_mfu=0.2, score_mfu=0.2 * 0.45 / 0.35)
    directory = a_run(tmp_path, "8b/sft.yaml", constants, CPU_RANK, (100,) * 6, cuda=False, accelerators=[])
    calibration = calibrate(directory)
    assert calibration.device is CPU_RANK
    assert calibration.constants.train_mfu == pytest.approx(0.2)
    assert calibration.constants.decode_mbu == DEFAULT.decode_mbu
    assert {check.phase for check in calibration.checks} == {"learn", "step"}


def test_runs_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    short = a_run(tmp_path / "a", "8b/grpo.yaml", TRUE, GPUS["H100"], (500,) * 3, cuda=True, accelerators=["H100"])
    with pytest.raises(BadInput, match="3 steps with timings"):
        calibrate(short)
    strange = a_run(tmp_path / "b", "8b/grpo.yaml", TRUE, GPUS["H100"], cuda=True, accelerators=["T4"])
    with pytest.raises(BadInput, match="the run's GPUs are T4"):
        calibrate(strange)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = a_run(tmp_path, "8b/grpo.yaml", TRUE, GPUS["H200"], cuda=True, accelerators=["H200"])
    recipe = str(CONFIGS / "8b/grpo.yaml")
    assert main(["plan", recipe, "--calibrate", str(directory.path), "--json", "--prompt-tokens", "100"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["gpu"] == "H200"  # the run's GPU, as --gpus is not given
    config = load(recipe).stages[-1]
    work = work_of(config, Lengths(prompt=100))
    expected = step_time(config, shapes_of(config), GPUS["H200"], work, TRUE).step_s
    assert body["step_s"] == pytest.approx(expected, rel=1e-3)
    assert main(["plan", "--calibrate", str(directory.path)]) == 0
    assert "predicted" in capsys.readouterr().out
