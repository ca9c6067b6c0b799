"""Job script for Slurm: a pure function of the job and the target. It asks nothing and starts nothing.

The script is a header of `#SBATCH` lines and variables, followed by `slurm_job.sh`, which is the same for every job.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from importlib.resources import files
from pathlib import PurePosixPath

from orchestrator.errors import BadInput, Problem, Problems
from orchestrator.launch.base import JobRequest, Pods
from orchestrator.launch.entry import with_secrets
from orchestrator.launch.targets import SlurmTarget

SAFE = re.compile(r"/[\w./@+=,-]*")
"""Paths that need no quotes in `#SBATCH` lines, and hold no `%`, which Slurm replaces in names of output files."""
TIME_LIMIT = re.compile(r"(?:(?P<days>\d+)-(?P<of_day>\d+(?::\d+){0,2})|(?P<clock>\d+(?::\d+){0,2}))")
JOIN_S = 300  # for all nodes to start Ray: the first import from shared storage may take minutes
CLEAN_UP_S = 60  # after the grace of the run: Ray ends on every node, and the job goes back into the queue
MAX_SIGNAL_S = 65535


def place_of(target: SlurmTarget, id: str) -> str:
    """Return the directory of a job on the storage that every node sees: its package, its log and its state.

    Raises:
        BadInput: the target names no such storage.
    """
    root = target.work_dir or (None if target.output_dir is None else f"{PurePosixPath(target.output_dir).parent}/jobs")
    if root is None or not SAFE.fullmatch(root):
        what = "the target has no work_dir" if root is None else f"work_dir {root} cannot be used"
        why = "packages and logs of jobs lie on storage that every node sees"
        fix = "give the target work_dir: /shared/jobs, a path of letters, digits and /._@+=,-"
        raise BadInput(Problem(what=what, where=id, why=why, fix=fix))
    return str(PurePosixPath(root) / id)


def render(request: JobRequest, target: SlurmTarget) -> str:
    """Return the text of the job script.

    Raises:
        BadInput: Slurm cannot run the request as it is.
    """
    place = place_of(target, request.id)
    problems = Problems()
    _check(request, target, problems)
    problems.raise_if_any()
    folder = f"{place}/package" if request.package is not None else '"$SLURM_SUBMIT_DIR"'
    variables = {
        "place": shlex.quote(place),
        "folder": folder if folder.startswith('"') else shlex.quote(folder),
        "num_gpus": str(_gpus(request, target)),
        "grace_s": str(math.ceil(request.grace_s)),
        "join_s": str(JOIN_S),
        "command": f"({shlex.join(with_secrets(request.command, request.secrets))})",
    }
    lines = [
        "#!/bin/bash -l",
        *(f"#SBATCH --{option}" for option in _options(request, target, place)),
        "",
        *(f"{name}={value}" for name, value in variables.items()),
        "activate() {",
        f"    {target.activate or ':'}",
        "}",
        "",
        files("orchestrator.launch").joinpath("slurm_job.sh").read_text("utf-8"),
    ]
    return "\n".join(lines)


def nodes_of(request: JobRequest, target: SlurmTarget) -> int:
    """Return the number of nodes. The head is one of them: it needs no machine of its own."""
    pods = worker_of(request.pods)
    if pods is None:
        return 1
    if pods.gpus or not target.cpus_per_node:
        return pods.count
    return math.ceil(pods.count * pods.cpus / target.cpus_per_node)


def worker_of(pods: tuple[Pods, ...]) -> Pods | None:
    """Return the machines that the workers run on; None: whatever the target has."""
    return next((p for p in pods if p.role == "worker"), pods[0] if pods else None)


def seconds_of(time_limit: str) -> int | None:
    """Return the seconds of a time limit in one of Slurm's formats; None if it is in none of them.

    Example: `seconds_of("1-12")` is 129600, `seconds_of("90")` is 5400, and `seconds_of("1:30:00")` too.
    """
    match = TIME_LIMIT.fullmatch(time_limit)
    if match is None:
        return None
    parts = [int(part) for part in (match["of_day"] or match["clock"]).split(":")]
    if match["days"]:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return int(match["days"]) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(parts) == 3:
        return parts[0] * 3600 + parts[1] * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)  # minutes[:seconds]


def _options(request: JobRequest, target: SlurmTarget, place: str) -> Iterator[str]:
    nodes, pods = nodes_of(request, target), worker_of(request.pods)
    yield f"job-name={request.id}"
    yield f"comment=rlhf:{request.id}"
    for name in ("partition", "account", "qos"):
        if value := getattr(target, name):
            yield f"{name}={value}"
    yield f"nodes={nodes}"
    yield "ntasks-per-node=1"
    if target.cpus_per_node is None:
        yield "exclusive"
        yield "mem=0"
    else:
        yield f"cpus-per-task={target.cpus_per_node}"
        if pods is not None:
            yield f"mem={math.ceil(pods.count * pods.memory_gib / nodes)}G"
    if gpus := _gpus(request, target):
        yield f"gres=gpu:{gpus}"
    if target.time_limit:
        yield f"time={target.time_limit}"
    if request.priority < 0:
        yield f"nice={-request.priority}"
    yield f"signal=B:TERM@{_notice_s(request)}"
    yield "requeue"
    yield "open-mode=append"
    yield "export=NIL"  # nothing of the submitter's environment, which may hold secrets
    yield f"output={place}/job-%j.log"
    yield from (f"{name}={value}" if value else name for name, value in sorted(target.options.items()))


def _gpus(request: JobRequest, target: SlurmTarget) -> int:
    """Return the number of GPUs of each node."""
    pods = worker_of(request.pods)
    return target.gpus_per_node if pods is None else pods.gpus


def _notice_s(request: JobRequest) -> int:
    """Return how long before its end the job is told, in seconds."""
    return math.ceil(request.grace_s) + CLEAN_UP_S


def _check(request: JobRequest, target: SlurmTarget, problems: Problems) -> None:
    where = request.id
    for name in ("partition", "account", "qos", "time_limit"):
        if re.search(r"\s", getattr(target, name) or ""):
            problems.add(f"{name} of the target has a space", where=where, fix="write one word")
    if request.priority > 0:
        why, fix = "Slurm lets users only lower the priority of a job", "use a qos of the target, or a priority <= 0"
        problems.add(f"priority {request.priority}", where=where, why=why, fix=fix)
    if (notice_s := _notice_s(request)) > MAX_SIGNAL_S:
        fix = "checkpoint more often within a step: checkpoint.every_updates"
        problems.add(f"the run needs {notice_s} s to stop", where=where, why=f"Slurm gives {MAX_SIGNAL_S} s", fix=fix)
    if target.time_limit is not None:
        limit_s = seconds_of(target.time_limit)
        if limit_s is None:
            problems.add(f"time_limit {target.time_limit}", where=where, why="not a time", fix="write 2-00:00:00")
        elif limit_s < 2 * notice_s:
            why = f"the run is asked to stop {notice_s} s before the end, and would never get far"
            fix = f"set at least {math.ceil(2 * notice_s / 60)} minutes"
            problems.add(f"time_limit {target.time_limit} is too short", where=where, why=why, fix=fix)
    pods = worker_of(request.pods)
    if pods is not None and pods.gpus > target.gpus_per_node:
        why, fix = f"a node has {target.gpus_per_node}", "mend gpus_per_node of the target, or choose another one"
        problems.add(f"a machine with {pods.gpus} GPUs is needed", where=where, why=why, fix=fix)
