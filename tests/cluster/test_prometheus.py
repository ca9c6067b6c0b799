"""Real Prometheus that scrapes `rlhf metrics` over real runs: every expression of rules and dashboard gives series.

Two runs are real: GRPO and iterative DPO by the product's driver, in one process. The others are run directories in
states that a test cannot wait for, such as a step that lasts for an hour; this process holds their locks.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.monitor.metrics import MetricsFile
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.incidents import Incident, write_incident
from orchestrator.rundir.ledger import Fact, Record

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
BOARD = json.loads((ROOT / "deploy" / "grafana" / "rlhf.json").read_text("utf-8"))
DEADLINE_S = 120
FIGURES = (("rlhf_run_step", "step"), ("rlhf_run_loss", "loss"), ("rlhf_run_tokens_total", "num_tokens"))
VARIABLES = {"$run": ".*", "$method": ".*", "$__range": "1h"}
HOUR = 3600.0

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="Prometheus is missing: apt-get install --no-install-recommends prometheus",
    ),
]

TRAIN = """
import sys
from pathlib import Path
sys.path[:0] = ["tests/faults", "tests/workers", "."]
import cpu_run
task, runs = Path(sys.argv[1]), Path(sys.argv[2])
cpu_run.write_task(task)
for algorithm in ("grpo", "iterative-dpo"):
    cpu_run.run(cpu_run.config(task, runs / algorithm, algorithm))
