"""Faults that a run on real Ray survives, or reports by a typed error.

Processes are killed or stopped; machines, replies, heads, memory and disk space are lost. There is one run for each
fault; `make test-faults` does more, and the tests that are marked as long.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cpu_run
import hangs
import kills
import outages
import partition
import pytest
from kills import ATTEMPT_S
from outages import (
    ON_SECOND_NODE,
    STEPS,
    assert_undisturbed,
    configuration,
    ended,
    incidents,
    kill_all,
    reach,
    run_to_end,
)
from stage import Stage, eventually

from orchestrator.errors import Superseded
from orchestrator.rundir.ledger import account, read_ledger

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("stage")
    cpu_run.write_task(directory)
    with Stage.open(directory) as opened:
        yield opened


@pytest.fixture(scope="module")
def task(stage: Stage) -> Path:
    return Path(stage.socket).parent


@pytest.fixture(scope="module")
def expected(stage: Stage, task: Path) -> Any:
    """Return the outcome of the run of `outages.configuration` without a fault."""
    return outages.undisturbed(stage, task)


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(stage: Stage, task: Path) -> None:
    algorithm = "iterative-dpo"
    whole, killed = (kills.configuration(task, task / name, algorithm) for name in ("whole", "killed"))
    kills.run_with_kills(stage, whole, algorithm, random.Random(), num_kills=0)
    killed_run = kills.run_with_kills(stage, killed, algorithm, random.Random(1), num_kills=3)
    directory = task / "killed" / killed.name
    assert killed_run.kills
    assert not killed_run.left_behind
    assert cpu_run.outcome(directory) == cpu_run.outcome(task / "whole" / whole.name)
    records = read_ledger(directory / "ledger.jsonl")[0]
    accounted = account(records)
    assert accounted.lost == accounted.repeated == ()
    assert cpu_run.made_again(records) == []
    assert all(steps <= 1 for steps in kills.redone_by_attempt(directory))


@pytest.mark.long
def test_a_stopped_process_is_reported(stage: Stage, task: Path) -> None:
    assert hangs.hang(stage, task, "grpo", seed=0) < hangs.DEADLINE_S + 10


@pytest.mark.long
def test_f3_all_engines_die_at_once_until_none_may_be_started_again(stage: Stage, task: Path, expected: Any) -> None:
    engines = [("rollout", 0), ("rollout", 1)]
    config = configuration(task, "engines", restarts_per_role=3)
    attempt = stage.attempt(config)
    reach(attempt, 8)
    first = kill_all(stage, attempt, engines)
    assert eventually(lambda: len(incidents(attempt)) == 2, ATTEMPT_S), "the engines were not both restarted"
    kill_all(stage, attempt, engines, except_pids=first)
    exit = ended(stage, attempt)
    assert (exit["cause"], exit["exit_code"], exit["first_cause"]["role"]) == ("fleet_exhausted", 4, "rollout")
    assert "rollout was restarted 3 times" in exit["message"]
    assert {i.pid for i in incidents(attempt)} >= set(first)
    run_to_end(stage, config)
    assert_undisturbed(attempt, expected)


@pytest.mark.long
def test_f26_a_machine_is_lost_and_another_takes_its_place(stage: Stage, task: Path, expected: Any) -> None:
    config = configuration(task, "machine", cpus_per_worker=outages.CPUS_OF_FOUR)
    with stage.node(num_cpus=32) as machine:
        attempt = stage.attempt(config)
        reach(attempt, 14)
        stage.remove_machine(machine)
    with stage.node(num_cpus=32):
        assert attempt.ended(ATTEMPT_S), "the attempt hangs"
        assert attempt.status == 0, outages.describe(attempt)
        assert stage.clean(attempt)
    assert {i.role for i in incidents(attempt)} == ON_SECOND_NODE
    found = [i.what for i in incidents(attempt)]
    assert any("its machine" in what for what in found), found
    # A call that is sent in the moment of the loss fails before Ray knows the reason.
    assert all("its machine" in what or "could not be reached" in what for what in found), found
    assert_undisturbed(attempt, expected)


@pytest.mark.long
def test_f26_a_machine_is_lost_and_no_other_has_room(stage: Stage, task: Path, expected: Any) -> None:
    config = configuration(task, "no-machine", cpus_per_worker=outages.CPUS_OF_FOUR, start_timeout_s=20)
    with stage.node(num_cpus=32) as machine:
        attempt = stage.attempt(config)
        reach(attempt, 14)
        stage.remove_machine(machine)
        exit = ended(stage, attempt)
    assert (exit["cause"], exit["exit_code"]) == ("placement", 3)
    assert "a machine of the cluster was lost, and the others have no room" in exit["message"]
    with stage.node(num_cpus=32):
        run_to_end(stage, config)
    assert_undisturbed(attempt, expected)


@pytest.mark.long
def test_f30_a_driver_that_wakes_up_after_another_took_over_writes_nothing(
    stage: Stage, task: Path, expected: Any
) -> None:
    config = configuration(task, "zombie")
    old = stage.attempt(config)
    reach(old, 10)
    os.kill(old.pid, signal.SIGSTOP)
    refused = stage.attempt(config)
    assert refused.ended(ATTEMPT_S)
    assert refused.status == 2, "as long as the lock holds, nobody else begins"
    (old.directory / "lock").unlink()  # as shared storage releases it when the holder's machine is cut off
    new = stage.attempt(config)
    assert eventually(lambda: new.ended() or new.records[-1]["attempt"] == 2, ATTEMPT_S)
    os.kill(old.pid, signal.SIGCONT)
    assert old.ended(ATTEMPT_S), "the superseded driver does not end"
    assert old.status == Superseded.exit_code, outages.describe(old)
    assert new.ended(ATTEMPT_S)
    assert new.status == 0, outages.describe(new)
    assert stage.clean(new)
    assert (new.cause, {r["attempt"] for r in new.records}) == ("completed", {1, 2})
    assert_undisturbed(new, expected)


@pytest.mark.long
def test_f44_a_reply_that_is_lost_has_its_effect_once(stage: Stage, task: Path, expected: Any) -> None:
    """Let Ray discard one in 25 replies: the call was executed, but its caller sees a failure."""
    config, lost = configuration(task, "replies"), 0
    shares = {"req_failure_prob": 0, "resp_failure_prob": 4, "in_flight_failure_prob": 0}
    lost_replies = json.dumps({"CoreWorkerService.grpc_client.PushTask": {"num_failures": -1, **shares}})
    for _ in range(2):
        attempt = stage.attempt(config, RAY_testing_rpc_failure=lost_replies)
        if ended(stage, attempt)["cause"] == "completed":
            break
        assert attempt.cause in ("worker_failed", "fleet_exhausted"), outages.describe(attempt)
        lost += 1
    else:
        run_to_end(stage, config)
    assert lost + len(incidents(attempt)) > 0, "no reply was lost"
    assert_undisturbed(attempt, expected)


@pytest.mark.long
def test_f45_a_machine_without_memory_is_named(stage: Stage, task: Path) -> None:
    """Lower the threshold of Ray's memory monitor until any use exceeds it: the monitor kills processes there."""
    config = configuration(task, "memory", cpus_per_worker=outages.CPUS_OF_FOUR)
    variables = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    with stage.node(variables, num_cpus=32):
        exit = ended(stage, stage.attempt(config))
    assert (exit["cause"], exit["exit_code"]) == ("host_oom", 4)
    assert exit["first_cause"]["role"] in ON_SECOND_NODE
    assert "give the machine more memory" in exit["message"]


