"""Fixtures of the stack tests: one Ray head for the session, directories of model families, and finished runs.

A run connects to the head, starts its own actors there and removes them when it ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import attempts
import families
import pytest
from attempts import Run

from orchestrator.config import ClusterConfig
from orchestrator.pipeline.roles import preloaded


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray.cluster_utils import Cluster

    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(os.environ["RLHF_TEST_RAY_TOKEN"])
    with preloaded(ClusterConfig()), pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray reads its authentication mode on import, which may have happened already: read it again, as `ray start`.
        maybe_enable_token_auth_if_token_available()
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 64, "include_dashboard": False, "object_store_memory": 256 * 2**20},
        )
        environment.setenv("RAY_ADDRESS", cluster.address)
        yield
        cluster.shutdown()


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("qwen2")
    families.write_qwen2(directory)
    return directory


@pytest.fixture(scope="session")
def llama(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    families.write_llama(directory, qwen2)
    return directory


@pytest.fixture(scope="session")
def finished(head: None) -> Callable[..., Run]:
    """Return a function that runs a recipe to its end, once per session for the same arguments."""
    return cache(attempts.run)
