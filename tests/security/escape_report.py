"""Print T18 as Markdown for docs/evidence/reliability.md: each escape, its verdict, and how its program ended.

    python tests/security/escape_report.py

T17 and T19 need a real run and are reported by `pytest tests/stack/test_secrets_and_doors.py -rP`.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from escapes import ESCAPES, FORGERIES, Targets, run_in_sandbox

from workers.rewards.code import Assertions, Call, Input, passes
from workers.rewards.sandbox import Sandbox


def main() -> int:
    started, sandbox = time.monotonic(), Sandbox(timeout_s=1.0, memory_mib=256)
    rows, num_escaped = [], 0
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        secret, reward_file = Path(folder, "secret"), Path(folder, "reward.py")
        secret.write_text("the secret")
        reward_file.write_text("# the reward\n")
        bystander = subprocess.Popen(["sleep", "600"])
        outside = Targets(
            secret=str(secret),
            reward_file=str(reward_file),
            port=listener.getsockname()[1],
            socket=f"rlhf-{secrets.token_hex(8)}",
            victim=bystander.pid,
        )
        for escape in ESCAPES:
            began = time.monotonic()
            ran = run_in_sandbox(sandbox, escape, outside)
            damaged = reward_file.read_text() != "# the reward\n" or bystander.poll() is not None
            escaped = b"ESCAPED" in ran.output or damaged
            num_escaped += escaped
            end = f"exit code {ran.code}" if ran.end == "exit" else f"stopped: {ran.end}"
            rows.append((escape.name, "**ESCAPED**" if escaped else "blocked", end, time.monotonic() - began))
        bystander.kill()
        bystander.wait()
    for name, source in FORGERIES.items():
        began = time.monotonic()
        tests = (
            Assertions(source="assert wanted() == 1"),
            Call(function="wanted", arguments=[], expected=1),
            Input(given="2\n", expected="4\n"),
        )
        forged = any(passes(sandbox, source, test) for test in tests)
        num_escaped += forged
        rows.append((f"forge a verdict: {name}", "**FORGED**" if forged else "blocked", "", time.monotonic() - began))
    left = [p for p in psutil.Process().children(recursive=True) if p.name() == "bwrap"]
    print(f"T18: {len(rows)} escapes tried, {num_escaped} succeeded, {len(left)} sandboxes left behind, ", end="")
    print(f"{time.monotonic() - started:.0f} s, {time.strftime('%Y-%m-%d')}\n")
    print("| escape | | how the program ended | s |\n|---|---|---|---:|")
    for name, verdict, end, seconds in rows:
        print(f"| {name} | {verdict} | {end} | {seconds:.1f} |")
    return 1 if num_escaped or left else 0


if __name__ == "__main__":
    sys.exit(main())