"""


@dataclass(frozen=True)
class Scraped:
    """Prometheus that scrapes the runs."""

    url: str
    runs: Path

    def get(self, path: str, **parameters: str) -> Any:
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result


# ------------------------------------------------------------------------------------------------ runs


def create(path: Path, *records: tuple[Fact, float, int], rows: Sequence[dict[str, float]] = ()) -> RunDirectory:
    """Create the directory of a run whose attempts have the given records: fact, seconds ago, step."""
    path.mkdir(parents=True)
    config = {"algorithm": {"type": "ppo", "max_steps": 9}, "alarms": {"kl_budget": {"max_kl": 25.0}}}
    (path / "resolved.json").write_text(json.dumps(config))
    directory = RunDirectory(path)
    append(directory, *records)
    for step, row in enumerate(rows, start=1):
        MetricsFile(directory.metrics).append(step, row)
    return directory


def append(directory: RunDirectory, *records: tuple[Fact, float, int]) -> None:
    written = directory.ledger.read_bytes().splitlines() if directory.ledger.exists() else []
    attempt = sum(b'"ATTEMPT"' in line for line in written)
    for seq, (fact, ago_s, step) in enumerate(records, start=len(written)):
        attempt += fact == Fact.attempt
        details = {"devices": {"policy": 8.0}} if fact == Fact.placed else {}
        record = Record(seq=seq, attempt=attempt, step=step, fact=fact, details=details, time=time.time() - ago_s)
        with directory.ledger.open("ab") as file:
            file.write(record.line())


RUNNING = ((Fact.attempt, 2 * HOUR, 0), (Fact.placed, 2 * HOUR, 0), (Fact.planned, 2 * HOUR, 1))


def states(runs: Path, stack: ExitStack) -> None:
    """Create runs in the states that alerts are about, and hold the locks of those that are alive."""
    stalled = create(runs / "stalled", *RUNNING, (Fact.committed, HOUR, 1), rows=[{"timing/step": 60.0}])
    wrong = {"objective/kl": 31.0, "alarms/kl_budget": 1.0, "storage/behind_s": 1200.0}
    far = create(runs / "far", *RUNNING, (Fact.committed, 1, 1), rows=[wrong])
    starting = create(runs / "starting", *RUNNING[:2])
    queued = create(runs / "queued", (Fact.attempt, 5 * HOUR, 0))
    for alive in (stalled, far, starting, queued):
        stack.enter_context(alive.held())
    create(runs / "paused", *RUNNING).write_exit(cause="alarm_pause", message="", exit_code=5, attempt=1, step=1)
    create(runs / "failed", *RUNNING).write_exit(cause="worker_failed", message="", exit_code=4, attempt=1, step=1)
    (create(runs / "damaged", *RUNNING).metrics).write_text("no JSON\n")


def disturb(directory: RunDirectory) -> None:
    """Let a run fail and begin again four times, and restart six workers."""
    for _ in range(4):
        append(directory, (Fact.attempt, 0, 0))
    for _ in range(6):
        incident = Incident(attempt=1, step=1, what="it died", action="restarted", role="rollout")
        write_incident(directory.incidents, incident)


# ------------------------------------------------------------------------------------------------ processes


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def start(stack: ExitStack, *command: str, **options: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, text=True, **options)
    if process.stdout is not None:
        stack.callback(process.stdout.close)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


def wait_for(what: str, ready: Any) -> Any:
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        try:
            if found := ready():
                return found
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    root = tmp_path_factory.mktemp("prometheus")
    runs, token = root / "runs", root / "token"
    subprocess.run(
        [sys.executable, "-c", TRAIN, str(root / "task"), str(runs)],
        cwd=ROOT,
        check=True,
        timeout=300,
    )
    token.write_text("scrape-me")
    with ExitStack() as stack:
        states(runs, stack)
        often = create(runs / "often", *RUNNING)
        append(often, (Fact.attempt, 0, 0))
        write_incident(often.incidents, Incident(attempt=1, step=1, what="it died", action="restarted", role="rollout"))
        command = [sys.executable, "-m", "orchestrator.cli", "metrics", str(runs)]
        exporter = start(
            stack, *command, "--listen", "127.0.0.1:0", "--token-file", str(token), cwd=ROOT, stdout=subprocess.PIPE
        )
        assert exporter.stdout is not None
        address = re.search(r"http://([\d.:]+)/metrics", exporter.stdout.readline())
        assert address is not None
        config = yaml.safe_load(RULES.with_name("scrape.yml").read_text("utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES)]
        job = config["scrape_configs"][0]
        job["authorization"] = {"credentials_file": str(token)}
        job["static_configs"] = [{"targets": [address[1], f"127.0.0.1:{free_port()}"]}]  # nobody is at the second one
        (root / "prometheus.yml").write_text(yaml.safe_dump(config))
        url = f"127.0.0.1:{free_port()}"
        with (root / "prometheus.log").open("w") as log:
            start(
                stack,
                "prometheus",
                f"--config.file={root / 'prometheus.yml'}",
                f"--storage.tsdb.path={root / 'data'}",
                f"--web.listen-address={url}",
                stdout=log,
                stderr=log,
            )
        scraped = Scraped(url=f"http://{url}", runs=runs)
        wait_for("a scrape", lambda: scraped.query("count_over_time(rlhf_exporter_runs[1m]) >= 2"))
        disturb(often)
        wait_for("the disturbed run", lambda: scraped.query('rlhf_run_attempts_total{run="often"} == 6'))
        yield scraped


# ------------------------------------------------------------------------------------------------ tests


def test_every_expression_of_the_dashboard_gives_series(scraped: Scraped) -> None:
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            wait_for(f"{panel['title']}: {expression}", lambda e=expression: scraped.query(e))


def test_every_rule_rings(scraped: Scraped) -> None:
    """Check that each condition holds for its run and no other, in Prometheus' own evaluation."""
    expected = {
        "RlhfRunStalled": {"stalled"},
        "RlhfRunStartsSlowly": {"starting"},
        "RlhfRunFailed": {"failed", "damaged", "often"},  # two have no driver: lost
        "RlhfRunPaused": {"paused"},
        "RlhfAlarm": {"far"},
        "RlhfKlOverBudget": {"far"},
        "RlhfRunRestartsOften": {"often"},
        "RlhfWorkersRestartOften": {"often"},
        "RlhfQueueWaitLong": {"queued"},
        "RlhfStorageBehind": {"far"},
        "RlhfFilesUnreadable": {"damaged"},
        "RlhfMetricsDown": {None},
    }
    rules = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == set(expected)
    for rule in rules:
        wait_for(rule["alert"], lambda e=rule["expr"]: scraped.query(e))

    def ringing() -> dict[str, set[str | None]]:
        found: dict[str, set[str | None]] = {}
        for alert in scraped.get("alerts")["alerts"]:
            found.setdefault(alert["labels"]["alertname"], set()).add(alert["labels"].get("run"))
        return found

    wait_for(f"alerts; found {ringing()}", lambda: ringing() == expected)


def test_the_figures_are_those_of_the_runs(scraped: Scraped) -> None:
    for name, method in (("grpo", "grpo"), ("iterative-dpo", "iter_dpo")):
        rows = [json.loads(line) for line in (scraped.runs / name / "run" / "metrics.jsonl").read_text().splitlines()]
        labels = f'{{run="{name}/run", method="{method}"}}'
        for metric, key in (
            ("rlhf_run_step", "step"),
            ("rlhf_run_loss", "loss"),
            ("rlhf_run_tokens_total", "num_tokens"),
        ):
            (series,) = scraped.query(metric + labels)
            assert float(series["value"][1]) == pytest.approx(rows[-1][key])
        assert scraped.query(f'rlhf_run_state{{run="{name}/run", state="succeeded"}}')


def test_prometheus_finds_nothing_wrong_with_the_text(scraped: Scraped) -> None:
    targets = scraped.get("targets")["activeTargets"]
    assert sorted(target["health"] for target in targets) == ["down", "up"]
    assert "connection refused" in next(t["lastError"] for t in targets if t["health"] == "down")
    log = (scraped.runs.parent / "prometheus.log").read_text()
    assert not re.search(r"level=(warn|error).*(duplicate|out.of.order|parse)", log)
