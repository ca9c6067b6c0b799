"""Prometheus metrics of runs: text for the textfile collector of node_exporter, or an HTTP endpoint.

    run directories ──► RunsReader ──► RunsCollector ──► text, or GET /metrics

One process serves all runs of a directory. A driver opens no port, and a run whose driver was killed is still seen.
"""

from __future__ import annotations

import hmac
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from orchestrator import disk
from orchestrator.errors import BadInput, Problem
from orchestrator.monitor.prometheus_runs import STATES, RunFigures, RunsReader

LABELS = ("run", "method")

Value = float | int | None


class Gauge(NamedTuple):
    """Gauge with one value per run; None: the run has no such value."""

    name: str
    help: str
    value: Callable[[RunFigures], Value]


class Counter(NamedTuple):
    """Counter with one value per run. `name` has no `_total`, which the text format appends."""

    name: str
    help: str
    value: Callable[[RunFigures], Value]


class Labelled(NamedTuple):
    """Family with several values per run, told apart by one more label."""

    name: str
    help: str
    label: str
    values: Callable[[RunFigures], Mapping[str, float]]
    counter: bool = False


def newest(*names: str) -> Callable[[RunFigures], Value]:
    """Return a function that returns the newest value of the first metric in `names` that a run has."""
    return lambda run: next((run.metrics[name] for name in names if name in run.metrics), None)


FAMILIES: tuple[Gauge | Counter | Labelled, ...] = (
    Labelled(
        "rlhf_run_state",
        f"State of the run: {', '.join(STATES)}. The value is always 1.",
        "state",
        lambda run: {run.state: 1},
    ),
    Labelled(
        "rlhf_run_exit",
        "Cause in exit.json of a run that has ended. The value is always 1.",
        "cause",
        lambda run: {run.cause: 1} if run.cause else {},
    ),
    Gauge("rlhf_run_step", "Steps committed; in iterative DPO, rounds.", lambda run: run.step),
    Gauge("rlhf_run_planned_steps", "Steps that the whole run will have.", lambda run: run.planned_steps),
    Gauge("rlhf_run_step_seconds", "Mean duration of the newest 10 steps.", lambda run: run.step_s),
    Gauge(
        "rlhf_run_last_step_timestamp_seconds", "Unix time at which the newest step ended.", lambda run: run.last_step
    ),
    Gauge(
        "rlhf_run_last_activity_timestamp_seconds",
        "Unix time at which a file of the run last changed.",
        lambda run: run.last_activity,
    ),
    Gauge(
        "rlhf_run_queue_wait_seconds",
        "Time that the newest attempt has waited for its devices.",
        lambda run: run.wait_s,
    ),
    Gauge("rlhf_run_devices", "Devices reserved now: GPUs, or workers without one.", lambda run: run.devices),
    Counter(
        "rlhf_run_device_seconds",
        "Reserved devices times seconds, over all attempts. 3600 of them are a GPU-hour.",
        lambda run: run.device_seconds,
    ),
    Counter("rlhf_run_attempts", "Attempts begun, including the first.", lambda run: run.attempts),
    Labelled(
        "rlhf_run_worker_restarts",
        "Workers restarted in place, by role.",
        "role",
        lambda run: run.restarts,
        counter=True,
    ),
    Labelled("rlhf_run_alarms", "Times an alarm began, by alarm.", "alarm", lambda run: run.alarms, counter=True),
    Labelled(
        "rlhf_run_alarm_active",
        "1 if the alarm is active in the newest step, 0 if it was in an earlier one.",
        "alarm",
        lambda run: {name: float(name in run.ringing) for name in run.alarms},
    ),
    Gauge("rlhf_run_reward", "Mean reward of the newest step.", newest("reward", "objective/scores")),
    Gauge("rlhf_run_eval_reward", "Mean reward on the held-out prompts.", newest("eval/reward")),
    Gauge("rlhf_run_eval_accuracy_ratio", "Accuracy on the held-out set, from 0 to 1.", newest("eval/accuracy")),
    Gauge(
        "rlhf_run_pair_accuracy_ratio",
        "Share of pairs whose chosen completion has the higher implicit reward.",
        newest("rewards/accuracies", "accuracy"),
    ),
    Gauge(
        "rlhf_run_kl_nats",
        "KL(policy||reference) in nats per completion, as the alarm kl_budget judges it.",
        newest("drift/kl", "objective/kl"),
    ),
    Gauge("rlhf_run_kl_budget_nats", "Setting alarms.kl_budget.max_kl.", lambda run: run.max_kl),
    Gauge("rlhf_run_loss", "Loss of the newest step.", newest("loss", "loss/policy_avg")),
    Gauge("rlhf_run_entropy_nats", "Mean entropy per token.", newest("entropy", "objective/entropy")),
    Gauge("rlhf_run_grad_norm", "Norm of the gradient.", newest("grad_norm")),
    Gauge("rlhf_run_staleness_versions", "Mean staleness of the newest step's completions.", newest("staleness/mean")),
    Gauge(
        "rlhf_run_completion_tokens", "Mean length of the newest step's completions.", newest("completions/mean_length")
    ),
    Gauge("rlhf_run_tokens_per_second", "Tokens trained on per second.", newest("throughput/tokens_per_s")),
    Counter("rlhf_run_tokens", "Tokens trained on.", newest("num_tokens")),
    Gauge(
        "rlhf_run_storage_behind_seconds",
        "Time for which the object storage of the run has not answered, at the end of the newest step.",
        newest("storage/behind_s"),
    ),
    Gauge("rlhf_run_unreadable_lines", "Lines of the run's files that cannot be read.", lambda run: run.unreadable),
)


