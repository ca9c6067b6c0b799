"""From a recipe to a finished run: stage by stage, with a clean end whatever happens.

recipe ──► stage ──► directory (locked) ──► cluster ──► gangs ──► parts ──► loop ──► model, exit.json
             │                                                      ▲
             └── complete with the same config and inputs: reused   └── a checkpoint, when the run goes on
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import disk, limits
from orchestrator.cluster.base import Cluster, Gang, Restart, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import Recipe, RunConfig, resolved
from orchestrator.driver import loop
from orchestrator.driver.alarm_actions import GATE, alarms_of, apply_action, build_monitor, gate_error, record_promotion
from orchestrator.driver.assembly import (
    Material,
    build_evaluator,
    build_publisher,
    build_reference,
    build_source,
    in_rounds,
)
from orchestrator.driver.capacity import check_capacity, devices_of
from orchestrator.driver.checkpoint import Checkpointer, Pace, newest
from orchestrator.driver.hub import require_models
from orchestrator.driver.recorder import Recorder
from orchestrator.driver.resume_overrides import apply_overrides, record_overrides
from orchestrator.driver.rollouts import Rollouts
from orchestrator.driver.summary import summarize, write_report
from orchestrator.errors import Alarmed, Interrupted, RlhfError, Superseded
from orchestrator.monitor import Monitor, Outcome, RunInfo, open_monitor
from orchestrator.monitor.alarms import AlarmMonitor, Promotion
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.roles import gang_plans
from orchestrator.preflight.data_files import remarks
from orchestrator.preflight.model_source import apart_remark
from orchestrator.preflight.tokenization import dated
from orchestrator.rundir.directory import Fence, RunDirectory
from orchestrator.rundir.existing import refuse_other_inputs, settle, write_inputs
from orchestrator.rundir.incidents import first_cause, of_restart, write_incident
from orchestrator.rundir.ledger import Fact, Ledger, checkpointed, read_ledger
from orchestrator.rundir.manifest import State, list_checkpoints, read_about
from orchestrator.rundir.provenance import compare, describe
from orchestrator.signals import StopRequest, interruption
from workers.learner import Learner
from workers.weights import remove_orphans, segment_path


def run_recipe(recipe: Recipe, *, fresh: bool = False, debug: bool = False) -> int:
    """Run every stage that is not complete yet; returns 0. `fresh`: begin the last one anew, and each earlier one of
    which something differs. Raises RlhfError when everything has been put in order."""
    settle(recipe, fresh=fresh, say=print)
    with StopRequest() as stop:
        for index, config in enumerate(recipe.stages):
            directory = RunDirectory.create(config, recipe.text)
            if directory.is_complete:
                unsure = (
                    "" if directory.read_inputs() is not None else "; what it was trained from was not written down"
                )
                print(f"{config.name}: complete, reused ({directory.model}){unsure}")
            else:
                attempts(config, directory, stop, stage=(index + 1, len(recipe.stages)))
    return 0


def resume_run(path: Path, overrides: Sequence[str] = (), *, debug: bool = False) -> int:
    """Go on with a run from its newest checkpoint, some of its settings changed; from its beginning when it stopped
    before the first. Raises ResumeError when every checkpoint is gone or damaged, or when it would be another run."""
    directory = RunDirectory.open(path)
    if directory.is_complete:
        print(f"{directory.name}: complete, nothing to resume ({directory.model})")
        return 0
    config = apply_overrides(directory, overrides)
    refuse_other_inputs(directory, config)
    expected = checkpointed(read_ledger(directory.ledger)[0])
    if expected is not None or list_checkpoints(directory.checkpoints):
        newest(directory.checkpoints, expected)  # what is wrong with it is said before anything is started
    with StopRequest() as stop:
        attempts(config, directory, stop)
    return 0


def attempts(config: RunConfig, directory: RunDirectory, stop: StopRequest, **given: Any) -> None:
    """One attempt; another one each time an alarm has sent the run back, which each alarm does once. However they end,
    there is a report."""
    try:
        while True:
            try:
                return Attempt(config, directory, stop, **given).run()
            except Alarmed as alarm:
                if alarm.action != "roll_back":
                    raise
    finally:
        write_report(directory)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """Where an attempt begins."""

    checkpoint: Path | None  # None: from nothing
    state: State
    about: Mapping[str, Any]  # what its checkpoints will say of data, software and ranks


class Attempt:
    """One life of a run: from nothing, or from the newest checkpoint of the attempt before."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        stop: StopRequest,
        stage: tuple[int, int] = (1, 1),
        start_cluster: Callable[..., Cluster] = RayCluster,
    ) -> None:
        self._config, self._directory, self._stop, self._stage = config, directory, stop, stage
        self._start_cluster = start_cluster
        self._cluster: Cluster | None = None
        self._steps_done = 0  # committed by this or an earlier attempt
        self._recording: Recorder | None = None
        self._alarm_monitor = AlarmMonitor(config.alarms)
        self._promotion: Promotion | None = None
        self._spent = False  # whether the budget ended it before the last step

    def run(self) -> None:
        """Ends with the model written, or with exit.json saying why not. Raises RlhfError."""
        directory, started = self._directory, time.monotonic()
        with (
            disk.explained(directory.path, directory.resume_command),
            directory.held() as fence,
            Ledger.open(directory.ledger, fence) as ledger,
            limits.Spare() as spare,
        ):
            self._number = directory.start_attempt()
            remove_orphans(self._config.name)
            monitor = open_monitor(self._config, directory)
            try:
                self._execute(ledger, monitor)
            except BaseException as error:
                spare.give_up()
                told = self._as_rlhf_error(error, fence)
                self._failed(told, monitor)
                if told is error:
                    raise
                raise told from error
            finally:
                if self._cluster is not None:
                    self._cluster.shutdown()
                Path(segment_path(self._config.name)).unlink(missing_ok=True)
                with suppress(Superseded, OSError):
                    fence()
                    shutil.rmtree(directory.adapters, ignore_errors=True)
            ledger.append(Fact.finished, attempt=self._number, step=self._steps_done)
            cause, message = self._good_end()
            directory.write_exit(
                cause=cause,
                message=message,
                exit_code=0,
                attempt=self._number,
                step=self._steps_done,
                alarms=self._alarm_monitor.to_dicts(),
                **self._promotion_told(),
            )
            word, seconds = self._step_word, time.monotonic() - started
            alarms = self._alarm_monitor.alarms
            outcome = summarize(
                self._config, directory, alarms, steps_done=self._steps_done, word=word, seconds=seconds
            )
            monitor.close(replace(outcome, hints=(message, *outcome.hints)) if self._spent else outcome)

    # -------------------------------------------------------------------------------------------- a life

    def _execute(self, ledger: Ledger, monitor: Monitor) -> None:
        config, directory = self._config, self._directory
        disk.probe(directory.checkpoints)
        self._material = material = Material.read(config)
        require_models(config, monitor.note)
        stand = self._restore(ledger, monitor)
        cluster, gangs = self._start_gangs(ledger, monitor)
        learners = Learners(
            gangs["policy"],
            gangs.get("critic"),
            needs_old=config.algorithm.needs_old_logprobs,
            every_updates=config.checkpoint.every_updates,
            progress=stand.state.progress,
        )
        checkpointer = Checkpointer(
            learners, directory.checkpoints, keep=config.checkpoint.keep, about=stand.about, fence=ledger.fence
        )
        if stand.checkpoint is not None:
            checkpointer.load(stand.checkpoint)
        rollouts = None
        if config.data.prompts is not None:
            rollouts = Rollouts(directory.rollouts, ledger, attempt=self._number, note=monitor.note)
            if stand.state.updates:
                rollouts.require(stand.state.next_step)
        self._recording = recorder = self._recorder(ledger, monitor, checkpointer, rollouts, gangs, stand.state)
        publisher = build_publisher(config, directory, gangs, cuda=cluster.cuda)
        if stand.checkpoint is not None:
            publisher.publish(stand.state.next_step)
        else:
            recorder.baseline()
        reference_policy = build_reference(config, directory, gangs, stand.state)
        parts = loop.Parts(
            source=build_source(config, material, gangs, reference_policy.begin, rollouts),
            reference_policy=reference_policy,
            learners=learners,
            publisher=publisher,
            recorder=recorder,
            waited_s=cluster.waited_s,
            restarts=cluster.restarts,
            stop=lambda: self._stop.requested() or self._alarm_monitor.verdict is not None or recorder.is_spent,
        )
        try:
            with self._stop.graceful(monitor.note):
                finished = loop.run(parts, first_step=stand.state.next_step, max_steps=material.max_steps)
        finally:
            self._steps_done = recorder.steps_done
        if self._alarm_monitor.verdict is not None:
            recorder.checkpoint(self._steps_done)
            if self._alarm_monitor.verdict.name == GATE:
                self._promotion = record_promotion(
                    self._alarm_monitor, ledger, attempt=self._number, steps_done=self._steps_done
                )
            raise apply_action(
                self._alarm_monitor.verdict, directory, ledger, attempt=self._number, steps_done=self._steps_done
            )
        self._spent = recorder.is_spent and not finished
        if not finished and not self._spent:
            recorder.checkpoint(self._steps_done)
            raise Interrupted(self._stop.signal, resume=directory.resume_command)
        ledger.fence()
        self._promotion = record_promotion(
            self._alarm_monitor, ledger, attempt=self._number, steps_done=self._steps_done
        )
        if self._promotion is not None and not self._promotion.promoted:
            raise gate_error(self._promotion, directory)
        self._export(learners)
        wait([*learners.policy.all(Learner.close), *(learners.critic.all(Learner.close) if learners.critic else [])])

    def _restore(self, ledger: Ledger, monitor: Monitor) -> ResumePoint:
        """Where the attempt before has left the run: recorded, the metrics wound back to it, and told."""
        config, directory, material = self._config, self._directory, self._material
        expected = checkpointed(ledger.records)
        resumed = expected is not None or list_checkpoints(directory.checkpoints)
        checkpoint, state, refused = (
            newest(directory.checkpoints, expected) if resumed else (None, State(next_step=0, reference_version=0), [])
        )
        about = describe(config, material.prompts, material.examples)
        differs = compare(read_about(checkpoint), about) if checkpoint else []
        changes, mended = record_overrides(directory, config), write_inputs(directory, config)
        ledger.append(
            Fact.attempt,
            attempt=self._number,
            step=state.next_step,
            **({"refused": list(refused)} if refused else {}),
            **({"changed": changes} if changes else {}),
        )
        ledger.refuse_gaps(state.next_step)
        self._steps_done = state.next_step
        told = MetricsFile(directory.metrics)
        told.rewind(state.next_step if checkpoint else -1)
        self._num_tokens = max((row.get("num_tokens") or 0.0 for row in told.rows()), default=0.0)
        self._alarm_monitor = monitor.alarm_monitor = build_monitor(
            alarms_of(config), ledger, told.rows(), rounds=in_rounds(config)
        )
        monitor.start(self._info(state.next_step))
        lost = [f"not used: {damage}; going on from the checkpoint before it" for damage in refused]
        apart = filter(None, [apart_remark(config)])
        for remark in [*remarks(config, material.sources), *apart, *lost, *differs, *mended]:
            monitor.note(remark)
        return ResumePoint(checkpoint=checkpoint, state=state, about=about)

    def _start_gangs(self, ledger: Ledger, monitor: Monitor) -> tuple[Cluster, Mapping[str, Gang[Any]]]:
        config, logs = dated(self._config, ledger.records[0].time), self._directory.logs(self._number)
        monitor.phase("driver", "starting Ray")
        self._cluster = cluster = self._start_cluster(
            config.cluster, log_directory=logs, on_restart=lambda restart: self._restarted(restart, monitor)
        )
        if self._stop.requested():  # while Ray was starting, and Ray has made nothing of it
            raise Interrupted(self._stop.signal)
        check_capacity(config, cluster, logs)
        plans = gang_plans(config, cuda=cluster.cuda, max_steps=self._material.max_steps)
        ledger.append(Fact.placed, attempt=self._number, step=self._steps_done, devices=devices_of(plans, cluster.cuda))
        for plan in plans:
            monitor.phase(plan.role, "loading")
        gangs = cluster.spawn(plans)
        for plan in plans:
            monitor.phase(plan.role, "")
        monitor.phase("driver", "")
        return cluster, gangs

    def _export(self, learners: Learners) -> None:
        aside = disk.fresh(self._directory.model)
        wait(learners.policy.all(Learner.export, str(aside)))
        disk.publish(self._directory.model)

    def _recorder(
        self,
        ledger: Ledger,
        monitor: Monitor,
        checkpointer: Checkpointer,
        rollouts: Rollouts | None,
        gangs: Mapping[str, Gang[Any]],
        state: State,
    ) -> Recorder:
        config = self._config
        return Recorder(
            self._directory,
            ledger,
            monitor,
            checkpointer,
            build_evaluator(config, self._material, gangs),
            attempt=self._number,
            steps_done=state.next_step,
            num_tokens=self._num_tokens,
            max_steps=self._material.max_steps,
            evaluate_every=config.evaluation.every,
            pace=Pace(config.checkpoint.every),
            rollouts=rollouts,
            rounds=in_rounds(config),
            reference_version=state.reference_version,
            max_device_seconds=config.max_device_seconds,
        )

    # -------------------------------------------------------------------------------------------- its end

    def _good_end(self) -> tuple[str, str]:
        """Cause and message of an attempt after which there is a model."""
        if not self._spent:
            return "completed", "all steps done"
        budget, word = self._config.max_device_seconds, self._step_word
        of = f"{self._steps_done} of {self._material.max_steps} {word}s"
        return "budget", f"the budget of {budget:g} device-seconds was spent after {of} (max_device_seconds)"

    @property
    def _step_word(self) -> str:
        return "round" if in_rounds(self._config) else "step"

    def _info(self, first_step: int) -> RunInfo:
        config, rounds = self._config, in_rounds(self._config)
        return RunInfo(
            name=config.name,
            kind="iter_dpo" if rounds else config.algorithm.type,
            model=config.model.path or "",
            directory=self._directory.path,
            num_steps=self._material.max_steps,
            roles=tuple(p.role for p in gang_plans(config, cuda=False, max_steps=self._material.max_steps)),
            first_step=first_step,
            attempt=self._number,
            stage=self._stage[0],
            num_stages=self._stage[1],
            step_word=self._step_word,
            config=resolved(config),
        )

    def _promotion_told(self) -> dict[str, Any]:
        return {} if self._promotion is None else {"promotion": asdict(self._promotion)}

    def _restarted(self, restart: Restart, monitor: Monitor) -> None:
        monitor.note(f"{restart.why}; started again, {restart.number} of {restart.limit} times in this attempt")
        steps_done = self._steps_done if self._recording is None else self._recording.steps_done
        write_incident(self._directory.incidents, of_restart(restart, attempt=self._number, step=steps_done))

    def _as_rlhf_error(self, error: BaseException, fence: Fence) -> BaseException:
        """What an error comes from, where this process can tell. Whatever befell a driver that has been superseded came
        of that."""
        try:
            fence()
        except Superseded as superseded:
            return superseded
        except OSError:
            pass
        if (stopped := interruption(error)) is not None:
            return Interrupted(stopped.signal, resume=self._directory.resume_command)
        return limits.explain(disk.explain(error, self._directory.path, self._directory.resume_command))

    def _failed(self, error: BaseException, monitor: Monitor) -> None:
        """Say how it ended, wherever that can still be said."""
        if isinstance(error, Superseded):
            with suppress(Exception):
                monitor.close(Outcome(ok=False, message=str(error).splitlines()[0]))
            return
        known = error if isinstance(error, RlhfError) else None
        final = isinstance(error, Alarmed) and error.action == "stop"
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        hints = () if final else (f"resume with: {self._directory.resume_command}",)
        with suppress(OSError):
            self._directory.write_exit(
                cause=known.cause if known else "error",
                message=str(error) or type(error).__name__,
                exit_code=known.exit_code if known else 1,
                attempt=self._number,
                step=self._steps_done,
                first_cause=first_cause(error, attempt=self._number),
                alarms=self._alarm_monitor.to_dicts(),
                **self._promotion_told(),
                **({"resume": None} if final else {}),
            )
        with suppress(Exception):
            monitor.close(Outcome(ok=False, message=message, hints=hints))
