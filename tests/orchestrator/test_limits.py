"""Limits of the system: too low ones are refused before anything starts, and one that is reached is named."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

import pytest
from recipe_dir import RecipeDir

from orchestrator import limits
from orchestrator.cli.main import main
from orchestrator.errors import ClusterError, LimitReached


@pytest.fixture(autouse=True)
def restored_limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_f50_limits_that_a_cluster_would_reach_are_refused() -> None:
    with pytest.raises(ClusterError) as refused:
        limits.refuse_low(lambda number: (256, 512) if number == resource.RLIMIT_NOFILE else (100_000, 100_000))
    assert str(refused.value).splitlines() == [
        "this machine: too few open files",
        "  why: the limit is 512, and a Ray cluster on this machine needs 1024",
        f"  fix: {limits.RAISE}",
    ]


def test_soft_limits_are_raised() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    limits.refuse_low()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, limits.PLENTY)


def test_f50_a_process_at_its_file_limit_reports_it_and_can_still_write() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with limits.Spare() as spare:
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        with pytest.raises(OSError, match="Too many open files") as hit:
            os.open(os.devnull, os.O_RDONLY)
        error = limits.explain(hit.value)
        assert isinstance(error, LimitReached)
        assert f"the driver has reached its limit of open files: {lowest}" in str(error)
        spare.give_up()
        os.close(os.open(os.devnull, os.O_RDONLY))


def test_other_errors_are_left_as_they_are() -> None:
    for error in (OSError(errno.ENOSPC, "full"), RuntimeError("something"), ValueError("Too many open files")):
        assert limits.explain(error) is error
    assert isinstance(limits.explain(RuntimeError("can't start new thread")), LimitReached)
    assert isinstance(limits.explain(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")), LimitReached)


def test_a_temporary_directory_that_is_too_long_for_sockets_is_refused() -> None:
    tail = "/ray/session_2000-01-01_00-00-00_000000_4321/sockets/plasma_store"
    room = 107 - len(tail)
    assert limits.long_sockets("/" + "t" * (room - 1), pid=4321) == []
    (problem,) = limits.long_sockets("/" + "t" * room, pid=4321)
    assert problem.what == "the path of the temporary directory is 1 bytes too long"
    assert problem.fix.startswith("set a shorter TMPDIR")
    assert limits.long_sockets("/" + "ü" * (room // 2), pid=4321)  # two bytes each


def test_validate_refuses_a_long_temporary_directory(
    recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "t" * 100)
    assert main(["validate", recipe_dir.recipe()]) == 2
    assert "fix: set a shorter TMPDIR, for example TMPDIR=/tmp" in capsys.readouterr().err
