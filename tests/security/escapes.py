"""T18: programs that try to escape from the sandbox or to exceed its limits.

A program prints ESCAPED if its attempt succeeds. As a control, every harmless program also runs without the sandbox,
where it must succeed: a payload that never works proves nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from workers.rewards.sandbox import ProgramResult, Sandbox

PRELUDE = """
import ctypes, os, resource, signal, socket, subprocess, sys, threading, time
SECRET, REWARD_FILE, PORT, SOCKET, VICTIM = {secret!r}, {reward_file!r}, {port}, {socket!r}, {victim}
libc = ctypes.CDLL(None, use_errno=True)
def escaped(*what): print("ESCAPED", *what, flush=True)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Targets outside the sandbox: a file with a secret, a file with the reward's code, a listening TCP port, a
    listening abstract Unix socket, and a process."""

    secret: str
    reward_file: str
    port: int
    socket: str
    victim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Escape:
    """Program that tries one escape. With `control`, it also runs without the sandbox."""

    name: str
    body: str
    control: bool = True


def program(escape: Escape, outside: Targets) -> str:
    values = {name: getattr(outside, name) for name in Targets.__dataclass_fields__}
    return PRELUDE.format(**values) + escape.body


def run_without_sandbox(escape: Escape, outside: Targets, directory: Path) -> bytes:
    """Return the output of an escape without the sandbox, with a secret in its environment and an inherited file."""
    opened = os.open(outside.secret, os.O_RDONLY)
    try:
        return subprocess.run(
            [sys.executable, "-I", "-c", program(escape, outside)],
            cwd=directory,
            env={"CANARY": "secret"},
            capture_output=True,
            pass_fds=[opened],
            timeout=60,
        ).stdout
    finally:
        os.close(opened)


def run_in_sandbox(sandbox: Sandbox, escape: Escape, outside: Targets) -> ProgramResult:
    return sandbox.run(program(escape, outside), {"mode": "input"})


READS = (
    Escape(name="read the password file", body="escaped(open('/etc/passwd').readline())"),
    Escape(name="read a file of the host", body="escaped(open(SECRET).read())"),
    Escape(name="read the environment", body="os.environ['CANARY'] and escaped()"),
    Escape(
        name="read a process's environment in procfs",
        body="b'' != open(f'/proc/{VICTIM}/environ', 'rb').read() and escaped()",
    ),
    Escape(name="list processes", body="[p for p in os.listdir('/proc') if p.isdigit()] and escaped()"),
    Escape(name="read the kernel's state in sysfs", body="os.listdir('/sys/kernel') and escaped()"),
    Escape(name="read the machine's name", body=f"os.uname().nodename == {os.uname().nodename!r} and escaped()"),
    Escape(name="read the reward's code", body="open(REWARD_FILE).read() and escaped()"),
    Escape(name="follow a symlink out", body="os.symlink(SECRET, 'link'); escaped(open('link').read())"),
    Escape(name="hard-link a file of the host", body="os.link('/etc/passwd', 'hard'); escaped()", control=False),
    Escape(
        name="use an inherited descriptor",
        body="""
for fd in range(3, 256):
    try: escaped(os.fstat(fd))
    except OSError: pass""",
    ),
    Escape(name="open the terminal", body="os.open('/dev/tty', os.O_RDWR); escaped()", control=False),
    Escape(name="open memory devices", body="open('/dev/mem', 'rb'); escaped()", control=False),
)
WRITES = (
    Escape(name="overwrite the reward's code", body="open(REWARD_FILE, 'a').write('#'); escaped()"),
    Escape(name="overwrite the launcher", body="open('/launcher.py', 'w'); escaped()", control=False),
    Escape(name="replace the program's file", body="os.unlink('/program.py'); escaped()", control=False),
    Escape(name="write to the root", body="os.mkdir('/rlhf-was-here'); escaped()", control=False),
    Escape(name="write to the interpreter", body="open(os.__file__, 'a'); escaped()", control=False),
    Escape(name="write to the system's libraries", body="open('/usr/lib/x', 'w'); escaped()", control=False),
    Escape(name="write to /dev", body="open('/dev/x', 'w'); escaped()", control=False),
    Escape(
        name="write through a symlink",
        body="os.symlink(REWARD_FILE, 'there'); open('there', 'a').write('#'); escaped()",
    ),
    Escape(
        name="remount the root writable",
        body="libc.mount(b'/', b'/', None, 32 | 4096, None) == 0 and escaped()",
        control=False,
    ),
)
NETWORK = (
    Escape(name="connect to the host by TCP", body="socket.create_connection(('127.0.0.1', PORT)); escaped()"),
    Escape(name="connect by a Unix socket", body="socket.socket(socket.AF_UNIX).connect('\\0' + SOCKET); escaped()"),
    Escape(name="listen on a port", body="socket.create_server(('127.0.0.1', 0)); escaped()"),
    Escape(name="send a datagram", body="socket.socket(2, 2).sendto(b'x', ('127.0.0.1', PORT)); escaped()"),
    Escape(name="open a netlink socket", body="socket.socket(16, 3, 0); escaped()"),
)
PROCESSES = (
    Escape(name="fork", body="os.fork() and escaped()"),
    Escape(
        name="fork bomb",
        body="""
