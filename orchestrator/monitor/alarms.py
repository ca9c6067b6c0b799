"""Alarms of a run: every row of metrics is checked by every rule; an alarm may end the run.

The alarms are a pure function of the rows of steps and of optimiser updates, so a resumed run restores them from the
metrics files.

    update ──► rules on updates ──┐
    row of a step ──► other rules ┴─► a note when an alarm begins ──► verdict, by its action
                                  └─► alarms/NAME in the row of the step, while active
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config.alarms import Action, AlarmsConfig
from orchestrator.monitor.finding import Finding
from orchestrator.monitor.gate import gated_metrics
from orchestrator.monitor.history import History
from orchestrator.monitor.rules import RULES
from workers.stats import Metrics

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
    rows: int  # number of newest steps that the rule judged: the problem began in one of them

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
        updates: Sequence[Mapping[str, Any]] = (),
        *,
        rounds: bool = False,
        rolled_back: Collection[str] = (),
        paused: Collection[tuple[str, int]] = (),
    ) -> None:
        """Restore the alarms of earlier attempts.

        An alarm of the last step, or of the step in progress, is still to be acted on, because the run may have been
        killed before it acted.

        Args:
            rows: rows of earlier attempts, as stored in the metrics file.
            updates: rows of their optimiser updates, as stored in the updates file.
            rounds: each row is a round of iterative DPO.
            rolled_back: names of alarms that have rolled the run back already; the next time they stop it.
            paused: (name, step) of alarms that have paused the run already; they are not acted on again.
        """
        self._rules = {name: rule for name in RULES if (rule := getattr(config, name)) is not None}
        self._gate = config.safety_gate
        self._rolled_back = frozenset(rolled_back)
        self._history = History(rounds=rounds)
        self._num_rows = self._num_updates = 0
        # Number of the row, or update, by rule and certainty; a finding soon after is the same alarm.
        self._last_fired: dict[tuple[str, bool], int] = {}
        self._in_step: set[str] = set()  # rules on updates that fired in the step in progress
        self.alarms: list[Alarm] = []
        self.verdict: Alarm | None = None  # the alarm that ends the run
        self._restore(rows, updates, paused)

    def _restore(
        self,
        rows: Sequence[Mapping[str, Any]],
        updates: Sequence[Mapping[str, Any]],
        paused: Collection[tuple[str, int]],
    ) -> None:
        left = deque(updates)
        for row in rows:
            while left and left[0]["step"] <= row["step"]:
                update = left.popleft()
                self.after_update(int(update["step"]), update)
            self.update(int(row["step"]), row)
        for update in left:
            self.after_update(int(update["step"]), update)
        verdict, newest = self.verdict, [*rows[-1:], *updates[-1:]]
        if verdict is None or not newest:
            return
        if verdict.step < max(row["step"] for row in newest) or (verdict.name, verdict.step) in paused:
            self.verdict = None

    def after_update(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Check an optimiser update of `step`. Return the alarms that begin with it."""
        self._history.add_update(step, metrics)
        self._num_updates += 1
        findings = self._findings(of_updates=True)
        self._in_step |= findings.keys()
        return self._begin(findings, step, of_updates=True)

    def update(self, step: int, metrics: Mapping[str, Any]) -> tuple[Metrics, list[Alarm]]:
        """Check the row of a step, after its updates.

        Return the metrics to add to it, one per alarm that is or was active in the step, and the alarms that begin with
        it.
        """
        self._history.add_row(step, metrics)
        self._num_rows += 1
        findings = self._findings(of_updates=False)
        active = {f"alarms/{name}": 1.0 for name in RULES if name in findings or name in self._in_step}
        self._in_step.clear()
        return active, self._begin(findings, step, of_updates=False)

    def _findings(self, *, of_updates: bool) -> dict[str, Finding]:
        return {
            name: finding
            for name, rule in self._rules.items()
            if RULES[name].of_updates == of_updates and (finding := RULES[name].detect(self._history, rule)) is not None
        }

    def _begin(self, findings: Mapping[str, Finding], step: int, *, of_updates: bool) -> list[Alarm]:
        """Return the alarms that begin, and set the verdict.

        An alarm begins if its rule has not fired in any other row (or update) of the window that it judges.
        """
        now, new = self._num_updates if of_updates else self._num_rows, list[Alarm]()
        for name, finding in findings.items():
            fired = name, finding.is_certain
            if now - self._last_fired.get(fired, -math.inf) > finding.rows:
                first = self._history.step_of_update[-finding.rows] if of_updates else step - finding.rows + 1
                new.append(self._alarm(name, finding, step, rows=step - first + 1))
            self._last_fired[fired] = now
        self.alarms += new
        for alarm in new:
            stronger = self.verdict is None or STRENGTH.index(alarm.action) > STRENGTH.index(self.verdict.action)
            if alarm.action != "warn" and stronger:
                self.verdict = alarm
        return new

    def _alarm(self, name: str, finding: Finding, step: int, *, rows: int) -> Alarm:
        rule = RULES[name]
        return Alarm(
            name=name,
            step=step,
            saw=finding.saw,
            why=rule.why if finding.is_certain else rule.why_in_doubt,
            fix=rule.fix,
            action=self._action(name) if finding.is_certain else "warn",
            rows=rows,
        )

    @property
    def ends_step(self) -> bool:
        """True if the run stops or is rolled back, so that the rest of the step is of no use. A pause waits for it."""
        return self.verdict is not None and self.verdict.action in ("stop", "roll_back")

    def promotion(self, step: int) -> Promotion | None:
        """Decide whether the model after `step` may replace the initial model. Return None if nothing is gated.

        Its metrics are the newest ones up to that step. A loss that is certain closes the gate. So does a metric that
        the recipe names but that was not measured.
        """
        rule = self._gate
        if rule is None:
            return None
        metrics = gated_metrics(self._history, rule, step)
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
