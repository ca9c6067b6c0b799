"""A run on conversations from start to end, and the date that its chat templates see when it is resumed later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cpu_run
import pytest
from transformers import AutoTokenizer

from orchestrator.cluster.base import GangPlan
from orchestrator.cluster.local import LocalCluster
from orchestrator.config import RunConfig
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Record

# The prompt begins with the letter a on the first of a month, and with b on any other day.
TEMPLATE = (
    "{{ 'a' if strftime_now('%d') == '01' else 'b' }}{% for m in messages %}{{ m.content }}>{% endfor %}"
    "{% if add_generation_prompt %}c{% endif %}"
)


@pytest.fixture
def settings(tmp_path: Path) -> RunConfig:
    cpu_run.write_task(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": [{"role": "user", "content": letter}]} for letter in "abcdefgh"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(
        "def length(completions, **_): return [len(c[0]['content']) for c in completions]"
    )
    reward = [{"type": "function", "function": f"{tmp_path}/mine.py:length"}]
    return cpu_run.config(tmp_path, tmp_path / "runs", "grpo", reward=reward)


def test_a_run_of_conversations(settings: RunConfig) -> None:
    cpu_run.run(settings)
    assert RunDirectory.open(settings.directory).is_complete
    assert all(row["completions/mean_length"] >= 1 for row in cpu_run.rows(settings.directory))


class PlansRecorded(Exception):
    """Signal that the cluster has recorded its plans."""


class PlanRecordingCluster(LocalCluster):
    """Cluster that records the plans it is given, and starts nothing."""

    plans: Sequence[GangPlan] = ()

    def spawn(self, plans: Sequence[GangPlan], on_wait: Any = None) -> Any:
        self.plans = plans
        raise PlansRecorded


def test_a_run_resumed_later_keeps_the_date_of_its_first_day(settings: RunConfig) -> None:
    directory = RunDirectory.create(settings, "")
    began = Record(seq=0, attempt=1, step=0, fact=Fact.attempt, details={}, time=86399.0)  # 1970-01-01
    directory.ledger.write_bytes(began.line())
    cluster = PlanRecordingCluster(cpu_run.STARTS)
    with pytest.raises(PlansRecorded):
        cpu_run.run(settings, start_cluster=lambda *_, **__: cluster)
    (rollout,) = (plan for plan in cluster.plans if plan.role == "rollout")
    role = cpu_run.TorchRollout(**rollout.arguments[0])
    prompt = role._codec.encode_prompt([{"role": "user", "content": "h"}])
    assert role._codec.decode(prompt) == "ah>c"
    dates = {plan.role: plan.arguments[0]["model"].template_date for plan in cluster.plans}
    assert {"policy", "rollout", "reward"} <= set(dates)
    assert set(dates.values()) == {"1970-01-01T23:59:59"}
