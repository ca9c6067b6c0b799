"""The watch over a run: it sees every row of metrics once, tells of each alarm when it begins, and says when the run
is to end. A pure function of the rows, so that a resumed run knows what the one before knew.

    row ──► rules ──► alarms/NAME in the row (while it lasts) ──► a note when it begins ──► verdict, by its action
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config.alarms import Action, AlarmsConfig
from orchestrator.monitor.gate import guarded
from orchestrator.monitor.history import History
from orchestrator.monitor.rules import RULES
from workers.types import Metrics

STRENGTH: Sequence[Action] = ("warn", "pause", "roll_back", "stop")


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """One alarm as it began.

    Example: `Alarm(name="kl_budget", step=31, saw="KL 31 nats …", why="far from …", fix="raise …", action="warn",
    rows=5)`.
    """

    name: str
    step: int
    saw: str
    why: str
    fix: str
    action: Action
    rows: int  # how far back it looked

    def __str__(self) -> str:
        return f"alarm {self.name} at step {self.step}: {self.saw}\n  why: {self.why}\n  fix: {self.fix}"

    def to_dict(self) -> dict[str, Any]:
        """As `exit.json` and the ledger have it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """The gate's decision on a run's model.

    Example: `Promotion(promoted=False, saw="eval/refusal fell from 0.98 to 0.91, allowed is 0.02")`.
    """

    promoted: bool
    saw: str


class AlarmMonitor:
    """Over one attempt, and what the attempts before it saw."""

    def __init__(
        self,
        config: AlarmsConfig,
        rows: Sequence[Mapping[str, Any]] = (),
        *,
        rounds: bool = False,
        rolled_back: Collection[str] = (),
        paused: Collection[tuple[str, int]] = (),
    ) -> None:
        """`rows`: of earlier attempts, as the metrics file has them; their alarms are known. What one of the last row
        asks for is still to be done (the run may have been killed before), unless it `paused` the run at that step.
        `rolled_back`: alarms that have sent the run back already, and will end it the next time."""
        self._rules = {name: rule for name in RULES if (rule := getattr(config, name)) is not None}
        self._gate = config.safety_gate
        self._rolled_back = frozenset(rolled_back)
        self._history = History(rounds=rounds)
        self._num_rows = 0
        self._last_fired: dict[str, int] = {}  # by rule; a finding soon after is the same alarm
        self.alarms: list[Alarm] = []
        self.verdict: Alarm | None = None  # the alarm for which the run is to end
        for row in rows:
            self.update(int(row["step"]), row)
        self.verdict = self._due(rows, paused)

    def update(self, step: int, metrics: Mapping[str, Any]) -> tuple[Metrics, list[Alarm]]:
        """What to add to the row while alarms last, and the alarms that begin with it: those that rang in none of the
        rows they look at."""
        self._history.add(step, metrics)
        self._num_rows += 1
        seen = {name: sight for name, rule in self._rules.items() if (sight := RULES[name].see(self._history, rule))}
        begun = [
            Alarm(
                name=name,
                step=step,
                saw=sight.saw,
                why=RULES[name].why,
                fix=RULES[name].fix,
                action=self._action(name),
                rows=sight.rows,
            )
            for name, sight in seen.items()
            if self._num_rows - self._last_fired.get(name, -math.inf) > sight.rows
        ]
        self._last_fired |= dict.fromkeys(seen, self._num_rows)
        self.alarms += begun
        for alarm in begun:
            stronger = self.verdict is None or STRENGTH.index(alarm.action) > STRENGTH.index(self.verdict.action)
            if alarm.action != "warn" and stronger:
                self.verdict = alarm
        return {f"alarms/{name}": 1.0 for name in seen}, begun

    def _due(self, rows: Sequence[Mapping[str, Any]], paused: Collection[tuple[str, int]]) -> Alarm | None:
        asked = self.verdict
        if asked is None or asked.step != rows[-1]["step"] or (asked.name, asked.step) in paused:
            return None
        return asked

    def promotion(self) -> Promotion | None:
        """Whether the model, as it was evaluated last, may take the place of what the run began with. None: nothing is
        guarded. A figure that the recipe names and nobody has measured keeps the gate shut."""
        rule = self._gate
        if rule is None:
            return None
        figures = guarded(self._history, rule)
        missing = sorted({*rule.metrics} - {figure.name for figure in figures})
        if not figures and not missing:
            return None
        told = [str(figure) for figure in figures] + [f"{name} was not measured before and after" for name in missing]
        return Promotion(promoted=not missing and not any(f.lost for f in figures), saw="; ".join(told))

    def to_dicts(self) -> list[dict[str, Any]]:
        """All alarms so far, as `exit.json` has them."""
        return [alarm.to_dict() for alarm in self.alarms]

    def _action(self, name: str) -> Action:
        action: Action = self._rules[name].action
        return "stop" if action == "roll_back" and name in self._rolled_back else action
