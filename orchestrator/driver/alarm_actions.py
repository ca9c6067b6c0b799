"""What an alarm that does more than warn comes to: the run stands where its action wants it, and the ledger says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.config.alarms import AlarmsConfig
from orchestrator.driver.checkpoint import go_back
from orchestrator.errors import Alarmed, Problem, ResumeError
from orchestrator.monitor.alarms import Alarm, AlarmMonitor, Promotion
from orchestrator.monitor.rules import RULES
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger

GATE = "safety_gate"


def apply_action(alarm: Alarm, directory: RunDirectory, ledger: Ledger, *, attempt: int, steps_done: int) -> Alarmed:
    """Do what `alarm` asks for and record it. A run that has no checkpoint to go back to is stopped."""
    action, went = alarm.action, ""
    if action == "roll_back":
        target = go_back(directory.checkpoints, alarm.step - alarm.rows)
        action = "stop" if target is None else action
        went = ": there is no checkpoint before it" if target is None else f": back to step {target}"
    ledger.append(Fact.alarm, attempt=attempt, step=steps_done, action=action, alarm=alarm.to_dict())
    resume = f"; or go on with: {directory.resume_command}" if action == "pause" else ""
    return Alarmed(
        alarm.name,
        action,
        Problem(
            what=f"alarm {alarm.name} at step {alarm.step}, {alarm.saw}",
            where=f"alarms.{alarm.name}.action = {alarm.action}{went}",
            why=alarm.why,
            fix=alarm.fix + resume,
        ),
    )


def record_promotion(monitor: AlarmMonitor, ledger: Ledger, *, attempt: int, steps_done: int) -> Promotion | None:
    """The gate's decision, recorded; None: nothing is guarded."""
    decision = monitor.promotion()
    if decision is not None:
        ledger.append(Fact.promotion, attempt=attempt, step=steps_done, **asdict(decision))
    return decision


def gate_error(decision: Promotion, directory: RunDirectory) -> Alarmed:
    """What ends a run that came to its end before a gate that is shut."""
    return Alarmed(
        GATE,
        "stop",
        Problem(
            what=f"the model is not promoted: {decision.saw}",
            where=f"alarms.{GATE}",
            why=RULES[GATE].why,
            fix=f"{RULES[GATE].fix}; or, to have it all the same: {directory.resume_command} alarms.{GATE}=null",
        ),
    )


MISMATCH = {"float32": 0.02, "bfloat16": 0.3}
"""Nats per token by which engine and learner may differ in one row. The float32 runs of the tests differ by less than
1e-4; in bfloat16, which was measured on no GPU, there is room for its rounding."""


def alarms_of(config: RunConfig) -> AlarmsConfig:
    """Return the alarms of a run, with what hangs on its other settings."""
    rule = config.alarms.engine_mismatch
    if rule is None or rule.max_difference is not None:
        return config.alarms
    cut = config.rollout.top_p < 1 or config.rollout.top_k > 0  # the engine's probabilities are of the tokens left
    limit = None if cut else MISMATCH[config.model.dtype]
    resolved = rule.model_copy(update={"max_difference": limit})
    return config.alarms.model_copy(update={"engine_mismatch": resolved})


def build_monitor(
    config: AlarmsConfig, ledger: Ledger, rows: Sequence[Mapping[str, Any]], *, rounds: bool
) -> AlarmMonitor:
    """Of an attempt, with what the ones before it saw and did.

    Raises:
        ResumeError: when an alarm has stopped the run for good, and by `config` still would.
    """
    done = [record.details for record in ledger.records if record.fact == Fact.alarm]
    rule = getattr(config, done[-1]["alarm"]["name"]) if done and done[-1]["action"] == "stop" else None
    if rule is not None and rule.action in ("stop", "roll_back"):
        last = done[-1]["alarm"]
        raise ResumeError(
            Problem(
                what=f"alarm {last['name']} stopped the run at step {last['step']}, {last['saw']}",
                where=str(ledger.path),
                why=last["why"],
                fix=f"{last['fix']}; start the changed recipe under another name",
            )
        )
    rolled_back = {told["alarm"]["name"] for told in done if told["action"] == "roll_back"}
    paused = {(told["alarm"]["name"], told["alarm"]["step"]) for told in done if told["action"] == "pause"}
    return AlarmMonitor(config, rows, rounds=rounds, rolled_back=rolled_back, paused=paused)
