"""Alarms of a run: every row of metrics is checked by every rule; an alarm may end the run.

The alarms are a pure function of the rows, so a resumed run restores them from the metrics file.

    row ──► rules ──► alarms/NAME in the row (while active) ──► a note when it begins ──► verdict, by its action
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config.alarms import Action, AlarmsConfig
from orchestrator.monitor.gate import gated_metrics
from orchestrator.monitor.history import History
from orchestrator.monitor.rules import RULES
from workers.types import Metrics

STRENGTH: Sequence[Action] = ("warn", "pause", "roll_back", "stop")


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """An alarm at the step where it began.

    Example: `Alarm(name="kl_budget", step=31, saw="KL 31 nats …", why="far from …", fix="raise …", action="warn",
    rows=5)`.
    """

    name: str
    step: int
    saw: str  # observation: the values that triggered the rule
    why: str
    fix: str
    action: Action
    rows: int  # number of newest rows that the rule judged

    def __str__(self) -> str:
        return f"alarm {self.name} at step {self.step}: {self.saw}\n  why: {self.why}\n  fix: {self.fix}"

    def to_dict(self) -> dict[str, Any]:
        """Return the alarm as it is stored in `exit.json` and the ledger."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """Decision of the safety gate on a run's model.

    Example: `Promotion(promoted=False, saw="eval/refusal fell from 0.98 to 0.91 (allowed: 0.02)")`.
    """

    promoted: bool
    saw: str  # the gated metrics, in words


class AlarmMonitor:
    """Alarms of one attempt, with the state restored from the rows of earlier attempts."""

    def __init__(
        self,
        config: AlarmsConfig,
        rows: Sequence[Mapping[str, Any]] = (),
        *,
        rounds: bool = False,
        rolled_back: Collection[str] = (),
        paused: Collection[tuple[str, int]] = (),
    ) -> None:
        """Restore the alarms of earlier attempts.

        An alarm of the last row is still to be acted on, because the run may have been killed before it acted.

        Args:
            rows: rows of earlier attempts, as stored in the metrics file.
            rounds: each row is a round of iterative DPO.
            rolled_back: names of alarms that have rolled the run back already; the next time they stop it.
            paused: (name, step) of alarms that have paused the run already; they are not acted on again.
        """
        self._rules = {name: rule for name in RULES if (rule := getattr(config, name)) is not None}
        self._gate = config.safety_gate
        self._rolled_back = frozenset(rolled_back)
        self._history = History(rounds=rounds)
        self._num_rows = 0
        self._last_fired: dict[str, int] = {}  # row number by rule; a finding soon after is the same alarm
        self.alarms: list[Alarm] = []
        self.verdict: Alarm | None = None  # the alarm that ends the run
        for row in rows:
            self.update(int(row["step"]), row)
        self.verdict = self._unresolved_verdict(rows, paused)

    def update(self, step: int, metrics: Mapping[str, Any]) -> tuple[Metrics, list[Alarm]]:
        """Check a row. Return the metrics to add to it, one per active alarm, and the alarms that begin with it.

        An alarm begins if its rule has not fired in any other row of the window that it judges.
        """
        self._history.add(step, metrics)
        self._num_rows += 1
        findings = {
            name: finding
            for name, rule in self._rules.items()
            if (finding := RULES[name].detect(self._history, rule)) is not None
        }
        new = [
            Alarm(
                name=name,
                step=step,
                saw=finding.saw,
                why=RULES[name].why,
                fix=RULES[name].fix,
                action=self._action(name),
                rows=finding.rows,
            )
            for name, finding in findings.items()
            if self._num_rows - self._last_fired.get(name, -math.inf) > finding.rows
        ]
        self._last_fired |= dict.fromkeys(findings, self._num_rows)
        self.alarms += new
        for alarm in new:
            stronger = self.verdict is None or STRENGTH.index(alarm.action) > STRENGTH.index(self.verdict.action)
            if alarm.action != "warn" and stronger:
                self.verdict = alarm
        return {f"alarms/{name}": 1.0 for name in findings}, new

    def _unresolved_verdict(
        self, rows: Sequence[Mapping[str, Any]], paused: Collection[tuple[str, int]]
    ) -> Alarm | None:
        verdict = self.verdict
        if verdict is None or verdict.step != rows[-1]["step"] or (verdict.name, verdict.step) in paused:
            return None
        return verdict

    def promotion(self) -> Promotion | None:
        """Decide whether the model, as evaluated last, may replace the initial model. Return None if nothing is gated.

        A metric that the recipe names but that was not measured closes the gate.
        """
        rule = self._gate
        if rule is None:
            return None
        metrics = gated_metrics(self._history, rule)
        missing = sorted({*rule.metrics} - {metric.name for metric in metrics})
        if not metrics and not missing:
            return None
        texts = [str(metric) for metric in metrics]
        texts += [f"{name} was not measured both before the first step and later" for name in missing]
        return Promotion(promoted=not missing and not any(m.lost for m in metrics), saw="; ".join(texts))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return all alarms so far, as they are stored in `exit.json`."""
        return [alarm.to_dict() for alarm in self.alarms]

    def _action(self, name: str) -> Action:
        action: Action = self._rules[name].action
        return "stop" if action == "roll_back" and name in self._rolled_back else action
