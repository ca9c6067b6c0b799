"""Prometheus metrics of run directories: states, figures by hand, what is read again, and who may read them."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from run_on_disk import exit_alarm, run_on_disk

from orchestrator.cli.main import main
from orchestrator.errors import BadInput
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.monitor.prometheus import FAMILIES, as_text, registry_of, server
from orchestrator.monitor.prometheus_runs import SILENT_S, STATES, RunFigures, RunReader, RunsReader, Tail
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.incidents import Incident, write_incident
from orchestrator.rundir.ledger import Fact, Record

T = 1_700_000_000.0  # Unix seconds
Event = tuple[Fact, float, int] | tuple[Fact, float, int, dict[str, Any]]  # fact, seconds after T, step, details


def write_ledger(directory: RunDirectory, *attempts: Sequence[Event]) -> None:
    """Write the records of each attempt at the given times."""
    records = [
        Record(seq=0, attempt=number, step=event[2], fact=event[0], time=T + event[1], details=dict(*event[3:]))
        for number, events in enumerate(attempts, start=1)
        for event in events
    ]
    lines = [Record(**{**_fields(record), "seq": seq}).line() for seq, record in enumerate(records)]
    directory.ledger.write_bytes(b"".join(lines))


def _fields(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in Record.__slots__}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Run directory without a ledger: what a driver has created before it has begun."""
    path = tmp_path / "runs" / "arith"
    path.mkdir(parents=True)
    config = {"algorithm": {"type": "grpo", "max_steps": 40}, "alarms": {"kl_budget": {"max_kl": 25.0}}}
    (path / "resolved.json").write_text(json.dumps(config))
    return RunDirectory(path)