for _ in range(10**6):
    try: os.fork(); escaped()
    except OSError: pass""",
        control=False,
    ),
    Escape(name="start a program", body="subprocess.run([sys.executable, '-c', '']); escaped()"),
    Escape(name="clone by system call", body="libc.syscall(56, 17, 0, 0, 0, 0) > 0 and escaped()"),
    Escape(
        name="clone3 by system call",
        body="ctypes.get_errno() or (libc.syscall(435, None, 0) == -1 and ctypes.get_errno() != 38) and escaped()",
    ),
    Escape(name="kill the parent", body="os.kill(VICTIM, 0); escaped()"),
    Escape(name="kill everybody", body="os.kill(-1, signal.SIGKILL)", control=False),
    Escape(name="kill the sandbox's init", body="os.kill(1, signal.SIGKILL); time.sleep(0.2)", control=False),
    Escape(name="trace itself", body="libc.ptrace(0, 0, None, None) == 0 and escaped()"),
    Escape(name="trace another process", body="libc.ptrace(16, VICTIM, None, None) == 0 and escaped()"),
    Escape(
        name="read another process's memory",
        body="libc.process_vm_readv(1, None, 0, None, 0, 0) == 0 and escaped()",
    ),
    Escape(name="become root", body="os.setresuid(0, 0, 0); escaped()", control=False),
    Escape(name="raise a limit", body="resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); escaped()", control=False),
)
KERNEL = (
    Escape(name="make a user namespace", body="libc.unshare(0x10000000) == 0 and escaped()"),
    Escape(
        name="mount a file system",
        body="libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0 and escaped()",
        control=False,
    ),
    Escape(name="mount procfs", body="libc.mount(b'x', b'/tmp', b'proc', 0, None) == 0 and escaped()", control=False),
    Escape(name="change the root", body="os.chroot('/tmp'); escaped()", control=False),
    Escape(
        name="read the kernel's log",
        body="libc.klogctl(3, ctypes.create_string_buffer(99), 99) >= 0 and escaped()",
        control=False,
    ),
    Escape(name="load an eBPF program", body="libc.syscall(321, 0, None, 0); ctypes.get_errno() != 1 and escaped()"),
    Escape(name="set up io_uring", body="libc.syscall(425, 0, None); ctypes.get_errno() not in (1, 38) and escaped()"),
    Escape(name="use the kernel's keys", body="libc.syscall(250, 0, -3, 1) >= 0 and escaped()"),
    Escape(
        name="use the 32-bit numbers of system calls",
        body="libc.syscall(0x40000000 + 39) > 0 and escaped()",
        control=False,
    ),
)
RESOURCES = (
    Escape(name="memory bomb", body="x = bytearray(400 * 2**20); escaped()"),
    Escape(name="shared memory bomb", body="import mmap; m = mmap.mmap(-1, 400 * 2**20); escaped()"),
    Escape(name="memory in a memfd", body="os.write(os.memfd_create('x'), b'x' * 2**20); escaped()"),
    Escape(name="memory in System V segments", body="libc.shmget(0, 2**20, 0o1600) >= 0 and escaped()", control=False),
    Escape(
        name="fill /tmp",
        body="""
for i in range(100):
    open(f'f{i}', 'wb').write(b'x' * 2**20)
escaped()""",
    ),
    Escape(name="one huge file", body="open('f', 'wb').write(b'x' * 100 * 2**20); escaped()"),
    Escape(
        name="inodes of /tmp",
        body="""
for i in range(10**6): os.mkdir(str(i))
escaped()""",
        control=False,
    ),
    Escape(name="open files", body="[os.dup(0) for _ in range(100)]; escaped()"),
    Escape(
        name="threads",
        body="""
threading.stack_size(2**16)
for _ in range(20_000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
escaped()""",
        control=False,
    ),
    Escape(
        name="a gigabyte of output", body="for _ in range(1024): os.write(1, b'x' * 2**20)\nescaped()", control=False
    ),
    Escape(name="spin for ever", body="while True: pass", control=False),
    Escape(name="sleep for ever", body="time.sleep(10**6); escaped()", control=False),
    Escape(
        name="live on with closed output",
        body="signal.signal(signal.SIGHUP, signal.SIG_IGN); os.close(1); os.close(2); time.sleep(10**6)",
        control=False,
    ),
    Escape(
        name="deep recursion in C",
        body="import json\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf(); escaped()",
        control=False,
    ),
)
ESCAPES = (*READS, *WRITES, *NETWORK, *PROCESSES, *KERNEL, *RESOURCES)

FORGERIES = {
    "exit with success": "import sys; sys.exit(0)",
    "end the process with success": "import os; os._exit(0)",
    "print a verdict": "print('passed'); print(True); print('1.0')",
    "raise to skip the tests": "raise SystemExit",
    "print its own text": "print(open('/program.py').read()); import os; os._exit(0)",
    "read a verdict from standard input": "import os, sys; os.write(1, sys.stdin.buffer.read()); os._exit(0)",
    "write into every descriptor": """
import os
for fd in range(64):
    try: os.write(fd, b'a' * 64)
    except OSError: pass
os._exit(0)""",
    "hide AssertionError": "import builtins; builtins.AssertionError = None",
    "make the tests a comment": "'''",
    "stop at the end of the program": "import sys; sys.stdout.close(); sys.exit()",
    "catch every error": "import sys; sys.excepthook = lambda *_: print('passed')",
}
"""Programs that claim to pass `assert solve() == 1` and must fail."""