class RunsCollector(Collector):
    """Collector that looks at the runs at every scrape."""

    def __init__(self, reader: RunsReader, clock: Callable[[], float] = time.time) -> None:
        self._reader, self._clock = reader, clock
        self._lock = threading.Lock()  # of the reader: two scrapes may overlap

    def collect(self) -> Iterator[Metric]:
        began = time.monotonic()
        with self._lock:
            runs = self._reader.look(self._clock())
        yield from (metric for family in FAMILIES if (metric := _metric(family, runs)).samples)
        yield _single("rlhf_exporter_runs", "Runs that this endpoint shows.", len(runs))
        seconds = time.monotonic() - began
        yield _single("rlhf_exporter_scrape_seconds", "Time that reading the run directories took.", seconds)


def _metric(family: Gauge | Counter | Labelled, runs: Iterable[RunFigures]) -> Metric:
    further = (family.label,) if isinstance(family, Labelled) else ()
    counter = family.counter if isinstance(family, Labelled) else isinstance(family, Counter)
    kind = CounterMetricFamily if counter else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=(*LABELS, *further))
    for run in runs:
        if isinstance(family, Labelled):
            for label, number in sorted(family.values(run).items()):
                metric.add_metric((run.run, run.method, label), number)
        elif (value := family.value(run)) is not None:
            metric.add_metric((run.run, run.method), value)
    return metric


def _single(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def registry_of(reader: RunsReader, clock: Callable[[], float] = time.time) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(RunsCollector(reader, clock))
    return registry


def as_text(registry: CollectorRegistry) -> str:
    """Return all metrics in Prometheus' text format, which the textfile collector reads."""
    return generate_latest(registry).decode()


def write_textfile(registry: CollectorRegistry, path: Path) -> None:
    """Write all metrics to a file as a whole: a collector never reads half of it."""
    disk.write_atomic(path, as_text(registry))


# -------------------------------------------------------------------------------------------- endpoint


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server6(ThreadingWSGIServer):
    """Server at an IPv6 address."""

    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    """Handler that does not log every scrape."""

    timeout = 30  # seconds for a client that sends nothing

    def log_message(self, format: str, *args: Any) -> None:
        pass


def server(registry: CollectorRegistry, host: str, port: int, token_file: Path | None = None) -> WSGIServer:
    """Return a server that listens and is not serving yet. `port` 0: a free one.

    Args:
        token_file: file with the bearer token that every request must carry; None: no token is asked for.

    Raises:
        BadInput: the address cannot be used, is reachable from other machines without a token, or the token cannot be
            read.
    """
    where = f"--listen {host}:{port}"
    if token_file is None and not is_loopback(host):
        why = "everybody who reaches this address could read the metrics of all runs"
        raise BadInput(Problem(what=where, where="command line", why=why, fix="give a token with --token-file FILE"))
    if token_file is not None:
        _read_token(token_file)
    app = make_wsgi_app(registry)
    try:
        kind = _Server6 if ":" in host else ThreadingWSGIServer
        return make_server(host, port, _guarded(app, token_file), kind, _Quiet)
    except (OSError, OverflowError) as error:
        why = str(error)
        raise BadInput(Problem(what=where, where="command line", why=why, fix="give another address")) from None


def _guarded(app: Callable[..., Any], token_file: Path | None) -> Callable[..., Any]:
    """Return an application that answers `GET /metrics` alone, and only if the request carries the token."""

    def guarded(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Any:
        status = _refusal(environ, token_file)
        if status is None:
            return app(environ, start_response)
        challenge = [("WWW-Authenticate", "Bearer")] if status == HTTPStatus.UNAUTHORIZED else []
        text = f"{status.value} {status.phrase}"
        start_response(text, [("Content-Type", "text/plain; charset=utf-8"), *challenge])
        return [text.encode() + b"\n"]

    return guarded


def _refusal(environ: Mapping[str, Any], token_file: Path | None) -> HTTPStatus | None:
    if token_file is not None:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode("utf-8", "replace")
        try:
            wanted = f"Bearer {_read_token(token_file)}".encode()  # read again: it may be renewed
        except BadInput:
            return HTTPStatus.SERVICE_UNAVAILABLE
        if not hmac.compare_digest(given, wanted):
            return HTTPStatus.UNAUTHORIZED
    return None if environ.get("PATH_INFO") == "/metrics" else HTTPStatus.NOT_FOUND


def _read_token(path: Path) -> str:
    try:
        token, why = path.read_text("utf-8").strip(), "the file is empty"
    except (OSError, ValueError) as error:
        token, why = "", str(error)
    if not token:
        raise BadInput(Problem(what=f"--token-file {path}", where="command line", why=why, fix="write a token into it"))
    return token
