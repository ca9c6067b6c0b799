"""The file RUN/stop: who asks first, when it counts, and when it is removed."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from run_on_disk import run_on_disk

from orchestrator.errors import ResumeError
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.stop import MARK, StopFile, request_stop, requested, wait_for_end, withdraw_earlier

FAILED = {"cause": "worker_failed", "message": "it failed", "exit_code": 4}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Directory of a run whose first attempt failed."""
    return run_on_disk(tmp_path, steps=3, exit=FAILED)


def test_the_first_request_counts(directory: RunDirectory) -> None:
    first = request_stop(directory, by="alice on node-3")
    assert (first.by, first.cause, first.signal, first.exit_code) == ("alice on node-3", "user", "", 143)
    assert request_stop(directory, by="bob on node-4", cause="preempted") == first
    assert StopFile(directory.path).request(by="SIGTERM", cause="preempted", signal="SIGTERM") == first
    assert StopFile(directory.path).read() == first == requested([directory.path / "other", directory.path])


def test_of_many_who_ask_at_the_same_time_one_is_first_and_all_are_told(directory: RunDirectory) -> None:
    ready = threading.Barrier(8)

    def ask(number: int) -> str:
        ready.wait()
        return StopFile(directory.path).request(by=str(number)).by

    with ThreadPoolExecutor(8) as threads:
        answers = set(threads.map(ask, range(8)))
    found = StopFile(directory.path).read()
    assert found is not None
    assert answers == {found.by}
    assert not list(directory.path.glob(".stop*"))


@pytest.mark.parametrize(
    "text", ["", "please", "[]", '{"by": 1}', '{"by": "a", "cause": "user", "signal": "", "time": []}']
)
def test_a_file_of_any_content_counts(directory: RunDirectory, text: str) -> None:
    (directory.path / "stop").write_text(text)
    found = StopFile(directory.path).read()
    assert found is not None
    assert (found.by, found.cause, found.exit_code) == ("the file stop in the run directory", "user", 143)


def test_a_request_names_the_user_and_the_machine(directory: RunDirectory) -> None:
    assert request_stop(directory).by.endswith(f" on {os.uname().nodename}")


def test_a_complete_run_cannot_be_stopped(tmp_path: Path) -> None:
    complete = run_on_disk(tmp_path, steps=3)
    with pytest.raises(ResumeError, match="there is nothing to stop"):
        request_stop(complete)
    assert not (complete.path / "stop").exists()


def test_a_command_removes_the_request_that_it_finds_when_it_starts(directory: RunDirectory) -> None:
    request_stop(directory)
    withdraw_earlier([directory.path, directory.path.with_name("next-stage")])
    assert StopFile(directory.path).read() is None


def test_the_request_of_a_run_that_a_driver_holds_is_kept(directory: RunDirectory) -> None:
    request_stop(directory)
    with directory.held():
        withdraw_earlier([directory.path])
    assert StopFile(directory.path).read() is not None


def test_the_request_to_a_supervisor_is_kept_by_its_attempts(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_stop(directory)
    monkeypatch.setenv(MARK, "4711")
    withdraw_earlier([directory.path])
    assert StopFile(directory.path).read() is not None


class Clock:
    """Clock that `sleep` advances, and that does something at a time."""

    def __init__(self, at: float, event: object) -> None:
        self.now, self._at, self._event = 0.0, at, event

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self._at and callable(self._event):
            self._event()


def test_waiting_ends_with_the_exit_json_of_the_newest_attempt(directory: RunDirectory) -> None:
    assert (wait_for_end(directory, 0) or {})["cause"] == "worker_failed", "it has ended already"
    attempt = directory.start_attempt()

    def end() -> None:
        directory.write_exit(cause="user", message="stopped", exit_code=143, attempt=attempt, step=4)

    clock = Clock(30.0, end)
    body = wait_for_end(directory, 60, sleep=clock.sleep, clock=clock.read)
    assert body is not None
    assert (body["cause"], body["attempt"], clock.now) == ("user", 2, 30.0)


def test_waiting_ends_after_its_time(directory: RunDirectory) -> None:
    attempt = directory.start_attempt()
    earlier = {"cause": "worker_failed", "attempt": attempt - 1}
    directory.exit.write_text(json.dumps(earlier))  # as shared storage may show it
    clock = Clock(0.0, None)
    assert wait_for_end(directory, 3, sleep=clock.sleep, clock=clock.read) is None
    assert clock.now == pytest.approx(3)
