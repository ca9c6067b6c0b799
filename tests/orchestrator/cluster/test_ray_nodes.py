"""Waiting for the nodes of a cluster. Real nodes join in tests/cluster/test_on_slurm.py."""

from __future__ import annotations

import socket

from orchestrator.cluster.ray_nodes import _answers, missing


def test_nodes_that_join_one_after_another_are_waited_for() -> None:
    looks = iter([{"n1"}, {"n1", "n2"}])
    assert missing(["n1", "n2"], lambda: next(looks), within_s=60) == []


def test_nodes_that_do_not_come_in_time_are_named() -> None:
    assert missing(["n3", "n1", "n2"], lambda: {"n1", "another"}, within_s=0) == ["n2", "n3"]


def test_a_node_answers_as_long_as_it_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _answers("127.0.0.1", port)
    assert not _answers("127.0.0.1", port)
