"""Protocol between `run.py` and a worker: one JSON object per line, requests on stdin, answers on stdout, in order.

Requests and the fields of their answers (every answer also has `id` and `ok`; a failed one has `error`):

    {"id": 1, "cmd": "hello", "cores": 2}
        always the first request; `cores` is the number of cores that all processes of this side may use together
        -> side ("ours" | "trl"), versions {package: version}, cores (description of their use),
           variants {"dpo" | "grpo": {name: {"about": text, "same_work": bool, "optional": bool}}}
           same_work false: not the same work, such as another dtype; reported, but neither checked nor a fair ratio
           optional true: run only if requested by name
    {"id": 2, "cmd": "dpo", "workload": DIR, "variant": NAME, "steps": k}
        train from the model in DIR on the first k * pairs_per_step rows in file order, one optimizer step per batch
        -> pairs, losses [k], grad_norms [k] (before clipping), tokens, and the meters below
           tokens {"real": in the rows, "forward": positions of one forward pass of the policy, "logit_rows": positions
           of it that reach the output layer}, each summed over the k steps
    {"id": 3, "cmd": "grpo", "workload": DIR, "variant": NAME, "steps": k, "seed": n, "replay": false}
        k times: generate for the next prompts_per_step prompts, score, train; one update per batch
        -> samples, losses [k], grad_norms [k], rewards [k] (batch means), generate_s [k], tokens, and the meters below
           tokens {"prompt", "generated", "forward", "logit_rows"}: the first two summed over samples, the others as in
           dpo
        with "replay": true the completions come from replay.jsonl and nothing is sampled; the old log-probabilities are
        then the learner's own (every ratio starts at 1), so losses and norms of both sides must be equal
    {"id": 4, "cmd": "exit"}

Meters in every result of `dpo` and `grpo`:

    setup_s      from reading the request to the first step, without cache_s: loading, building, tokenising
    cache_s      building caches that serve one epoch (reference log-probabilities before the first step)
    step_s [k]   wall time of each step: forward, backward, optimizer, metrics; for grpo also generation, reward and
                 transfer of the new weights to the engine
    train_s      from the start of the first step to the end of the last
    cpu_s        CPU time of all processes of the side during the request; null if unknown
    rss_before_bytes, rss_peak_bytes     resident memory at the start and at its peak, all processes of the side

Standard output of a worker is reserved for answers: `serve` redirects everything else to standard error.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def serve(handlers: dict[str, Handler]) -> None:
    """Answer requests until `exit` or the end of the input. An exception in a handler fails only its request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {"id": request.get("id"), "ok": True}
        if request["cmd"] != "exit":
            try:
                answer |= handlers[request["cmd"]](request)
            except Exception:
                answer |= {"ok": False, "error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if request["cmd"] == "exit":
            return


class Meter:
    """Wall-clock time, CPU time and resident memory of one request, for a side with a single process."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the kernel's peak value
        self._rss_before_bytes = _status_bytes("VmRSS")
        self._cpu_before_s = _cpu_s()
        self._started_s = time.perf_counter()
        self._begins_s: list[float] = []
        self._ends_s: list[float] = []

    def step_begins(self) -> None:
        self._begins_s.append(time.perf_counter())

    def step_ends(self) -> None:
        self._ends_s.append(time.perf_counter())

    def result(self, cache_s: float = 0.0) -> dict[str, Any]:
        return {
            "setup_s": self._begins_s[0] - self._started_s - cache_s,
            "cache_s": cache_s,
            "step_s": [end - begin for begin, end in zip(self._begins_s, self._ends_s, strict=True)],
            "train_s": self._ends_s[-1] - self._begins_s[0],
            "cpu_s": _cpu_s() - self._cpu_before_s,
            "rss_before_bytes": self._rss_before_bytes,
            "rss_peak_bytes": _status_bytes("VmHWM"),
        }


def _status_bytes(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
