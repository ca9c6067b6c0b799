"""Alert rules of Prometheus: promtool's own tests, and agreement with the metrics that `rlhf metrics` shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator.monitor.prometheus import FAMILIES, Counter, Labelled

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
EXPORTED = {
    family.name + ("_total" if isinstance(family, Counter) or (isinstance(family, Labelled) and family.counter) else "")
    for family in FAMILIES
}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is missing: apt-get install -y --no-install-recommends prometheus",
)


@needs_promtool
@pytest.mark.parametrize(
    "arguments", [("check", "config", "scrape.yml"), ("test", "rules", "rules_test.yml")], ids=lambda a: " ".join(a[:2])
)
def test_promtool(arguments: tuple[str, ...]) -> None:
    found = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stdout + found.stderr


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "mutation"),
    [
        ("600 + 5 *", "600 + 50 *"),
        ('{state="starting"}', '{state="queued"}'),
        ('state=~"failed|lost"', 'state="failed"'),
        ('{state="paused"}', '{state="stopped"}'),
        ("rlhf_run_alarm_active == 1", "rlhf_run_alarm_active == 0"),
        ("rlhf_run_kl_nats >", "rlhf_run_kl_nats <"),
        ("[6h]) > 3", "[6h]) > 300"),
        ("[1h])) > 5", "[1h])) > 6"),
        ("> 4 * 3600", "> 9 * 3600"),
        ("rlhf_run_storage_behind_seconds > 600", "rlhf_run_storage_behind_seconds > 500"),
        ("rlhf_run_unreadable_lines > 0", "rlhf_run_unreadable_lines > 5"),
        (' == 0 or absent(up{job="rlhf"})', " == 0"),
    ],
)
def test_the_tests_of_the_rules_find_a_wrong_rule(rule: str, mutation: str, tmp_path: Path) -> None:
    text = (DEPLOY / "prometheus" / "rules.yml").read_text("utf-8")
    assert text.count(rule) == 1
    (tmp_path / "rules.yml").write_text(text.replace(rule, mutation))
    shutil.copy(DEPLOY / "prometheus" / "rules_test.yml", tmp_path)
    found = subprocess.run(
        ["promtool", "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert found.returncode != 0, "no test fails"


def test_the_rules_use_metrics_that_exist() -> None:
    used = {name for rule in RULES for name in re.findall(r"rlhf_\w+", rule["expr"])}
    assert used - EXPORTED == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"].keys() == {"summary", "action"}


def test_every_alert_has_a_unit_test() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text("utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}
