"""One Ray cluster and one fork server for many attempts of runs, whose processes can be found by role.

with Stage.open(directory) as stage:
    attempt = stage.attempt(config)             a driver, in a separate process
    stage.members(attempt)["rollout", 0]        the process id of an actor
    with stage.node(num_cpus=32): ...           one more machine
    with stage.second_cluster() as other: ...   another cluster, for faults that a cluster does not survive
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.cluster import fork_server, preload
from orchestrator.config import RunConfig

HERE = Path(__file__).parent
PRELOADED = (
    "cpu_run",
    "jsonschema",
    "orchestrator.monitor",
    "requests",
    "transformers.models.qwen2.modeling_qwen2",
    "uvloop",
    "workers.rewards.function",
    "workers.updates",
)
HEAD_CPUS, STORE_BYTES = 64, 100 * 2**20
FAST_HEALTH_CHECKS = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
"""Settings with which Ray notices a lost node in seconds. A slow node still has ten seconds for each answer."""
Member = tuple[str, int]
"""Role and rank; the driver is `("driver", 0)`."""


class Attempt:
    """One attempt of a run: a forked driver, and its actors on the cluster."""

    def __init__(self, config: RunConfig, connection: Any) -> None:
        self.directory = Path(config.output_dir) / config.name
        self.started = time.monotonic()
        self._connection = connection
        self.pid = int(connection.recv(64))
        self.status: int | None = None  # None: still alive

    def ended(self, within_s: float = 0.0) -> bool:
        """Return whether the attempt has ended, after waiting for up to `within_s` seconds."""
        if self.status is None and select.select([self._connection], [], [], within_s)[0]:
            self.status = int(self._connection.recv(64) or 1)
            self._connection.close()
        return self.status is not None

    @property
    def records(self) -> list[dict[str, Any]]:
        """Complete records of the run's ledger."""
        try:
            lines = (self.directory / "ledger.jsonl").read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    @property
    def cause(self) -> str:
        """Cause given in exit.json; empty if there is no exit.json."""
        try:
            return str(json.loads((self.directory / "exit.json").read_text())["cause"])
        except (FileNotFoundError, ValueError):
            return ""


@dataclass(frozen=True)
class Stage:
    """Cluster and fork server that attempts share."""

    server: int  # process id of the fork server, the parent of all processes of attempts
    socket: str
    environment: dict[str, str]
    cluster: Any

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Stage]:
        """Start a Ray head with its own token, and a fork server. Stop both at the end."""
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

        token, socket = directory / "token", str(directory / "forks")
        token.touch(0o600)
        token.write_text(os.environ.get("RLHF_TEST_RAY_TOKEN") or secrets.token_hex(32))
        before = dict(os.environ)
        os.environ.pop(preload.VARIABLE, None)  # the test session may serve forks, but members are children of this one
        os.environ |= {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        os.environ |= {"OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"} | FAST_HEALTH_CHECKS
        maybe_enable_token_auth_if_token_available()
        try:
            with fork_server.fork_servers({socket: fork_server.Preload(PRELOADED)}) as server, _head() as cluster:
                yield cls(server, socket, _environment(cluster, socket), cluster)
        finally:
            os.environ.clear()
            os.environ.update(before)

    @contextmanager
    def second_cluster(self, variables: Mapping[str, str] = MappingProxyType({}), **arguments: Any) -> Iterator[Stage]:
        """Start another Ray head, the only one with `variables` in its environment, and yield a stage on it."""
        before = dict(os.environ)
        with ExitStack() as stack:
            os.environ |= variables
            try:
                cluster = stack.enter_context(_head(**arguments))
            finally:
                os.environ.clear()
                os.environ.update(before)
            yield replace(self, environment=_environment(cluster, self.socket), cluster=cluster)

    @contextmanager
    def node(self, variables: Mapping[str, str] = MappingProxyType({}), **arguments: Any) -> Iterator[Any]:
        """Add a machine to the cluster: a raylet. `remove_machine` kills it with everything that runs on it."""
        node = self.cluster.add_node(**{"object_store_memory": STORE_BYTES, "env_vars": dict(variables), **arguments})
        try:
            yield node
        finally:
            if node in self.cluster.worker_nodes:
                self.remove_machine(node)

    def remove_machine(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def attempt(self, config: RunConfig, **variables: str) -> Attempt:
        """Start an attempt. `variables` are set in the environment of the driver only."""
        directory = Path(config.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        recipe = directory / "config.json"
        recipe.write_text(config.model_dump_json())
        with (directory / "output.log").open("a") as log, open(os.devnull) as nothing:
            files = (nothing.fileno(), log.fileno(), log.fileno())
            script = [str(HERE / "fake_engines.py"), str(recipe)]
            return Attempt(config, fork_server.ask(self.socket, script, self.environment | variables, files))

    def script(self, path: Path, *arguments: str, output: Path) -> int:
        """Run another driver script to its end and return its exit status."""
        with output.open("w") as log, open(os.devnull) as nothing:
            files = (nothing.fileno(), log.fileno(), log.fileno())
            with fork_server.ask(self.socket, [str(path), *arguments], self.environment, files) as connection:
                connection.recv(64)  # its process id
                return int(connection.recv(64) or 1)

    def members(self, attempt: Attempt) -> dict[Member, int]:
        """Return the process ids of the living members of an attempt. An actor is identified by its log file."""
        found = {} if attempt.ended() else {("driver", 0): attempt.pid}
        for pid in Path(f"/proc/{self.server}/task/{self.server}/children").read_text().split():
            with suppress(OSError):
                log = Path(os.readlink(f"/proc/{pid}/fd/1"))
                if log.is_relative_to(attempt.directory / "logs"):
                    role, _, rank = log.stem.rpartition("-")
                    found[role, int(rank)] = int(pid)
        return found

    def clean(self, attempt: Attempt, within_s: float = 30.0) -> bool:
        """Return whether an ended attempt leaves no actor behind. Kill the actors that it leaves."""
        if eventually(lambda: not self.members(attempt), within_s):
            return True
        for pid in self.members(attempt).values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return False


@contextmanager
def _head(**arguments: Any) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": HEAD_CPUS, "include_dashboard": False, "object_store_memory": STORE_BYTES, **arguments}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def _environment(cluster: Any, socket: str) -> dict[str, str]:
    """Return the environment of drivers on this cluster, whose workers are forked by the server at `socket`."""
    job = {"runtime_env": {"py_executable": fork_server.worker_command(socket)}}
    return os.environ | {"RAY_ADDRESS": cluster.address, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}


def eventually(condition: Callable[[], bool], within_s: float, every_s: float = 0.005) -> bool:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(every_s)
    return True
