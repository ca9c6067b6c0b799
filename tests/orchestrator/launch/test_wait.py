"""Waiting for a job: its states and its log, once each, its exit code, and connections that break."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import BadInput, ClusterError, Problem
from orchestrator.launch.base import Job, JobRequest, JobState, Output, Submitted
from orchestrator.launch.local import LocalLauncher
from orchestrator.launch.wait import PATIENCE_S, exit_code_of, wait_for_job

JOB = Job(id="rlhf-a-1", state=JobState.running, run="a")
LOST = ClusterError(Problem(what="the connection broke", why="reset"))


class Script:
    """Launcher that answers from a script: one entry for each call of `find`, one for each call of `logs`."""

    def __init__(self, jobs: Sequence[Job | Exception | None], logs: Sequence[Sequence[str | Exception]] = ()) -> None:
        self.jobs, self.texts = list(jobs), list(logs)

    def find(self, id: str) -> Job | None:
        answer = self.jobs.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def logs(self, id: str, *, follow: bool = False) -> Iterator[str]:
        for piece in self.texts.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def submit(self, request: JobRequest) -> Submitted:
        raise AssertionError("not in the script")

    def list(self) -> Sequence[Job]:
        raise AssertionError("not in the script")

    def stop(self, id: str) -> None:
        raise AssertionError("not in the script")

    def execute(self, job: Job, arguments: Sequence[str]) -> Output:
        raise AssertionError("not in the script")


def waited(launcher: Script) -> tuple[int, list[str]]:
    lines: list[str] = []
    code = wait_for_job(launcher, "rlhf-a-1", lines.append, sleep=lambda _: None, clock=lambda: 0.0)
    assert (launcher.jobs, launcher.texts) == ([], []), "the script has not run to its end"
    return code, lines


def done(code: int | None, state: JobState = JobState.failed) -> Job:
    return replace(JOB, state=state, exit_code=code)


def test_states_and_log_are_printed_once_each() -> None:
    queued = replace(JOB, state=JobState.queued, reason="waits for its turn; ahead of it: rlhf-b")
    log = ["starting Ray\nstep ", "1/2\nstep 2/2\n", "done"]
    script = Script([queued, queued, JOB, done(0, JobState.succeeded)], [log[:2], log])
    assert waited(script) == (
        0,
        [
            "rlhf-a-1 QUEUED: waits for its turn; ahead of it: rlhf-b",
            "rlhf-a-1 RUNNING",
            "starting Ray",
            "step 1/2",
            "step 2/2",
            "done",
            "rlhf-a-1 SUCCEEDED",
        ],
    )


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (done(2), 2),
        (done(5), 5),
        (done(143, JobState.stopped), 143),
        (done(None, JobState.stopped), 143),
        (done(None), 3),
        (done(None, JobState.succeeded), 0),
    ],
)
def test_the_exit_code_is_that_of_the_run(job: Job, code: int) -> None:
    assert exit_code_of(job) == code
    assert waited(Script([job], [[]]))[0] == code


def test_a_connection_that_breaks_is_tried_again_and_no_line_is_printed_twice() -> None:
    logs: list[list[str | Exception]] = [
        ["one\ntw", LOST],
        ["on", LOST],  # breaks before anything new comes
        ["one\n", "two\nthree\n"],
        ["one\ntwo\nthree\nfour\n"],
    ]
    code, lines = waited(Script([JOB, LOST, LOST, JOB, JOB, done(4)], logs))
    assert code == 4
    assert [line for line in lines if line in ("one", "two", "three", "four")] == ["one", "two", "three", "four"]
    assert lines.count("the connection broke: reset; trying again, the job goes on") == 2
    assert lines.count("connected again") == 2


def test_a_log_that_is_followed_is_that_of_a_waiting_job_too_and_comes_without_states() -> None:
    queued = replace(JOB, state=JobState.queued, reason="waits for its turn")
    logs: list[list[str | Exception]] = [["waiting for room\n", LOST], ["waiting for room\nstep 1\n"], []]
    logs[-1] = [*logs[1], "step 2"]
    lines, reports = list[str](), list[str]()
    code = wait_for_job(
        Script([queued, JOB, done(2)], logs), "rlhf-a-1", lines.append, only_log=True, report=reports.append,
        sleep=lambda _: None, clock=lambda: 0.0,
    )  # fmt: skip
    assert (code, lines) == (2, ["waiting for room", "step 1", "step 2"])
    assert reports == ["the connection broke: reset; trying again, the job goes on", "connected again"]


def test_the_log_of_another_attempt_is_printed_whole() -> None:
    logs = [
        ["attempt 1\nstep 1\nstep 2\n"],
        ["attempt 2\nstep 2\nstep 3\nstep 4\n"],
        ["attempt 2\nstep 2\nstep 3\nstep 4\n"],
    ]
    _, lines = waited(Script([JOB, JOB, done(0, JobState.succeeded)], logs))
    assert lines[1:-1] == ["attempt 1", "step 1", "step 2", "attempt 2", "step 2", "step 3", "step 4"]


def test_a_connection_that_stays_broken_ends_the_waiting() -> None:
    now = iter([0.0, 1.0, PATIENCE_S + 2])
    with pytest.raises(ClusterError, match="the connection broke"):
        wait_for_job(
            Script([LOST, LOST, LOST]), "rlhf-a-1", lambda _: None, sleep=lambda _: None, clock=lambda: next(now)
        )


def test_a_job_that_is_gone_is_no_broken_connection() -> None:
    with pytest.raises(BadInput, match="there is no job rlhf-a-1"):
        wait_for_job(Script([JOB, None], [[]]), "rlhf-a-1", lambda _: None, sleep=lambda _: None)


def test_ctrl_c_detaches_and_the_job_goes_on(tmp_path: Path) -> None:
    local, lines = LocalLauncher(tmp_path / "jobs"), list[str]()
    command = (sys.executable, "-c", "import time; print('started', flush=True); time.sleep(60)")
    local.submit(JobRequest(id="rlhf-a-1", run="a", command=command))

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while "started" not in lines and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert wait_for_job(local, "rlhf-a-1", lines.append) == 130
    thread.join()
    assert lines[-1] == "the job goes on; look at it again with: rlhf status rlhf-a-1, rlhf logs -f rlhf-a-1"
    job = local.find("rlhf-a-1")
    assert job is not None
    assert job.state is JobState.running
    local.stop("rlhf-a-1")
    assert wait_for_job(local, "rlhf-a-1", lines.append) == 143
