"""A process that has imported heavy modules and forks workers from itself, in milliseconds instead of seconds.

    python fork_server.py --serve PLAN                 import modules, then fork on every connection to a socket
    python -I -S fork_server.py SOCKET script args …   run a script in a fork; exit with its status

Ray starts workers by the second form (`py_executable`): a worker is a process of its own that Ray starts, watches and
kills as any other, without its seconds of imports. Where the server is gone, the script runs in a plain interpreter.
Nothing of this program and nothing but the standard library is imported here: the second form must start fast. The
fork server of `multiprocessing` forks for its own parent alone, which a worker of Ray is not.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import NamedTuple

MAX_REQUEST_BYTES = 2**20
NETWORK = "/proc/thread-self/ns/net"


class Preload(NamedTuple):
    """Modules that workers of a kind import, and the environment that must be set before."""

    modules: Sequence[str] = ()
    environment: Mapping[str, str] = {}


NOTHING = Preload()


@contextmanager
def fork_servers(preloads: Mapping[str, Preload], shared: Preload = NOTHING) -> Iterator[int]:
    """Serve forks at the socket paths of `preloads`; the context has the process id of the server of the last one.

    The modules are imported while the caller goes on; a request waits for them. Those in `shared` are imported once, by
    the process that every server is a fork of.
    """
    with ExitStack() as stack:
        servers = []
        for path, preload in preloads.items():
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            listener.bind(path)
            listener.listen(64)
            servers.append((listener.fileno(), *preload))
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--serve", json.dumps([*shared, servers])],
            stdin=subprocess.PIPE,  # its end tells the servers that this process is gone, however it ended
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listening for listening, *_ in servers],
            start_new_session=True,  # Ctrl-C is the driver's
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    try:
        yield process.pid
    finally:
        status = process.poll()
        assert process.stdin is not None
        process.stdin.close()
        with suppress(ProcessLookupError):  # at once while they import; else they see that their input has ended
            os.killpg(process.pid, signal.SIGTERM)
        if status is None and (status := process.wait()) == -signal.SIGTERM:
            status = 0
        if status:  # nothing else tells of it: workers started in plain interpreters
            warnings.warn(f"a fork server ended early, with status {status}", RuntimeWarning, stacklevel=2)


def worker_command(path: str) -> str:
    """Return the command that starts a Python script in a fork: Ray's `py_executable`."""
    return f"{sys.executable} -I -S {__file__} {path}"


def request(path: str, arguments: list[str]) -> int:
    """Run `arguments` in a fork with the environment, directory and files of this process; return its exit status."""
    try:
        connection = ask(path, arguments, dict(os.environ), (0, 1, 2))
        forked = connection.recv(64)
    except OSError:
        forked = b""
    if not forked:
        os.execv(sys.executable, [sys.executable, *arguments])
    status = connection.recv(64)
    return int(status) if status else 1


