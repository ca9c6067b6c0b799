"""One process that has imported everything; every other is forked from it, and is there in a twentieth of a second.

    python forkserver.py SOCKET                          serve
    python -I -S forkserver.py SOCKET script args…       run a script in a fork; ends as the fork ends

The second form is what a Ray cluster of the tests is told to start its workers by (`py_executable`). A worker is a
process of its own that Ray starts, watches and buries as any other; only its ten seconds of imports are gone. It is put
into the network that whoever asked for it is in: a node may be in one of its own.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress

MAX_REQUEST = 2**20
NETWORK = "/proc/thread-self/ns/net"


def request(path: str, arguments: list[str]) -> int:
    """Has `arguments` run in a fork with this process's environment, directory and files; its exit status."""
    connection = ask(path, arguments, dict(os.environ), (0, 1, 2))
    connection.recv(64)  # its process id
    status = connection.recv(64)
    return int(status) if status else 1


def ask(path: str, arguments: list[str], environment: dict[str, str], files: tuple[int, int, int]) -> socket.socket:
    """A connection on which come the fork's process id and, when it has ended, its exit status."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REQUEST)
    body = json.dumps([arguments, environment, os.getcwd()]).encode()
    network = os.open(NETWORK, os.O_RDONLY)
    connection.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (*files, network)))])
    os.close(network)
    return connection


def serve(path: str) -> None:
    """Until standard input ends: whoever started this process is gone then."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    _, woken = wake_up = socket.socketpair()
    for end in wake_up:
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    print("ready", flush=True)
    waiting: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([listener, wake_up[0], sys.stdin, *waiting.values()], [], [])
        if sys.stdin in readable:
            break
        for pid in [pid for pid, connection in waiting.items() if connection in readable]:
            os.kill(pid, signal.SIGKILL)  # whoever waited for it is gone
            waiting.pop(pid).close()
        if wake_up[0] in readable:
            with suppress(BlockingIOError):
                wake_up[0].recv(4096)
            _bury(waiting)
        if listener in readable:
            connection, _ = listener.accept()
            pid = _fork(connection, listener)
            if pid:
                connection.send(str(pid).encode())
                waiting[pid] = connection
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)


def _bury(waiting: dict[int, socket.socket]) -> None:
    """Tell whoever waits for a child how it ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            code = os.waitstatus_to_exitcode(ended[1])
            if connection := waiting.pop(ended[0], None):
                with suppress(OSError):
                    connection.send(str(code if code >= 0 else 128 - code).encode())
                connection.close()


def _fork(connection: socket.socket, listener: socket.socket) -> int:
    """The child's process id; 0 when whoever asked is gone already."""
    body, files, _, _ = socket.recv_fds(connection, MAX_REQUEST, 4)
    if not body:
        return 0
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            listener.close()
            connection.close()
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
    """Put this thread into a network namespace, if it is not in it."""
    if os.fstat(network).st_ino != os.stat(NETWORK).st_ino and ctypes.CDLL(None, use_errno=True).setns(network, 0):
        raise OSError(ctypes.get_errno(), "setns")


def _become(arguments: list[str], environment: dict[str, str], directory: str) -> int:
    import runpy

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    while arguments[0].startswith("-"):  # Ray asks for unbuffered output
        arguments.pop(0)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def preload() -> None:
    """Import what actors and drivers import. Not Ray: at its import it reads its environment, with the job's id."""
    from pathlib import Path

    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests / "faults"), str(tests / "workers"), str(tests.parent)]
    import cpu_run
    import jsonschema
    import requests
    import transformers.models.qwen2.modeling_qwen2
    import uvloop

    import orchestrator.monitor
    import workers.rewards.function

    assert "ray" not in sys.modules
    del cpu_run, jsonschema, requests, transformers, uvloop, orchestrator, workers


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(request(sys.argv[1], sys.argv[2:]))
    preload()
    serve(sys.argv[1])