@pytest.mark.long
def test_f47_a_full_store_on_a_full_disk_is_named(stage: Stage, task: Path) -> None:
    """Lower the threshold of Ray's disk monitor until any use exceeds it: the disk counts as full."""
    variables, output = {"RAY_local_fs_capacity_threshold": "0.0001"}, task / "store.log"
    with stage.node(variables, num_cpus=100, object_store_memory=80 * 2**20):
        assert stage.script(Path(outages.__file__).with_name("full_store.py"), "80", output=output) == 0
    report = json.loads(output.read_text().splitlines()[-1])
    assert (report["cause"], report["room_for"]) == ("store_full", 3), "of 20 MiB each in 80 MiB, less what Ray needs"
    assert "no room for the result of `answer` from filler rank 0" in report["message"]


@pytest.mark.long
def test_f50_a_driver_at_its_file_limit_reports_it(stage: Stage, task: Path, expected: Any) -> None:
    config = configuration(task, "files")
    attempt = stage.attempt(config)
    reach(attempt, 10)
    open_files = {int(name) for name in os.listdir(f"/proc/{attempt.pid}/fd")}
    free = next(number for number in range(len(open_files) + 1) if number not in open_files)
    resource.prlimit(attempt.pid, resource.RLIMIT_NOFILE, (free, free))
    exit = ended(stage, attempt)
    assert (exit["cause"], exit["exit_code"]) == ("limit_reached", 1)
    assert f"the driver has reached its limit of open files: {free}" in exit["message"]
    run_to_end(stage, config)
    assert_undisturbed(attempt, expected)


