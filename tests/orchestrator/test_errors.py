"""The tree of errors: text, exit code and cause of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.errors import (
    BadInput,
    ClusterError,
    ClusterLost,
    DeadlineExceeded,
    FilesLost,
    FleetExhausted,
    HostOutOfMemory,
    HubUnreachable,
    Interrupted,
    JudgeFailed,
    LimitReached,
    NoHeartbeat,
    NotFinite,
    PlacementError,
    Problem,
    Problems,
    ResumeError,
    RlhfError,
    Shortfall,
    StoreFull,
    Superseded,
    VersionMismatch,
    WorkerFailed,
    redact,
)

PROBLEM = Problem(
    what="algorithm.beta = -1", where="grpo.yaml:4", why="it must not be negative", fix="give a number >= 0"
)
TRACEBACK = """Traceback (most recent call last):
  File "rewards.py", line 3, in reward
    return 1 / 0
ZeroDivisionError: division by zero
"""
DEATH = WorkerFailed("rollout", 1, "its process (pid 4711) died: Worker unexpectedly exits", pid=4711)
ERRORS = {
    "error": RlhfError(PROBLEM),
    "bad-input": BadInput([PROBLEM, Problem(what="no such key: lr")]),
    "cannot-resume": ResumeError(Problem(what="no checkpoint", where="runs/x/checkpoints")),
    "cluster": ClusterError(Problem(what="nobody answers", where="http://head:8265")),
    "placement": PlacementError(
        [
            Shortfall(role="policy", resource="GPU", asked=8, available=4),
            Shortfall(role="rollout", resource="CPU", asked=2.5, available=0),
        ]
    ),
    "worker-failed": WorkerFailed("reward", 1, TRACEBACK),
    "worker-died": WorkerFailed("policy", 0, "its process was killed by SIGKILL", fix="see logs/latest"),
    "deadline": DeadlineExceeded("rollout", "generate", 1800, rank=0),
    "no-heartbeat": NoHeartbeat("policy", "step", 180, rank=1, pid=4711),
    "host-oom": HostOutOfMemory("reward", 0, "MemoryError"),
    "store-full": StoreFull("rollout", 1, "generate", "the local object store is full"),
    "version-mismatch": VersionMismatch("rollout", 1, "the engine holds version 3 of the policy, asked for version 4"),
    "not-finite": NotFinite("policy", 0, "workers.updates.NotFinite: step 3, update 2 of 4: a gradient of norm inf"),
    "fleet-exhausted": FleetExhausted(DEATH, "generate", restarts=3, of_this_call=4),
    "cluster-lost": ClusterLost(26.2, address="head:6379"),
    "hub-unreachable": HubUnreachable("Qwen/Qwen3-0.6B", "model.path", "ConnectError: Connection refused"),
    "files-lost": FilesLost(Problem(what="policy rank 1 on node-7 wrote nothing", where="runs/x/model")),
    "limit-reached": LimitReached("open files", 1024, reason="[Errno 24] Too many open files: 'x'", fix="raise it"),
    "superseded": Superseded("runs/x", "process 4711 on node-3"),
    "judge": JudgeFailed(Problem(what="the endpoint refuses", where="judge.url = http://localhost:8000/v1")),
    "interrupted": Interrupted("SIGINT", resume="rlhf resume runs/x"),
    "terminated": Interrupted("SIGTERM", resume="rlhf resume runs/x"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_texts(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"tree-{name}", f"{ERRORS[name]}\n")


def test_exit_codes_and_causes() -> None:
    assert {name: (error.exit_code, error.cause) for name, error in ERRORS.items()} == {
        "error": (1, "error"),
        "bad-input": (2, "bad_input"),
        "cannot-resume": (2, "cannot_resume"),
        "cluster": (3, "cluster"),
        "placement": (3, "placement"),
        "worker-failed": (4, "worker_failed"),
        "worker-died": (4, "worker_failed"),
        "deadline": (4, "deadline"),
        "no-heartbeat": (4, "no_heartbeat"),
        "host-oom": (4, "host_oom"),
        "store-full": (4, "store_full"),
        "version-mismatch": (4, "version_mismatch"),
        "not-finite": (4, "not_finite"),
        "fleet-exhausted": (4, "fleet_exhausted"),
        "cluster-lost": (3, "cluster_lost"),
        "hub-unreachable": (1, "hub_unreachable"),
        "files-lost": (1, "files_lost"),
        "limit-reached": (1, "limit_reached"),
        "superseded": (6, "superseded"),
        "judge": (1, "judge"),
        "interrupted": (130, "user"),
        "terminated": (143, "preempted"),
    }


def test_the_tree_is_as_documented() -> None:
    assert ResumeError.__bases__ == (BadInput,)
    assert {cls.__bases__ for cls in (PlacementError, ClusterLost)} == {(ClusterError,)}
    failures = (DeadlineExceeded, NoHeartbeat, HostOutOfMemory, StoreFull, VersionMismatch, NotFinite, FleetExhausted)
    assert {cls.__bases__ for cls in failures} == {(WorkerFailed,)}
    others = (BadInput, ClusterError, WorkerFailed, HubUnreachable, FilesLost, LimitReached, Superseded, Interrupted)
    assert {cls.__bases__ for cls in others} == {(RlhfError,)}


def test_problems_are_collected_and_raised_together() -> None:
    problems = Problems()
    problems.raise_if_any()
    problems.add("a")
    problems.add("b", where="x:1")
    with pytest.raises(BadInput) as caught:
        problems.raise_if_any()
    assert [problem.what for problem in caught.value.problems] == ["a", "b"]


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a" * 34,
        "sk-proj-" + "a" * 40,
        "ghp_" + "a" * 36,
        "AKIA" + "A" * 16,
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_secrets_are_never_printed(secret: str) -> None:
    assert secret not in str(Problem(what=f"token = {secret}", why=secret, fix=secret))
    assert secret not in str(WorkerFailed("reward", 0, f"ValueError: bad key {secret}"))


def test_credentials_are_removed_from_urls() -> None:
    assert redact("http://me:s3cret@host:8265/x") == "http://[redacted]@host:8265/x"
    assert redact("http://host:8265/x@y") == "http://host:8265/x@y"
