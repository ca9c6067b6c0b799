"""End of an attempt: the error that explains it, exit.json, and the last lines on the console."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from orchestrator import disk, limits
from orchestrator.driver.assembly import step_word
from orchestrator.driver.context import AttemptContext
from orchestrator.driver.summary import summarize
from orchestrator.errors import Alarmed, Interrupted, RlhfError, Superseded
from orchestrator.monitor import Outcome
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.exported import ExportedRound
from orchestrator.rundir.incidents import first_cause
from orchestrator.rundir.ledger import Fact
from orchestrator.rundir.lock import Fence
from orchestrator.rundir.stop import StopFile
from orchestrator.signals import Stop, StopRequest, interruption


def report_completion(
    attempt: AttemptContext, *, steps_done: int, max_steps: int, seconds: float, exported: ExportedRound | None = None
) -> None:
    """Write exit.json and the summary of a run whose model is written.

    Fewer steps than `max_steps` mean that the run has spent its budget (`max_device_seconds`).

    Args:
        exported: round whose model it is; None: steps are no rounds.
    """
    config, directory, word = attempt.config, attempt.directory, step_word(attempt.config)
    cause, message = "completed", "all steps done"
    if steps_done < max_steps:
        done, budget = f"{steps_done} of {max_steps} {word}s", config.max_device_seconds
        cause = "budget"
        message = f"the budget of {budget:g} device-seconds was spent after {done} (max_device_seconds)"
    directory.write_exit(
        cause=cause,
        message=message,
        exit_code=0,
        attempt=attempt.number,
        step=steps_done,
        **_alarm_details(attempt),
        **({"exported": exported.to_dict()} if exported else {}),
    )
    monitor = attempt.monitor
    alarms = () if monitor.alarm_monitor is None else monitor.alarm_monitor.alarms
    outcome = summarize(config, directory, alarms, steps_done=steps_done, word=word, seconds=seconds, exported=exported)
    monitor.close(replace(outcome, hints=(message, *outcome.hints)) if cause == "budget" else outcome)


def report_failure(attempt: AttemptContext, error: BaseException, *, steps_done: int, stop: Stop | None = None) -> None:
    """Write exit.json and the last line on the console for an attempt that ends with `error`.

    A request to `stop` that the attempt has ended for is done with: its file is removed, and exit.json keeps it.

    A superseded driver writes no exit.json: the run belongs to another driver. Nothing here raises for a full disk or
    a broken console.
    """
    if isinstance(error, Superseded):
        with suppress(Exception):
            attempt.monitor.close(Outcome(ok=False, message=str(error).splitlines()[0]))
        return
    ours = error if isinstance(error, RlhfError) else None
    final = isinstance(error, Alarmed) and error.action == "stop"
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    hints = () if final else (f"resume with: {attempt.directory.resume_command}",)
    stopped = stop if isinstance(error, Interrupted) else None
    with suppress(OSError):
        attempt.directory.write_exit(
            cause=ours.cause if ours else "error",
            message=str(error) or type(error).__name__,
            exit_code=ours.exit_code if ours else 1,
            attempt=attempt.number,
            step=steps_done,
            first_cause=first_cause(error, attempt=attempt.number),
            **_alarm_details(attempt),
            **({"resume": None} if final else {}),
            **({"stop": asdict(stopped)} if stopped else {}),
        )
        if stopped:
            StopFile(attempt.directory.path).withdraw()
    with suppress(Exception):
        attempt.monitor.close(Outcome(ok=False, message=message, hints=hints))


def explain_error(
    error: BaseException, directory: RunDirectory, fence: Fence, stop: StopRequest | None = None
) -> BaseException:
    """Return the error that explains `error`, or `error` itself if this process knows none.

    In a driver that has been superseded, every error is explained by that.

    Args:
        stop: request to stop that explains any error, because there was nothing to save yet; None: it does not.
    """
    try:
        fence()
    except Superseded as superseded:
        return superseded
    except OSError:
        pass
    if (interrupted := interruption(error)) is not None:
        again = directory.resume_command
        return Interrupted(interrupted.signal, by=interrupted.by, cause=interrupted.cause, resume=again)
    if stop is not None and stop.requested():  # such as a worker that died of the same signal while it was loading
        return stop.error(directory.resume_command)
    return limits.explain(disk.explain(error, directory.path, directory.resume_command))


def _alarm_details(attempt: AttemptContext) -> dict[str, Any]:
    """Return the alarms so far and, if it has decided, the decision of the safety gate."""
    alarms, promotion = attempt.monitor.alarm_monitor, attempt.ledger.last(Fact.promotion)
    details: dict[str, Any] = {"alarms": alarms.to_dicts() if alarms is not None else []}
    if promotion is not None and promotion.attempt == attempt.number:
        details["promotion"] = dict(promotion.details)
    return details
