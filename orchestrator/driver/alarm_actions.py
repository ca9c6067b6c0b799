"""Actions of alarms that do more than warn, and the alarms and safety gate of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.config.alarms import Action, AlarmsConfig
from orchestrator.driver.checkpoint import roll_back
from orchestrator.errors import Alarmed, Problem, ResumeError
from orchestrator.monitor.alarms import Alarm, AlarmMonitor, Promotion
from orchestrator.monitor.rules import RULES
from orchestrator.pipeline.reference import Drifted
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger, Record
from workers.config import ReferenceConfig

GATE = "safety_gate"
DRIFT = "reference_drift"  # name of the guard that `reference.roll_back_kl` and `abort_kl` set, in ledger and errors


def apply_action(alarm: Alarm, directory: RunDirectory, ledger: Ledger, *, attempt: int, steps_done: int) -> Alarmed:
    """Apply the action of `alarm`, record it, and return the error that ends the attempt.

    A run that has no earlier checkpoint to roll back to is stopped.
    """
    action, result, target = alarm.action, "", None
    if action == "roll_back":
        target = roll_back(directory.checkpoints, alarm.step - alarm.rows)
        action = "stop" if target is None else action
        result = ": there is no earlier checkpoint" if target is None else f": back to step {target}"
    ledger.append(Fact.alarm, attempt=attempt, step=steps_done, action=action, alarm=alarm.to_dict(), target=target)
    resume = f"; or resume with: {directory.resume_command}" if action == "pause" else ""
    return Alarmed(
        alarm.name,
        action,
        Problem(
            what=f"alarm {alarm.name} at step {alarm.step}, {alarm.saw}",
            where=f"{_setting(alarm)}{result}",
            why=alarm.why,
            fix=alarm.fix + resume,
        ),
    )


def drift_alarm(drifted: Drifted, config: ReferenceConfig, ledger: Ledger) -> Alarm:
    """Return the alarm for a policy that drifted too far: `roll_back` once per run, then, or for `abort_kl`, `stop`."""
    before = [r for r in rolled_back(ledger.records) if r.details["alarm"]["name"] == DRIFT]
    action: Action = "roll_back" if drifted.decision.action == "roll_back" and not before else "stop"
    return Alarm(
        name=DRIFT,
        step=drifted.step,
        saw=f"before the next round: {drifted.decision.reason}",
        why="the last rounds moved the policy so far that what follows builds on samples no reward was made for",
        fix="lower algorithm.learning_rate, raise algorithm.beta, or raise the limit if the held-out figures are good",
        action=action,
        rows=1,
    )


def rolled_back(records: Sequence[Record]) -> list[Record]:
    """Return the records of the run's rollbacks. Each sampled the steps after its `target` anew, with other prompts."""
    return [record for record in records if record.rolled_back_to is not None]


def _setting(alarm: Alarm) -> str:
    if alarm.name == DRIFT:
        return "reference.roll_back_kl" if alarm.action == "roll_back" else "reference.roll_back_kl or abort_kl"
    return f"alarms.{alarm.name}.action = {alarm.action}"


def record_promotion(
    monitor: AlarmMonitor, ledger: Ledger, *, attempt: int, steps_done: int, exported: int
) -> Promotion | None:
    """Record and return the decision of the safety gate on the model of step `exported`; None if no metric is gated."""
    decision = monitor.promotion(exported)
    if decision is not None:
        ledger.append(Fact.promotion, attempt=attempt, step=steps_done, **asdict(decision))
    return decision


def gate_error(decision: Promotion, directory: RunDirectory) -> Alarmed:
    """Return the error that ends a finished run whose model the safety gate does not promote."""
    return Alarmed(
        GATE,
        "stop",
        Problem(
            what=f"the model is not promoted: {decision.saw}",
            where=f"alarms.{GATE}",
            why=RULES[GATE].why,
            fix=f"{RULES[GATE].fix}; or, to export it anyway: {directory.resume_command} alarms.{GATE}=null",
        ),
    )


MISMATCH = {"float32": 0.02, "bfloat16": 0.3}
"""Maximum difference between the log-probabilities of engine and learner in one row, in nats per token, by dtype.

In float32, the tests' runs differ by less than 1e-4. The bfloat16 limit leaves room for rounding and was not measured
on a GPU.
"""


def alarms_of(config: RunConfig) -> AlarmsConfig:
    """Return the alarms of a run, with the defaults that depend on its other settings filled in."""
    rule = config.alarms.engine_mismatch
    if rule is None or rule.max_difference is not None:
        return config.alarms
    cut = config.rollout.top_p < 1 or config.rollout.top_k > 0  # the engine renormalises over the tokens that remain
    limit = None if cut else MISMATCH[config.model.dtype]
    resolved = rule.model_copy(update={"max_difference": limit})
    return config.alarms.model_copy(update={"engine_mismatch": resolved})


def build_monitor(
    config: AlarmsConfig,
    ledger: Ledger,
    rows: Sequence[Mapping[str, Any]],
    updates: Sequence[Mapping[str, Any]] = (),
    *,
    rounds: bool,
) -> AlarmMonitor:
    """Build the alarm monitor of an attempt, with the rows of steps and updates and the alarms of earlier attempts.

    Raises:
        ResumeError: an alarm has stopped the run for good, and `config` still has that alarm with this action.
    """
    earlier = [record.details for record in ledger.records if record.fact == Fact.alarm]
    stopped = bool(earlier) and earlier[-1]["action"] == "stop"
    rule = getattr(config, earlier[-1]["alarm"]["name"], None) if stopped else None  # None: the reference's guard
    if rule is not None and rule.action in ("stop", "roll_back"):
        last = earlier[-1]["alarm"]
        raise ResumeError(
            Problem(
                what=f"alarm {last['name']} stopped the run at step {last['step']}, {last['saw']}",
                where=str(ledger.path),
                why=last["why"],
                fix=f"{last['fix']}; run the changed recipe under another name",
            )
        )
    rolled_back = {details["alarm"]["name"] for details in earlier if details["action"] == "roll_back"}
    paused = {(d["alarm"]["name"], d["alarm"]["step"]) for d in earlier if d["action"] == "pause"}
    return AlarmMonitor(config, rows, updates, rounds=rounds, rolled_back=rolled_back, paused=paused)