def look(directory: RunDirectory, after_s: float = 0.0) -> RunFigures:
    return RunReader(directory, directory.name).look(T + after_s)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return every sample by its name and the values of its labels without run and method."""
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key not in ("run", "method"))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# ------------------------------------------------------------------------------------------------ states

QUEUED: Sequence[Event] = [(Fact.attempt, 0, 0)]
STARTING: Sequence[Event] = [*QUEUED, (Fact.placed, 30, 0, {"devices": {"policy": 2.0, "rollout": 1.0}})]
RUNNING: Sequence[Event] = [*STARTING, (Fact.planned, 50, 1), (Fact.trained, 80, 1), (Fact.committed, 90, 1)]


@pytest.mark.parametrize(("records", "state"), [(QUEUED, "queued"), (STARTING, "starting"), (RUNNING, "running")])
def test_a_run_that_is_alive_is_as_far_as_its_newest_attempt(
    directory: RunDirectory, records: Sequence[Event], state: str
) -> None:
    write_ledger(directory, RUNNING, records)
    with directory.held():
        assert look(directory).state == state
    assert look(directory).state == "lost", "nobody holds its lock, and nobody wrote exit.json"


@pytest.mark.parametrize(
    ("cause", "state"),
    [
        ("completed", "succeeded"),
        ("budget", "succeeded"),
        ("alarm_pause", "paused"),
        ("user", "stopped"),
        ("preempted", "preempted"),
        ("alarm_stop", "failed"),
        ("worker_failed", "failed"),
        ("a cause of a later version", "failed"),
    ],
)
def test_the_state_of_a_run_that_ended_is_its_cause(directory: RunDirectory, cause: str, state: str) -> None:
    write_ledger(directory, RUNNING)
    directory.write_exit(cause=cause, message="", exit_code=0, attempt=1, step=1)
    figures = look(directory)
    assert (figures.state, figures.cause) == (state, cause)


def test_a_run_that_was_never_begun_is_submitted(directory: RunDirectory) -> None:
    assert look(directory).state == "submitted"


def test_signs_of_life_decide_where_a_lock_of_another_machine_cannot_be_seen(directory: RunDirectory) -> None:
    write_ledger(directory, RUNNING)
    os.utime(directory.ledger, (T, T))
    lock = directory.path / "lock"
    lock.write_text("process 7 on a-node-of-the-cluster\n1234")
    assert look(directory, SILENT_S - 1).state == "running"
    assert look(directory, SILENT_S + 1).state == "lost"
    lock.write_text(f"process 7 on {socket.gethostname()}\n1234")
    assert look(directory, 1).state == "lost", "a lock that was taken here is seen from here"


def test_every_state_is_documented() -> None:
    text = next(family.help for family in FAMILIES if family.name == "rlhf_run_state")
    assert all(state in text for state in STATES)


# ------------------------------------------------------------------------------------------------ figures


def test_devices_are_counted_while_they_are_reserved_and_waiting_is_not(directory: RunDirectory) -> None:
    placed = {"devices": {"policy": 2.0, "rollout": 1.0}}
    first: Sequence[Event] = [(Fact.attempt, 0, 0), (Fact.placed, 30, 0, placed), (Fact.committed, 90, 1)]
    second: Sequence[Event] = [(Fact.attempt, 200, 1), (Fact.placed, 260, 1, placed), (Fact.committed, 300, 2)]
    write_ledger(directory, first, second)
    with directory.held():
        running = look(directory, 310)
    # 3 devices for 90 − 30 s, and for 300 − 260 s up to the newest record; while it runs, up to now: 310 − 260 s.
    assert running.device_seconds == 3 * 60 + 3 * 50
    assert (running.devices, running.attempts, running.step, running.last_step) == (3.0, 2, 2, T + 300)
    assert running.wait_s == 60.0
    lost = look(directory, 310)
    assert (lost.device_seconds, lost.devices) == (3 * 60 + 3 * 40, 0.0)


def test_a_queued_attempt_waits_until_now_from_its_submission(directory: RunDirectory) -> None:
    write_ledger(directory, [(Fact.attempt, 100, 0)])
    with directory.held():
        assert look(directory, 130).wait_s == 30.0
        write_ledger(directory, [(Fact.attempt, 100, 0, {"submitted": T + 20})])
        assert look(directory, 130).wait_s == 110.0


def test_the_step_is_that_of_the_checkpoint_an_attempt_resumes_from(directory: RunDirectory) -> None:
    write_ledger(
        directory, [(Fact.attempt, 0, 0), (Fact.committed, 1, 1), (Fact.committed, 2, 2)], [(Fact.attempt, 9, 1)]
    )
    assert look(directory).step == 1


def test_metrics_are_the_newest_values_and_alarms_are_counted_when_they_begin(directory: RunDirectory) -> None:
    write_ledger(directory, RUNNING)
    rows = MetricsFile(directory.metrics)
    rows.append(0, {"eval/reward": 0.25})
    rows.append(1, {"reward": 0.5, "timing/step": 10.0, "alarms/kl_budget": 1.0})
    rows.append(2, {"reward": 0.6, "timing/step": 20.0, "alarms/kl_budget": 1.0})
    rows.append(3, {"reward": float("nan"), "timing/step": 30.0, "alarms/no_signal": 1.0})
    rows.append(4, {"reward": 0.75, "timing/step": 40.0, "alarms/kl_budget": 1.0})
    figures = look(directory)
    assert (figures.metrics["reward"], figures.metrics["eval/reward"]) == (0.75, 0.25)
    assert figures.step_s == (10 + 20 + 30 + 40) / 4
    assert figures.alarms == {"kl_budget": 2, "no_signal": 1}
    assert figures.ringing == {"kl_budget"}


def test_a_loss_that_is_not_a_number_is_shown_as_such(directory: RunDirectory) -> None:
    MetricsFile(directory.metrics).append(1, {"loss": float("inf")})
    assert 'rlhf_run_loss{method="grpo",run="arith"} NaN' in as_text(registry_of(RunsReader([directory.path.parent])))


def test_restarts_are_counted_by_role(directory: RunDirectory) -> None:
    for role, action in (("rollout", "restarted"), ("rollout", "restarted"), ("policy", "attempt ended")):
        incident = Incident(attempt=1, step=1, what="it died", action=action, role=role)  # type: ignore[arg-type]
        write_incident(directory.incidents, incident)
    assert look(directory).restarts == {"rollout": 2}


def test_the_metrics_of_a_finished_run(tmp_path: Path) -> None:
    run_on_disk(tmp_path, steps=20, exit={"cause": "alarm_pause", "alarms": [exit_alarm()]})
    found = samples(as_text(registry_of(RunsReader([tmp_path / "runs"]))))
    expected = {
        ("rlhf_run_state", "paused"): 1,
        ("rlhf_run_exit", "alarm_pause"): 1,
        ("rlhf_run_step",): 20,
        ("rlhf_run_planned_steps",): 40,
        ("rlhf_run_step_seconds",): 1.0,
        ("rlhf_run_attempts_total",): 1,
        ("rlhf_run_kl_nats",): 3.0,
        ("rlhf_run_kl_budget_nats",): 25.0,
        ("rlhf_run_eval_reward",): 0.9,
        ("rlhf_run_devices",): 0,
        ("rlhf_run_unreadable_lines",): 0,
        ("rlhf_exporter_runs",): 1,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_rounds_are_judged_by_their_own_kl(directory: RunDirectory) -> None:
    config = {"algorithm": {"type": "dpo"}, "data": {"prompts": "prompts.jsonl"}}
    directory.resolved.write_text(json.dumps(config))
    MetricsFile(directory.metrics).append(1, {"drift/kl": 3.5, "objective/kl": 0.1})
    text = as_text(registry_of(RunsReader([directory.path.parent])))
    assert 'rlhf_run_kl_nats{method="iter_dpo",run="arith"} 3.5' in text
    assert "rlhf_run_kl_budget_nats{" not in text, "the alarm is off"


# ------------------------------------------------------------------------------------------------ files


def rows_of(tail: Tail, restarted: list[bool]) -> list[int]:
    return [row["n"] for row in tail.rows(lambda: restarted.append(True))]


def test_a_look_reads_what_was_written_since_the_last_one(tmp_path: Path) -> None:
    path, restarted = tmp_path / "rows.jsonl", list[bool]()
    tail = Tail(path)
    assert rows_of(tail, restarted) == []
    path.write_text('{"n": 1}\n{"n": 2}\n{"n": ')
    assert rows_of(tail, restarted) == [1, 2]
    with path.open("a") as file:
        file.write("3}\nno JSON\n[4]\n")
    assert rows_of(tail, restarted) == [3]
    assert (tail.unreadable, restarted) == (2, [])


def test_a_file_that_was_replaced_or_removed_is_read_from_its_beginning(tmp_path: Path) -> None:
    path, restarted = tmp_path / "rows.jsonl", list[bool]()
    tail = Tail(path)
    path.write_text('{"n": 1}\n{"n": 2}\n')
    assert rows_of(tail, restarted) == [1, 2]
    path.write_text('{"n": 1}\n{"n": 7}\n{"n": 8}\n')  # wound back, and written again
    assert (rows_of(tail, restarted), restarted) == ([1, 7, 8], [True])
    path.write_text('{"n": 1}\n')
    assert (rows_of(tail, restarted), restarted) == ([1], [True, True])
    path.unlink()
    assert (rows_of(tail, restarted), restarted) == ([], [True, True, True])


def test_figures_follow_a_run_that_is_wound_back(directory: RunDirectory) -> None:
    write_ledger(directory, RUNNING)
    rows, reader = MetricsFile(directory.metrics), RunReader(directory, "arith")
    rows.append(1, {"reward": 0.5})
    rows.append(2, {"reward": 0.9, "alarms/no_signal": 1.0})
    assert reader.look(T).metrics["reward"] == 0.9
    rows.rewind(1)
    figures = reader.look(T)
    assert (figures.metrics["reward"], figures.alarms) == (0.5, {})


@pytest.mark.parametrize(
    "name", ["resolved.json", "ledger.jsonl", "metrics.jsonl", "exit.json", "progress.json", "lock"]
)
def test_damage_is_counted_and_stops_nothing(directory: RunDirectory, name: str) -> None:
    (directory.path / name).write_bytes(b'\xff\x00{"seq": "x"}\n[[[\n{"fact": 3}\n')
    assert look(directory).unreadable == (2 if name in ("ledger.jsonl", "metrics.jsonl") else 0)


def test_runs_are_found_in_directories_and_without_those_that_were_replaced(tmp_path: Path) -> None:
    for name in ("a", "a.old-1", "compare/dpo/seed-0", "compare/dpo/seed-0/checkpoints", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "resolved.json").write_text("{}")
    (tmp_path / "other").mkdir()
    assert [run.run for run in RunsReader([tmp_path]).look()] == ["a", "compare/dpo/seed-0"]
    assert [run.run for run in RunsReader([tmp_path / "a"]).look()] == ["a"]
    several = RunsReader([tmp_path / "a", tmp_path / "compare"]).look()
    assert [run.run for run in several] == ["a", "compare/dpo/seed-0"]


def test_a_run_that_ended_long_ago_is_left_out(directory: RunDirectory) -> None:
    write_ledger(directory, RUNNING)
    os.utime(directory.ledger, (T, T))
    reader = RunsReader([directory.path.parent], keep_s=100.0)
    assert len(reader.look(T + 99)) == 1
    assert reader.look(T + 101) == []


# ------------------------------------------------------------------------------------------------ endpoint


@contextmanager
def served(reader: RunsReader, token_file: Path | None = None) -> Iterator[str]:
    with server(registry_of(reader), "127.0.0.1", 0, token_file) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_endpoint_serves_both_formats(directory: RunDirectory) -> None:
    write_ledger(directory, RUNNING)
    with served(RunsReader([directory.path.parent])) as url:
        status, text = get(f"{url}/metrics")
        assert (status, samples(text)["rlhf_run_step",]) == (200, 1)
        _, openmetrics = get(f"{url}/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert openmetrics.endswith("# EOF\n")
        assert get(f"{url}/")[0] == 404


def test_the_endpoint_asks_for_the_token_and_follows_its_renewal(directory: RunDirectory, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("canary-1\n")
    with served(RunsReader([directory.path.parent]), token) as url:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer "},
            {"Authorization": "canary-1"},
        ):
            status, text = get(f"{url}/metrics", **headers)
            assert (status, text) == (401, "401 Unauthorized\n")
        assert get(f"{url}/metrics", Authorization="Bearer canary-1")[0] == 200
        token.write_text("canary-2")
        assert get(f"{url}/metrics", Authorization="Bearer canary-1")[0] == 401
        assert get(f"{url}/metrics", Authorization="Bearer canary-2")[0] == 200
        token.unlink()
        assert get(f"{url}/metrics", Authorization="Bearer canary-2")[0] == 503


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_address_that_others_reach_needs_a_token(host: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="everybody who reaches this address"):
        server(registry_of(RunsReader([tmp_path])), host, 0)


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BadInput, match="Address already in use"):
            server(registry_of(RunsReader([tmp_path])), "127.0.0.1", taken.getsockname()[1])


# ------------------------------------------------------------------------------------------------ command


def test_the_command_prints_and_writes(directory: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    write_ledger(directory, RUNNING)
    runs = str(directory.path.parent)
    assert main(["metrics", runs, "--days", "100000"]) == 0
    printed = samples(capsys.readouterr().out)
    assert printed["rlhf_run_state", "lost"] == 1
    target = directory.path.parent.parent / "rlhf.prom"
    assert main(["metrics", runs, "--output", str(target)]) == 0
    assert samples(target.read_text())["rlhf_run_step",] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no such directory"),
        ([".", "--output", "runs.txt"], "whose suffix is .prom"),
        ([".", "--output", "no/such/place.prom"], "there is no directory"),
        ([".", "--listen", "9400"], "it is not HOST:PORT"),
        ([".", "--listen", "127.0.0.1:99999"], "it is not HOST:PORT"),
        ([".", "--listen", "0.0.0.0:9400"], "--token-file"),
        ([".", "--listen", "127.0.0.1:1", "--output", "a.prom"], "either served or written"),
        ([".", "--token-file", "token"], "--listen"),
        ([".", "--listen", "0.0.0.0:9400", "--token-file", "no-token"], "No such file"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["metrics", *arguments]) == 2
    assert says in capsys.readouterr().err
