"""CPU time of the machine and of process trees, CPU affinity, and a description of the machine."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuSeconds:
    """CPU seconds since a fixed moment."""

    machine_s: float  # of all processes of the machine
    tree_s: float  # of one tree of processes


def cpu_seconds(root_pid: int) -> CpuSeconds:
    """Read the CPU time of the machine and of the process tree of `root_pid`.

    Time stolen by the hypervisor counts for the machine: it also disturbs the measurement."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = _machine_ticks()
    return CpuSeconds(
        machine_s=(user + nice + system + irq + softirq + steal) / TICKS_PER_S,
        tree_s=_tree_ticks(root_pid) / TICKS_PER_S,
    )


def _machine_ticks() -> list[int]:
    with open("/proc/stat") as file:
        return [int(field) for field in file.readline().split()[1:9]]


def _tree_ticks(root_pid: int) -> int:
    """Return the ticks of all live descendants and of their finished children."""
    parents, ticks = {}, {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # the process ended meanwhile
                continue
            parents[int(directory.name)] = int(fields[1])
            ticks[int(directory.name)] = sum(map(int, fields[11:15]))
    return sum(count for pid, count in ticks.items() if _descends(pid, root_pid, parents))


def _descends(pid: int, root_pid: int, parents: dict[int, int]) -> bool:
    while pid not in (0, root_pid):
        pid = parents.get(pid, 0)
    return pid == root_pid


def use_cores(count: int) -> list[int]:
    """Bind this process and its children to the first `count` of its cores."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    if len(cores) < count:
        raise SystemExit(f"--cores {count}, but only {len(cores)} are available: use --cores {len(cores)}")
    os.sched_setaffinity(0, cores)
    return cores


def description() -> dict[str, Any]:
    """Return processor, cores, memory and system, for the header of a result."""
    cpuinfo, meminfo = Path("/proc/cpuinfo").read_text(), Path("/proc/meminfo").read_text()
    flags = next(iter(re.findall(r"flags\s*: (.*)", cpuinfo)), "").split()
    return {
        "cpu": next(iter(re.findall(r"model name\s*: (.*)", cpuinfo)), "unknown"),
        "cpu_cores": os.cpu_count(),
        "cpu_features": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags],
        "memory_gib": round(int(meminfo.split()[1]) / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }
