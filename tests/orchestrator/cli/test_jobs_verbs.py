"""Verbs on runs of this machine and on jobs of a target: status, why, rounds, logs, stop, resume, jobs, targets."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_on_disk import run_on_disk, write_attempt

from orchestrator.cli.main import main
from orchestrator.launch.base import JobRequest
from orchestrator.launch.local import LocalLauncher
from orchestrator.rundir.directory import RunDirectory

FAILED = {"cause": "worker_failed", "message": "policy rank 0 failed: killed\n  fix: more memory", "exit_code": 4}
Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Return a function that runs `rlhf` and returns exit code, stdout and stderr. Its jobs and targets are its own."""
    for variable in ("RLHF_TARGET", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RLHF_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("RLHF_TARGETS", str(tmp_path / "targets.yaml"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def document(result: tuple[int, str, str]) -> dict[str, Any]:
    assert result[2] == ""
    read: dict[str, Any] = json.loads(result[1])
    return read


def job(directories: tuple[str, ...], script: str = "pass", *, wait: bool = True, id: str = "rlhf-a-1") -> str:
    """Start a job of this machine that claims these run directories."""
    local = LocalLauncher()
    command = (sys.executable, "-c", script)
    submitted = local.submit(JobRequest(id=id, run="a", command=command, directories=directories))
    while wait:
        found = local.find(submitted.job.id)
        assert found is not None
        if found.state.is_finished:
            break
        time.sleep(0.05)
    return submitted.job.id


# --------------------------------------------------------------------------------------------- runs here


def test_status_of_a_run_that_is_complete(verb: Verb, tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=40)
    code, out, _ = verb("status", str(directory.path))
    assert code == 0
    shown = {line[:9].strip(): line[9:].strip() for line in out.splitlines()}
    assert shown["state"] == "SUCCEEDED"
    assert shown["step"] == "40 of 40 done"
    assert shown["speed"] == "1.0 s/step"
    assert "reward" in shown["metrics"]
    status = document(verb("status", str(directory.path), "--json"))
    assert (status["state"], status["exit_code"], status["job"]) == ("SUCCEEDED", 0, None)
    run = status["run"]
    assert (run["step"], run["num_steps"], run["step_s"], run["attempt"], run["left_s"]) == (40, 40, 1.0, 1, None)


def test_status_of_a_run_that_failed_has_its_exit_code(verb: Verb, tmp_path: Path) -> None:
    rows = [{"reward": 0.5, **({"alarms/kl_budget": 1.0} if step in (2, 3) else {})} for step in range(5)]
    directory = run_on_disk(tmp_path, steps=4, rows=rows, exit=FAILED)
    code, out, _ = verb("status", str(directory.path))
    assert code == 4
    assert "worker_failed: policy rank 0 failed: killed\n" in out
    assert "kl_budget (since step 2)" in out
    assert "rlhf resume" in out
    directory.exit.unlink()
    code, out, _ = verb("status", str(directory.path))
    assert (code, "its driver wrote no exit.json" in out) == (137, True)


def test_status_of_a_run_in_progress(verb: Verb, tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=10, exit=FAILED)
    directory.exit.unlink()
    phase = {"text": "1,536 of 8,192 prompts  12/s  9:14 left", "done": 1536, "total": 8192}
    with directory.held():
        directory.progress.write_text(json.dumps({"num_steps": 40, "phases": {"rollout": phase}}))
        status = document(verb("status", str(directory.path), "--json"))
        assert (status["state"], status["exit_code"]) == ("RUNNING", None)
        assert (status["run"]["left_s"], status["run"]["phases"]["rollout"]) == (30.0, phase)
        code, out, _ = verb("status", str(directory.path))
        assert code == 0
        assert "10 of 40 done" in out
        assert "1,536 of 8,192 prompts" in out
        assert "0:30" in out
        waits = {"text": "waits for 8 GPUs: 3 free"}
        directory.progress.write_text(json.dumps({"num_steps": 40, "phases": {"driver": waits}}))
        status = document(verb("status", str(directory.path), "--json"))
        assert (status["state"], status["run"]["waits_for"]) == ("QUEUED", "waits for 8 GPUs: 3 free")


def test_a_long_run_is_answered_from_the_ends_of_its_files(verb: Verb, tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=3)
    row = {"reward": 0.5, "timing/step": 2.0, "padding": "x" * 200}
    with directory.metrics.open("a") as file:
        file.writelines(json.dumps({"step": step, **row}) + "\n" for step in range(4, 5000))
        file.write('{"step": 5000, "torn')
    run = document(verb("status", str(directory.path), "--json"))["run"]
    assert (run["step_s"], run["metrics"]) == (2.0, {"reward": 0.5})


def test_of_the_stages_of_a_job_the_one_in_progress_is_shown(verb: Verb, tmp_path: Path) -> None:
    first, second = run_on_disk(tmp_path, "first", steps=2), run_on_disk(tmp_path, "second", steps=3)
    third = tmp_path / "runs" / "third"
    paths = [str(first.path), str(second.path), str(third)]
    assert document(verb("status", *paths, "--json"))["run"]["run"] == "second"
    with first.held():
        assert document(verb("status", *paths, "--json"))["run"]["run"] == "first"
    assert document(verb("why", *paths, "--json"))["run"]["run"] == "second"


def test_why_as_json(verb: Verb, tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=4, exit=FAILED)
    answer = document(verb("why", str(directory.path), "--json"))
    assert answer["run"]["exit"]["cause"] == "worker_failed"
    assert answer["lines"] == verb("why", str(directory.path))[1].splitlines()
    assert answer["incidents"] == []


def test_rounds(verb: Verb, tmp_path: Path) -> None:
    rows = [{"pairs/count": 10.0 * step, "eval/reward": 0.5} for step in range(3)]
    overrides = ["algorithm.pairs.per_prompt=1"]
    directory = run_on_disk(tmp_path, kind="dpo", steps=2, rows=rows, overrides=overrides)
    decision = {"action": "refresh", "reason": "KL 0.2 over 0.1"}
    directory.round(2).mkdir(parents=True)
    (directory.round(2) / "round.json").write_text(json.dumps({"reference": decision}))
    code, out, _ = verb("rounds", str(directory.path))
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["round", "1", "2"]
    assert "refresh: KL 0.2 over 0.1" in out
    answer = document(verb("rounds", str(directory.path), "--json"))
    assert [(r["round"], r["metrics"]["pairs/count"]) for r in answer["rounds"]] == [(1, 10.0), (2, 20.0)]
    assert answer["rounds"][1]["reference"] == decision
    other = run_on_disk(tmp_path, "other", steps=1)
    assert verb("rounds", str(other.path))[0] == 2


def test_logs_of_a_worker(verb: Verb, tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=1, exit=FAILED)
    (directory.logs(1) / "policy-1.log").write_text("attempt 1\n")
    write_attempt(directory, steps=1, exit=FAILED)
    (directory.logs(2) / "policy-0.log").write_text("rank 0\n")
    (directory.logs(2) / "policy-1.log").write_text("first\nsecond\n")
    path = str(directory.path)
    assert verb("logs", path, "--role", "policy", "--rank", "1") == (0, "first\nsecond\n", "")
    assert verb("logs", path, "--role", "policy", "--rank", "1", "--attempt", "1")[1] == "attempt 1\n"
    assert verb("logs", path, "--role", "policy", "--rank", "1", "-f")[:2] == (4, "first\nsecond\n")
    part = document(verb("logs", path, "--role", "policy", "--rank", "1", "--offset", "6", "--json"))
    assert (part["text"], part["offset"], part["next_offset"], part["size"]) == ("second\n", 6, 13, 13)
    assert (part["attempt"], part["is_finished"]) == (2, True)
    for wrong in (["--role", "critic"], ["--role", "policy", "--attempt", "3"], ["--role", "../x"], []):
        code, out, error = verb("logs", path, *wrong)
        assert (code, out) == (2, "")
        assert "1, 2" in error if "3" in wrong else "policy-0, policy-1" in error


def test_a_log_is_read_in_parts_that_end_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.rundir import worker_logs

    directory = run_on_disk(tmp_path, steps=1)
    (directory.logs(1) / "policy-0.log").write_text("é1\né2\né3\n")
    monkeypatch.setattr(worker_logs, "MOST_BYTES", 6)
    texts, offset, is_last = [], 0, False
    while not is_last:
        part = worker_logs.read_part(directory, "policy", 0, offset=offset)
        texts.append(part.text)
        offset, is_last = part.next_offset, part.is_last
    assert texts == ["é1\n", "é2\n", "é3\n"]


def test_stop_writes_the_stop_file(verb: Verb, tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=2, exit=FAILED)
    directory.exit.unlink()
    with directory.held():
        assert verb("stop", str(directory.path), "--by", "alice on laptop")[0] == 0
        assert verb("stop", str(directory.path), "--by", "bob on laptop")[0] == 0
        assert json.loads((directory.path / "stop").read_text())["by"] == "alice on laptop"
        code, out, _ = verb("stop", str(directory.path), "--wait", "0")
        assert (code, "has not ended after 0 s" in out) == (1, True)
        body = {"cause": "user", "message": "", "exit_code": 143, "attempt": 1, "step": 2}
        directory.write_exit(**body)  # type: ignore[arg-type]
        assert document(verb("stop", str(directory.path), "--wait", "5", "--json"))["ended"] == "user"
    complete = run_on_disk(tmp_path, "complete", steps=2)
    assert verb("stop", str(complete.path))[0] == 2


def test_a_stage_that_another_job_runs_is_not_stopped(
    verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = run_on_disk(tmp_path, steps=2, exit=FAILED)
    monkeypatch.setenv("RLHF_JOB", "rlhf-first-1")
    with directory.held():
        code, _, error = verb("stop", str(directory.path), "--job", "rlhf-second-2")
        assert (code, "job rlhf-first-1 runs it" in error) == (2, True)
        assert not (directory.path / "stop").exists()
        assert verb("stop", str(directory.path), "--job", "rlhf-first-1")[0] == 0
        assert (directory.path / "stop").exists()


def test_errors_are_json_too(verb: Verb) -> None:
    code, out, error = verb("status", "runs/nowhere", "--json")
    assert (code, error) == (2, "")
    body = json.loads(out)["error"]
    assert (body["exit_code"], body["cause"]) == (2, "cannot_resume")
    assert body["problems"][0]["where"] == "runs/nowhere"
    assert json.loads(verb("why", "rlhf-a-1", "--json")[1])["error"]["problems"][0]["what"] == "unknown job rlhf-a-1"
    code, out, error = verb("status", "--no-such-option", "--json")
    assert (code, error, json.loads(out)["error"]["exit_code"]) == (2, "", 2)


# ---------------------------------------------------------------------------------------- jobs of a target


def test_a_job_is_looked_at_through_its_target(verb: Verb, tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=4, exit=FAILED)
    (directory.logs(1) / "policy-1.log").write_text("from the worker\n")
    id = job((str(directory.path),), "print('from the driver'); raise SystemExit(4)")
    code, out, _ = verb("status", id, "--on", "local")
    assert code == 4
    assert f"job        {id}\n" in out
    assert "4 of 40 done" in out
    assert "worker_failed: policy rank 0 failed: killed" in out
    status = document((0, *verb("status", id, "--json")[1:]))
    assert (status["state"], status["exit_code"], status["job"]["exit_code"]) == ("FAILED", 4, 4)
    assert (status["job"]["directories"], status["run"]["step"]) == ([str(directory.path)], 4)
    assert verb("why", id) == verb("why", str(directory.path))
    assert verb("rounds", id)[0] == 2
    assert verb("logs", id, "--role", "policy", "--rank", "1") == (0, "from the worker\n", "")
    assert verb("logs", id) == (0, "from the driver\n", "")
    assert verb("logs", id, "-f") == (4, "from the driver\n", "")
    assert verb("logs") == (0, "from the driver\n", ""), "the newest job"
    assert document(verb("logs", id, "--json")) == {"job": id, "text": "from the driver\n"}
    code, _, error = verb("logs", id, "--role", "critic")
    assert (code, "critic rank 0 has no log in attempt 1" in error) == (2, True)


def test_a_directory_of_a_target_is_looked_at_there(verb: Verb, tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=4, exit=FAILED)
    assert verb("why", str(directory.path), "--on", "local") == verb("why", str(directory.path))
    status = document((0, *verb("status", str(directory.path), "--on", "local", "--json")[1:]))
    assert (status["job"], status["state"]) == (None, "FAILED")
    (directory.logs(1) / "policy-0.log").write_text("there\n")
    assert verb("logs", str(directory.path), "--role", "policy", "-f", "--on", "local") == (4, "there\n", "")


def test_a_job_that_has_not_begun_its_run_shows_its_newest_line(verb: Verb, tmp_path: Path) -> None:
    script = "import time; print('starting Ray', flush=True); time.sleep(60)"
    id = job((str(tmp_path / "runs" / "a"),), script, wait=False)
    deadline = time.monotonic() + 30
    while "state      RUNNING\n" not in (out := verb("status", id)[1]) or "starting Ray" not in out:
        assert time.monotonic() < deadline, out
    assert "progress   starting Ray\n" in out
    code, out, _ = verb("stop", id, "--wait", "30")
    assert (code, out) == (0, f"{id} has ended: STOPPED\n")
    assert verb("status", id)[0] == 143
    listed = document(verb("jobs", "--json"))["jobs"]
    assert [(j["id"], j["state"], j["run"]) for j in listed] == [(id, "STOPPED", "a")]
    header, line = verb("jobs")[1].splitlines()
    assert header.split() == ["ID", "STATE", "SUBMITTED", "TOOK", "RUN", "REASON"]
    assert line.split()[:2] == [id, "STOPPED"]


def test_a_job_is_resumed_as_it_was_or_with_other_settings(verb: Verb, tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=4, exit=FAILED)
    id = job((str(directory.path),), "raise SystemExit(4)", id="rlhf-a-12345678")
    assert verb("resume", id)[1] == f"{id}-2\n"
    assert verb("logs", f"{id}-2", "-f")[0] == 4
    code, out, error = verb("resume", f"{id}-2", "algorithm.learning_rate=1")
    assert (code, out) == (0, f"{id}-3\n"), error
    code, out, error = verb("logs", f"{id}-3", "-f")
    assert code == 2
    assert "algorithm.learning_rate" in out, "rlhf resume RUN refused the setting, in the job"
    several = job(("/runs/a", "/runs/b"), "raise SystemExit(4)", id="rlhf-b-12345678")
    code, _, error = verb("resume", several, "seed=1")
    assert (code, "its job has several runs" in error) == (2, True)


def test_which_target_is_meant(verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets.yaml").write_text("here: {engine: local, output_dir: /shared}\n")
    assert [line.split()[:2] for line in verb("targets")[1].splitlines()[1:]] == [["local", "local"], ["here", "local"]]
    assert document(verb("targets", "--json"))["targets"]["here"] == {
        "engine": "local",
        "output_dir": "/shared",
        "secrets": {},
    }
    assert verb("jobs", "--on", "here")[0] == 0
    code, _, error = verb("jobs", "--on", "hree")
    assert (code, "did you mean here?" in error) == (2, True)
    assert verb("jobs", "--on", "here", "--cluster", "head")[0] == 2
    monkeypatch.setenv("RLHF_TARGET", "nowhere")
    assert verb("jobs")[0] == 2
    directory = run_on_disk(tmp_path, steps=1)
    assert verb("why", os.path.relpath(directory.path))[0] == 0, "a directory that is here is read here"
    assert isinstance(RunDirectory.open(directory.path), RunDirectory)


def test_queued_jobs_and_jobs_without_directories_are_refused_with_a_reason(verb: Verb) -> None:
    id = job((), "pass")
    code, _, error = verb("why", id)
    assert (code, "names no run directory" in error) == (2, True)
    assert verb("status", id)[0] == 0
    code, _, error = verb("why", "rlhf-b-1")
    assert code == 2
    assert f"use one of {id}, or give the target that has it: --on TARGET" in error
