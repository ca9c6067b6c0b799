"""Grafana dashboard: the committed file is what its generator writes, and it shows metrics that exist."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from test_alert_rules import EXPORTED

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
BOARD = json.loads((GRAFANA / "rlhf.json").read_text("utf-8"))
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
NOT_SHOWN = {
    "rlhf_run_alarms_total": "active alarms are shown",
    "rlhf_run_eval_accuracy_ratio": "as the held-out reward, of methods without a reward",
    "rlhf_run_exit": "rlhf why says more",
    "rlhf_run_grad_norm": "has an alarm",
    "rlhf_run_last_activity_timestamp_seconds": "for alerts",
    "rlhf_run_storage_behind_seconds": "has an alert",
    "rlhf_run_tokens_total": "tokens per second are shown",
    "rlhf_run_unreadable_lines": "has an alert",
}
"""Metrics without a panel, each with the reason."""


def test_the_committed_file_is_what_the_generator_writes() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="pip install -r requirements/deploy.txt")
    generator = runpy.run_path(str(GRAFANA / "dashboard.py"))
    assert generator["as_json"]() == (GRAFANA / "rlhf.json").read_text("utf-8"), "run deploy/grafana/dashboard.py"


def test_the_panels_show_the_metrics_that_exist() -> None:
    used = {name for expression in EXPRESSIONS for name in re.findall(r"rlhf_\w+", expression)}
    assert used - EXPORTED == set()
    assert EXPORTED - used == set(NOT_SHOWN)


def test_every_panel_follows_the_variables() -> None:
    for expression in EXPRESSIONS:
        selectors = re.findall(r"rlhf_\w+\{([^}]*)\}", expression)
        assert len(selectors) == len(re.findall(r"rlhf_\w+", expression))
        assert all('run=~"$run", method=~"$method"' in selector for selector in selectors)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
