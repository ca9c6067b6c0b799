"""Ray's reports on dead actors, read for the one line that matters."""

from __future__ import annotations

import re

from orchestrator.errors import HostOutOfMemory, WorkerFailed


def death(role: str, rank: int, report: str) -> WorkerFailed:
    """Return an error with the cause of an actor's death. Ray's report is a paragraph of guesses."""
    text = " ".join(report.split())
    match = re.search(r"pid: (\d+)", text)
    pid = int(match[1]) if match else None
    if "its node has died" in text:
        address, why = re.search(r" ip: (\S+)", text), re.search(r"terminated (?:un)?expectedly: (.*?)\.?$", text)
        machine = f"its machine{f' ({address[1]})' if address else ''} was lost"
        return WorkerFailed(role, rank, f"{machine}: {why[1]}" if why else machine, pid=pid)
    if unavailable := re.search(r"The actor \w+ is unavailable: (.*?)\.? The task may", text):
        return WorkerFailed(role, rank, f"its process could not be reached: {unavailable[1]}", pid=pid)
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes| If the process|$)", text)
    cause = detail[1].rstrip(". )") if detail else text
    kind = HostOutOfMemory if re.search(r"low on memory|OutOfMemory|memory pressure", cause) else WorkerFailed
    return kind(role, rank, f"its process{f' (pid {pid})' if pid else ''} died: {cause}", pid=pid)
