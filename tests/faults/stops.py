"""SIGTERM to every process of a run on real Ray, many times, under `--attempts 3`: each run saves the update it is in.

    python tests/faults/stops.py --times 50

A run of steps with ten updates each is started under the supervisor, on a Ray cluster of its own. At a random update,
one to five SIGTERMs are sent to all its processes (driver, supervisor, Ray's own, workers) within a second. It must end
with exit code 143, in its first attempt, with a checkpoint of its last update. It is then resumed, and must end as an
undisturbed run does, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLACES = [str(p) for p in (HERE, HERE.parent / "workers", HERE.parent / "stack", HERE.parents[1])]
sys.path[:0] = PLACES
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cpu_run  # noqa: E402 - sibling modules, on the path set above
from processes import Command, eventually  # noqa: E402

from orchestrator.driver.supervise import Supervisor  # noqa: E402
from orchestrator.rundir.stop import withdraw_earlier  # noqa: E402

STEPS, UPDATES = 6, 10
ATTEMPTS = 3
START_S = 240.0
ALGORITHMS = {
    "grpo": {"num_mini_batches": 2, "num_iterations": 5},
    "ppo": {"num_mini_batches": 2, "num_ppo_epochs": 5},
    "iterative-dpo-updates": {"batch_size": 8, "num_iterations": 10},
}


def write_config(task: Path, algorithm: str, name: str) -> Path:
    """Write the config of a run, which is saved by its steps only at its end."""
    settings = {**cpu_run.ALGORITHMS[algorithm], **ALGORITHMS[algorithm], "max_steps": STEPS}
    config = cpu_run.config(
        task, task / name, algorithm, name="run", algorithm=settings, checkpoint={"every": STEPS, "keep": 2}
    )
    path = task / f"{name}.json"
    path.write_text(config.model_dump_json())
    return path


def supervise(config: Path) -> int:
    """Run the attempts of a config under the supervisor."""
    command = [sys.executable, str(HERE / "fake_engines.py"), str(config)]
    directory = Path(json.loads(config.read_text())["output_dir"]) / "run"
    withdraw_earlier([directory])  # as the door of a command does
    return Supervisor(command, [directory], attempts=ATTEMPTS, say=print).run()


def start(config: Path) -> Command:
    path = {"PYTHONPATH": os.pathsep.join(PLACES)}  # of the actors
    return Command("--supervise", str(config), cwd=config.parent, variables=path, program=(__file__,))


def updates(run: Path) -> int:
    path = run / "updates.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saved(run: Path) -> int:
    """Return the number of updates that the newest checkpoint holds."""
    states = [json.loads(path.read_text()) for path in run.glob("checkpoints/step-*/state.json")]
    return max((state["next_step"] * UPDATES + state["updates"] for state in states), default=0)


def trial(task: Path, seed: int) -> dict[str, Any]:
    """Stop one run and resume it. Return what happened; `wrong` is empty if all went well."""
    draw = random.Random(f"stops {seed}")
    algorithm = draw.choice(sorted(ALGORITHMS))
    expected, name = whole(task, algorithm), f"stopped-{seed}"
    config, run = write_config(task, algorithm, name), task / name / "run"
    at, signals = draw.randrange(1, (STEPS - 1) * UPDATES), draw.randrange(1, 6)
    started = time.monotonic()
    line = {"seed": seed, "algorithm": algorithm, "at": at, "signals": signals, "saved": 0, "wrong": ""}
    with start(config) as command:
        eventually(lambda: updates(run) >= at or command.has_ended(), within_s=START_S)
        for _ in range(signals):
            command.terminate_all()
            time.sleep(draw.uniform(0, 1 / signals))
        code = command.exit_code()
        line["wrong"] = wrong(run, code) or ("" if command.leaves_nothing_behind() else "processes were left behind")
    line["saved"], line["stop_s"] = saved(run), round(time.monotonic() - started, 1)
    if not line["wrong"]:
        with start(config) as command:
            code = command.exit_code()
            line["wrong"] = "" if code == 0 else f"the next attempt ended with exit code {code}"
        if not line["wrong"] and cpu_run.outcome(run) != expected:
            line["wrong"] = "the outcome differs from that of the undisturbed run"
    if line["wrong"]:
        line["output"] = command.output[-2000:]
    else:
        shutil.rmtree(run.parent)
    return line


def wrong(run: Path, code: int) -> str:
    """Return what is wrong with the end of a run that was asked to stop; empty: nothing."""
    if code != 143:
        return f"exit code {code}"
    body = json.loads((run / "exit.json").read_text())
    if (body["cause"], body["attempt"]) != ("preempted", 1):
        return f"it ended as {body['cause']} in attempt {body['attempt']}"
    if saved(run) != updates(run):
        return f"{updates(run)} updates were made, {saved(run)} are saved"
    return ""


def whole(task: Path, algorithm: str) -> Any:
    """Return the outcome of an undisturbed run, which is made once."""
    run = task / f"whole-{algorithm}" / "run"
    if not (run / "model").is_dir():
        with start(write_config(task, algorithm, f"whole-{algorithm}")) as command:
            assert command.exit_code() == 0, command.output
    return cpu_run.outcome(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="no new run after that long")
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--supervise", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.supervise is not None:
        return supervise(options.supervise)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is ended on the way out
    task = Path(tempfile.mkdtemp(prefix="rlhf-stops-"))
    cpu_run.write_task(task)
    until, good, made = time.monotonic() + 60 * options.minutes, 0, 0
    for seed in range(options.first, options.first + options.times):
        if time.monotonic() >= until:
            break
        line = trial(task, seed)
        made, good = made + 1, good + (not line["wrong"])
        print(json.dumps(line), flush=True)
    print(f"{good} of {made} runs saved the update that they were in")
    if good == made:
        shutil.rmtree(task)
    return 0 if good == made else 1


if __name__ == "__main__":
    sys.exit(main())
