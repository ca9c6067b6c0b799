"""Script of a Slurm job, run by a real bash: exit codes, what is told to the run, and when the job is started again.

Ray and Slurm's commands are replaced by short scripts that note how they are called; tests/cluster/ has the real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.launch.base import JobRequest, Pods
from orchestrator.launch.render_slurm import render
from orchestrator.launch.targets import SlurmTarget

pytestmark = pytest.mark.slow

COMMANDS = {
    # Ray lives until it gets a signal, or until the test says that the node is lost.
    "ray": """
        printf 'ray %s\\n' "$*" >> "$CALLS"
        for word; do case $word in --temp-dir=*) scratch=${word#*=} ;; esac; done
        if [ -e "$FAKES/broken-$SLURMD_NODENAME" ]; then echo "OSError: Read-only file system: '/tmp'"; exit 1; fi
        case $* in *--head*) echo 10.0.0.1:6379 > "$scratch/ray_current_cluster" ;; esac
        trap 'exit 0' TERM
        while ! [ -e "$FAKES/lost-$SLURMD_NODENAME" ]; do sleep 0.05; done
        exit 1
    """,
    "srun": """
        printf 'srun %s\\n' "$(echo "$*" | head -n 1)" >> "$CALLS"
        export SLURMD_NODENAME=n2 SLURM_STEP_ID=0
        while ! [ "$1" = bash ]; do shift; done
        echo $$ > "$FAKES/step"
        exec "$@"
    """,
    "scontrol": """
        printf 'scontrol %s\\n' "$*" >> "$CALLS"
        case $* in
            'show hostnames'*) printf 'n1\\nn2\\n' ;;
            'show node'*) echo "   NodeAddr=10.0.0.${3#n} NodeHostName=$3" ;;
        esac
    """,
    "getent": 'echo "$2      STREAM $2"',
    "squeue": 'cat "$FAKES/state"',
    "scancel": 'printf "scancel %s\\n" "$*" >> "$CALLS"; kill "$(cat "$FAKES/step")"',
    # Of the nodes that are asked for, those that are not lost have joined.
    "python": """
        case $* in *create_server*) echo 23456; exit ;; esac
        ! [ -e "$FAKES/broken-n2" ] || exec sleep 60
        ! [ -e "$FAKES/lost-n2" ] || exit 3
    """,
}
TWO = (
    Pods(role="head", count=1, gpus=0, cpus=1, memory_gib=1),
    Pods(role="worker", count=2, gpus=4, cpus=8, memory_gib=8),
)


class Script:
    """A job script, started as Slurm starts it."""

    def __init__(self, directory: Path) -> None:
        self.fakes, self.place = directory / "fakes", directory / "jobs" / "rlhf-a"
        self.fakes.mkdir()
        for name, text in COMMANDS.items():
            (self.fakes / name).write_text(f"#!/bin/bash\n{text}\n")
            (self.fakes / name).chmod(0o755)
        self.state("RUNNING")
        (self.fakes / "calls").touch()
        self._directory = directory
        self._processes: list[subprocess.Popen[str]] = []

    def state(self, word: str) -> None:
        """Set what squeue says of the job."""
        (self.fakes / "state").write_text(f"{word}\n")

    def start(self, run: str, *, nodes: int = 2, restarts: int = 0) -> subprocess.Popen[str]:
        """Start the script with a run, which is a shell command."""
        target = SlurmTarget(engine="slurm", gpus_per_node=4, work_dir=str(self.place.parent))
        request = JobRequest(id="rlhf-a", run="a", command=("bash", "-c", run), pods=TWO, grace_s=20)
        script = self._directory / "job.sh"
        script.write_text(render(request, target))
        environment = {
            "PATH": f"{self.fakes}:/usr/bin:/bin",
            "FAKES": str(self.fakes),
            "CALLS": str(self.fakes / "calls"),
            "TMPDIR": str(self.scratch.parent),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_ON_NODE": "8",
            "SLURM_RESTART_COUNT": str(restarts),
            "SLURM_SUBMIT_DIR": str(self._directory),
            "SLURMD_NODENAME": "n1",
        }
        process = subprocess.Popen(
            ["bash", str(script)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    @property
    def scratch(self) -> Path:
        """Directory of Ray; a longer one than the names of sockets allow is not taken."""
        return Path("/tmp") / f"rlhf-{os.getpid()}"

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Return the exit code and the output of a script that ends."""
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    @property
    def note(self) -> str:
        files = list(self.place.glob("state-*"))
        return files[0].read_text().strip() if files else ""

    @property
    def calls(self) -> list[str]:
        return (self.fakes / "calls").read_text().splitlines()

    @property
    def was_requeued(self) -> bool:
        return f"scontrol requeue {os.getpid()}" in self.calls

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    made = Script(tmp_path)
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_ends_with_the_exit_code_of_its_run(script: Script) -> None:
    code, output = script.ended(script.start('echo "$RAY_ADDRESS" in "$PWD"; exit 5'))
    assert (code, output) == (5, f"10.0.0.1:6379 in {script.place.parents[1]}\n")
    assert script.note == "ended 5"
    assert not script.was_requeued
    assert list(script.place.glob("private-*")) == []