def ask(path: str, arguments: list[str], environment: dict[str, str], files: tuple[int, int, int]) -> socket.socket:
    """Return a connection that delivers the process id of the fork, and its exit status when it has ended.

    `files` become its standard input, output and error. The fork is killed when the connection is closed.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REQUEST_BYTES)
    body = json.dumps([arguments, environment, os.getcwd()]).encode()
    network = os.open(NETWORK, os.O_RDONLY)  # the caller may be in a network namespace of its own
    connection.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (*files, network)))])
    os.close(network)
    return connection


def serve(
    modules: Sequence[str],
    environment: Mapping[str, str],
    servers: Sequence[tuple[int, Sequence[str], Mapping[str, str]]],
) -> int:
    """Import the shared modules, fork a process for each but the last of `servers`, and be the last one.

    Each server imports its modules, then forks on request until standard input ends.

    Returns:
        The exit status: 1 if another server has failed.
    """
    # Ray reads its environment, with the id of the job, while it is imported: each fork imports it itself, and
    # modules that would import it here (vLLM, for an executor that workers do not use) do without it.
    sys.modules["ray"] = None  # type: ignore[assignment]
    gc.disable()  # imports make millions of objects that stay
    _import(modules, environment)
    others = set()
    *first, last = servers
    for position, server in enumerate(first):
        if pid := os.fork():
            others.add(pid)
            os.close(server[0])  # the fork's alone: if it fails, requests must not wait
        else:
            for listening, *_ in servers[position + 1 :]:
                os.close(listening)
            return _serve(*server, others=set())
    return _serve(*last, others=others)


def _import(modules: Sequence[str], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    for module in modules:
        importlib.import_module(module)


def _serve(listening: int, modules: Sequence[str], environment: Mapping[str, str], *, others: Set[int]) -> int:
    """Import `modules`, then fork on request until standard input ends.

    Returns:
        1 if one of the servers with the process ids `others`, forked from this process, has failed; else 0.
    """
    with socket.socket(fileno=listening) as listener:
        _import(modules, environment)
        del sys.modules["ray"]
        gc.freeze()  # collections in a fork pass over what it shares with the others, and copy none of it
        try:
            return int(_fork_on_request(listener, others))
        finally:  # the process that made the socket may have been killed
            path = listener.getsockname()
            with suppress(OSError):
                os.unlink(path)
                os.rmdir(os.path.dirname(path))


def _fork_on_request(listener: socket.socket, others: Set[int]) -> bool:
    _, woken = wake_up = socket.socketpair()
    for end in wake_up:
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, _nothing)
    signal.signal(signal.SIGTERM, _nothing)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    waiting: dict[int, socket.socket] = {}
    failed = False
    while True:
        readable, _, _ = select.select([listener, wake_up[0], sys.stdin, *waiting.values()], [], [])
        if sys.stdin in readable:
            break
        for pid in [pid for pid, connection in waiting.items() if connection in readable]:
            os.kill(pid, signal.SIGKILL)  # the process that asked for the fork is gone
            waiting.pop(pid).close()
        if wake_up[0] in readable:
            with suppress(BlockingIOError):
                wake_up[0].recv(4096)
            failed |= _reap(waiting, others, os.WNOHANG)
        if listener in readable:
            connection, _ = listener.accept()
            if pid := _fork(connection, listener):
                connection.send(str(pid).encode())
                waiting[pid] = connection
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    return _reap(waiting, others, 0) or failed


def _nothing(number: int, frame: FrameType | None) -> None:
    """Handle a signal by waking up `select` alone."""


def _reap(waiting: dict[int, socket.socket], others: Set[int], options: int) -> bool:
    """Send the exit status of each fork that has ended to the process that asked for it.

    Returns:
        Whether one of the servers `others` has failed.
    """
    failed = False
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, options)) != (0, 0):
            code = os.waitstatus_to_exitcode(ended[1])
            failed |= ended[0] in others and code > 0
            if connection := waiting.pop(ended[0], None):
                with suppress(OSError):
                    connection.send(str(code if code >= 0 else 128 - code).encode())
                connection.close()
    return failed


def _fork(connection: socket.socket, listener: socket.socket) -> int:
    """Return the process id of a new fork; 0 when the process that asked for it is gone already."""
    body, files, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 4)
    if not body:
        return 0
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A SIGTERM for all processes of the driver is the driver's alone: workers stay until it has saved.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            os.setpgid(0, 0)  # Ray kills the whole process group of a worker that is to end
            listener.close()
            connection.close()
            gc.enable()
            *standard, network = files
            enter(network)
            for target, file in enumerate(standard):
                os.dup2(file, target)
            for file in files:
                os.close(file)
            status = _become(*json.loads(body))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    for file in files:
        os.close(file)
    return pid


def enter(network: int) -> None:
    """Enter a network namespace, unless this thread is in it."""
    if os.fstat(network).st_ino != os.stat(NETWORK).st_ino and ctypes.CDLL(None, use_errno=True).setns(network, 0):
        raise OSError(ctypes.get_errno(), "setns")


def _become(arguments: list[str], environment: dict[str, str], directory: str) -> int:
    """Run a script as `__main__`, as the interpreter does; return its exit status."""
    import runpy

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    while arguments[0].startswith("-"):  # options of the interpreter: Ray asks for unbuffered output
        arguments.pop(0)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        status = 1
        try:
            status = serve(*json.loads(sys.argv[2]))
        finally:
            os._exit(status)  # to take all modules apart would cost seconds
    else:
        sys.exit(request(sys.argv[1], sys.argv[2:]))
