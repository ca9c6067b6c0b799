#!/usr/bin/env python3
"""Imitation of kubectl for tests: objects are files of a directory, and every call is recorded.

    $FAKE_KUBECTL/objects/KIND/NAME.json   objects, as tests and calls write them
    $FAKE_KUBECTL/calls.jsonl              arguments and standard input of each call
    $FAKE_KUBECTL/logs/POD                 log of a pod
    $FAKE_KUBECTL/fail.json                {verb: words on standard error}: the next call of a verb fails once

The verbs behave as kubectl's do: `get` with a selector, `create` of what exists fails, `exec` runs the command here,
and a pod that is created runs its command to the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STATE = Path(os.environ["FAKE_KUBECTL"])
KINDS = {"rayjobs.ray.io": "RayJob", "workloads.kueue.x-k8s.io": "Workload", "pods": "Pod", "pod": "Pod"}


def place(kind: str, name: str) -> Path:
    return STATE / "objects" / kind / f"{name}.json"


def write(body: dict[str, Any], *, anew: bool = False) -> None:
    """Write an object at once. Raise FileExistsError if it is to be new and is not."""
    file = place(body["kind"], body["metadata"]["name"])
    file.parent.mkdir(parents=True, exist_ok=True)
    written = STATE / f".{os.getpid()}"
    written.write_text(json.dumps(body))
    if not anew:
        written.replace(file)
        return
    try:
        os.link(written, file)
    finally:
        written.unlink()


def refuse(words: str) -> int:
    print(words, file=sys.stderr)
    return 1


def run_here(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `rlhf …` with the interpreter of the tests."""
    assert command[0] == "rlhf", command
    start = [sys.executable, "-m", "orchestrator.cli", *command[1:]]
    return subprocess.run(start, capture_output=True, text=True, check=False)


def get(words: list[str]) -> int:
    kind, selector = KINDS[words[0]], None
    if "-l" in words:
        selector = dict(part.split("=", 1) for part in words[words.index("-l") + 1].split(","))
    if len(words) > 1 and not words[1].startswith("-"):
        file = place(kind, words[1])
        print(file.read_text() if file.exists() else "", end="")
        return 0
    items = [json.loads(file.read_text()) for file in sorted((STATE / "objects" / kind).glob("*.json"))]
    if selector is not None:
        items = [i for i in items if selector.items() <= i["metadata"].get("labels", {}).items()]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return 0


def create(text: str, *, replace: bool) -> int:
    body = json.loads(text)
    kind, name = body["kind"], body["metadata"]["name"]
    there = place(kind, name)
    if there.exists() and kind == "ConfigMap" and json.loads(there.read_text())["data"] != body["data"]:
        return refuse(f'The ConfigMap "{name}" is invalid: data: Forbidden: field is immutable when `immutable` is set')
    count = sum(1 for _ in (STATE / "objects").glob("*/*"))
    body["metadata"] |= {"uid": f"uid-{name}", "creationTimestamp": f"2026-11-30T10:00:{count:02}Z"}
    if kind == "Pod":
        done = run_here(body["spec"]["containers"][0]["command"])
        body["status"] = {"phase": "Succeeded" if done.returncode == 0 else "Failed"}
        (STATE / "logs").mkdir(exist_ok=True)
        (STATE / "logs" / name).write_text(done.stdout + done.stderr)
    try:
        write(body, anew=not replace)
    except FileExistsError:
        return refuse(f'Error from server (AlreadyExists): error when creating "STDIN": {kind} "{name}" already exists')
    return 0


def patch(words: list[str]) -> int:
    file = place(KINDS[words[0]], words[1])
    body, change = json.loads(file.read_text()), json.loads(words[words.index("--patch") + 1])
    for part, values in change.items():
        for key, value in values.items():
            body[part][key] = {**body[part].get(key, {}), **value} if isinstance(value, dict) else value
    write(body)
    return 0


def main() -> int:
    words = sys.argv[1:]
    text = "" if sys.stdin.isatty() else sys.stdin.read()
    with open(STATE / "calls.jsonl", "a", encoding="utf-8") as calls:
        calls.write(json.dumps({"arguments": words, "input": text}) + "\n")
    while words and words[0] in ("--context", "--namespace"):
        del words[:2]
    verb, rest = words[0], words[1:]
    failures = STATE / "fail.json"
    planned = json.loads(failures.read_text()) if failures.exists() else {}
    if verb in planned:
        said = planned.pop(verb)
        failures.write_text(json.dumps(planned))
        return refuse(said)
    if verb == "get":
        return get(rest)
    if verb in ("create", "apply"):
        return create(text, replace=verb == "apply")
    if verb == "patch":
        return patch(rest)
    if verb == "delete":
        place(KINDS[rest[0]], rest[1]).unlink()
        return 0
    if verb == "logs":
        print((STATE / "logs" / rest[0]).read_text(), end="")
        return 0
    assert verb == "exec", words
    done = run_here(rest[rest.index("--") + 1 :])
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