def test_ray_is_started_on_every_node_at_slurms_addresses_with_a_token(script: Script) -> None:
    seen = 'file=$RAY_AUTH_TOKEN_PATH; stat -c %a "$file" "${file%/*}"; wc -c < "$file"; echo "$RAY_AUTH_MODE"'
    code, output = script.ended(script.start(f'{seen}; cp "$file" "$FAKES/copy"'))
    assert (code, output.split()) == (0, ["600", "700", "64", "token"])
    head, worker = (call for call in script.calls if call.startswith("ray"))
    assert "--head --port=0" in head
    assert "--node-ip-address=10.0.0.1" in head
    assert "--address=10.0.0.1:6379" in worker
    assert "--node-ip-address=10.0.0.2" in worker
    assert all("--num-cpus=8 --num-gpus=4" in call for call in (head, worker))
    assert (script.fakes / "copy").read_text() not in (script.fakes / "calls").read_text(), (
        "the token is in no argument"
    )


def test_a_start_forgets_the_address_of_an_earlier_one_that_was_killed(script: Script) -> None:
    scratch = script.scratch
    scratch.mkdir()
    (scratch / "ray_current_cluster").write_text("10.0.0.9:1\n")
    code, output = script.ended(script.start('echo "$RAY_ADDRESS"'))
    assert (code, output) == (0, "10.0.0.1:6379\n")


def test_a_job_on_one_node_needs_no_srun(script: Script) -> None:
    assert script.ended(script.start("exit 0", nodes=1))[0] == 0
    assert not any(call.startswith("srun") for call in script.calls)


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_node_that_cannot_start_ray_is_named_with_its_words(script: Script, node: str) -> None:
    (script.fakes / f"broken-{node}").touch()
    code, output = script.ended(script.start("echo started"))
    assert code == 3
    assert f"rlhf: Ray has ended on {node} with exit code 1" in output
    assert f"{node}: OSError: Read-only file system" in output
    assert "started" not in output
    assert not script.was_requeued


def test_a_job_that_has_run_before_tries_again_three_times_in_a_row(script: Script) -> None:
    (script.fakes / "broken-n2").touch()
    ends = []
    for _ in range(4):
        ends.append(script.ended(script.start("echo started", restarts=1))[0])
        ends.append(script.calls.count(f"scontrol requeue {os.getpid()}"))
    assert ends == [3, 1, 3, 2, 3, 3, 3, 3], "three times back into the queue, and then no more"
    assert script.note == "ended 3"


ASKED = 'trap "echo saved; exit 143" TERM; touch "$FAKES/ready"; while :; do sleep 0.05; done'


def test_a_run_whose_time_is_up_saves_and_is_started_again(script: Script) -> None:
    process = script.start(ASKED)
    until(lambda: script.note == "running" and (script.fakes / "ready").exists())
    for _ in range(3):  # Slurm may send it again
        process.send_signal(signal.SIGTERM)
    code, output = script.ended(process)
    assert code == 143
    assert output.count("saved") == 1
    assert script.was_requeued
    assert script.note == "requeued"


@pytest.mark.parametrize(("state", "stopped"), [("COMPLETING", False), ("RUNNING", True)])
def test_a_cancelled_or_stopped_job_is_not_started_again(script: Script, state: str, stopped: bool) -> None:
    process = script.start(ASKED)
    until(lambda: script.note == "running" and (script.fakes / "ready").exists())
    script.state(state)  # of a job that somebody has cancelled
    if stopped:
        (script.place / "stop").touch()  # as `rlhf stop` does
    process.send_signal(signal.SIGTERM)
    code, output = script.ended(process)
    assert (code, "saved" in output, script.note) == (143, True, "ended 143")
    assert not script.was_requeued


def test_a_job_that_was_stopped_before_its_run_does_not_start_it(script: Script) -> None:
    script.place.mkdir(parents=True)
    (script.place / "stop").touch()
    code, output = script.ended(script.start("echo started"))
    assert (code, output, script.note) == (143, "", "ended 143")


def test_a_lost_node_puts_the_job_back_into_the_queue(script: Script) -> None:
    process = script.start("while ! [ -e $FAKES/lost-n2 ]; do sleep 0.05; done; exit 4")
    until(lambda: script.note == "running")
    (script.fakes / "lost-n2").touch()
    code, output = script.ended(process)
    assert code == 4, output
    assert "a node is lost: the job goes back into the queue" in output
    assert script.was_requeued


def test_a_worker_that_fails_with_all_nodes_alive_ends_the_job(script: Script) -> None:
    code, _ = script.ended(script.start("exit 4"))
    assert (code, script.note, script.was_requeued) == (4, "ended 4", False)