@pytest.mark.long
def test_f24_a_head_that_does_not_answer_for_a_while_is_waited_for(stage: Stage, task: Path, expected: Any) -> None:
    """Suspend the head, which looks like a restart with fault tolerance. The next test restarts it from Redis."""
    attempt = stage.attempt(configuration(task, "silent-head"))
    reach(attempt, 10)
    (head,) = stage.cluster.head_node.all_processes["gcs_server"]
    os.kill(head.process.pid, signal.SIGSTOP)
    try:
        attempt.ended(8.0)
    finally:
        os.kill(head.process.pid, signal.SIGCONT)
    assert attempt.ended(ATTEMPT_S), "the attempt hangs"
    assert (attempt.status, incidents(attempt)) == (0, []), outages.describe(attempt)
    assert_undisturbed(attempt, expected)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server")
def test_f24_a_head_that_is_killed_and_comes_back_from_redis(stage: Stage, task: Path, expected: Any) -> None:
    with (
        redis(task) as address,
        stage.second_cluster({"RAY_REDIS_ADDRESS": address}, gcs_server_port=_free_port()) as other,
    ):
        attempt = other.attempt(configuration(task, "redis"))
        reach(attempt, 10)
        other.cluster.head_node.kill_gcs_server()
        other.cluster.head_node.start_gcs_server()
        assert attempt.ended(ATTEMPT_S), "the attempt hangs"
        assert (attempt.status, incidents(attempt)) == (0, []), outages.describe(attempt)
        assert other.clean(attempt)
    assert_undisturbed(attempt, expected)


@pytest.mark.long
def test_f25_a_head_that_is_lost_ends_the_attempt_and_the_next_cluster_resumes(
    stage: Stage, task: Path, expected: Any
) -> None:
    config = configuration(task, "headless")
    with stage.second_cluster() as other:
        attempt = other.attempt(config)
        reach(attempt, 10)
        engine = other.members(attempt)["rollout", 0]
        os.kill(engine, signal.SIGSTOP)  # otherwise the run would complete: its calls need no head
        other.cluster.head_node.kill_gcs_server()
        assert attempt.ended(ATTEMPT_S), "the attempt hangs"
        os.kill(engine, signal.SIGKILL)  # a stopped process cannot notice that its cluster is gone
        exit = ended(other, attempt)
    assert (exit["cause"], exit["exit_code"], exit["first_cause"]["role"]) == ("cluster_lost", 3, "cluster")
    run_to_end(stage, config)
    assert_undisturbed(attempt, expected)


@pytest.mark.long
def test_f25_a_head_that_is_lost_when_nobody_needs_it_any_more(stage: Stage, task: Path, expected: Any) -> None:
    with stage.second_cluster() as other:
        attempt = other.attempt(configuration(task, "almost"))
        reach(attempt, 6 * STEPS - 8)
        other.cluster.head_node.kill_gcs_server()
        assert attempt.ended(ATTEMPT_S), "the attempt hangs"
        assert (attempt.status, attempt.cause) == (0, "completed"), outages.describe(attempt)
        assert other.clean(attempt, within_s=90), "Ray ends what has had no head for a minute"
    assert_undisturbed(attempt, expected)


@pytest.mark.long
@pytest.mark.skipif(not partition.is_possible(), reason="it takes root to make network namespaces")
def test_f43_a_machine_is_cut_off_for_a_moment_and_then_for_good(stage: Stage, task: Path, expected: Any) -> None:
    config = configuration(task, "cut-off", cpus_per_worker=outages.CPUS_OF_FOUR)
    watchful = {"RAY_health_check_timeout_ms": "5000"}
    with partition.network() as network, stage.second_cluster(watchful, node_ip_address=partition.NEAR) as other:
        with network.entered():
            far = other.cluster.add_node(num_cpus=40, node_ip_address=partition.FAR)
        with other.node(num_cpus=32, node_ip_address=partition.NEAR):
            attempt = other.attempt(config)
            reach(attempt, 14)
            network.cut()
            assert not attempt.ended(3.0)
            network.restore()
            reach(attempt, len(attempt.records) + 12)
            assert incidents(attempt) == [], "a cut of three seconds heals"
            network.cut()
            assert attempt.ended(ATTEMPT_S), "the attempt hangs"
            assert attempt.status == 0, outages.describe(attempt)
            assert {i.role for i in incidents(attempt)} == ON_SECOND_NODE
            network.restore()
            other.remove_machine(far)
            assert other.clean(attempt)
    assert_undisturbed(attempt, expected)


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    port = _free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        assert eventually(lambda: _answers(port), 10.0, every_s=0.1), "Redis did not start"
        yield f"127.0.0.1:{port}"
        server.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
