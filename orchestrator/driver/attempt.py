"""Attempt at a run, from the beginning or from a checkpoint. However it ends, exit.json says how.

directory (locked) ──► cluster ──► gangs ──► parts ──► loop ──► model, exit.json
                                               ▲
                                               └── a checkpoint, if the run is resumed
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import disk, limits
from orchestrator.audit.before_run import audit_remarks
from orchestrator.cluster.base import Cluster, Gang, Restart
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import RunConfig
from orchestrator.driver import loop
from orchestrator.driver.alarm_actions import GATE, apply_action, drift_alarm, gate_error, record_promotion, rolled_back
from orchestrator.driver.assembly import (
    Material,
    build_evaluator,
    build_publisher,
    build_reference,
    build_source,
    in_rounds,
)
from orchestrator.driver.capacity import check_capacity, devices_of
from orchestrator.driver.checkpoint import Checkpointer, Pace
from orchestrator.driver.context import AttemptContext
from orchestrator.driver.exit_report import explain_error, report_completion, report_failure
from orchestrator.driver.generated import data_set_of, write_data_set
from orchestrator.driver.hub import require_models
from orchestrator.driver.recorder import Recorder
from orchestrator.driver.resume import ResumePoint, find_resume_point, restore_alarms, rewind_metrics, run_info
from orchestrator.driver.rollouts import open_rollouts
from orchestrator.driver.room import wait_for_room, wait_for_stage
from orchestrator.driver.round_models import RoundModels
from orchestrator.driver.take_over import uploading
from orchestrator.errors import Alarmed, Superseded
from orchestrator.monitor import open_monitor
from orchestrator.monitor.alarms import Alarm, AlarmMonitor
from orchestrator.pipeline.exports import write_model
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.reference import Drifted
from orchestrator.pipeline.roles import gang_plans
from orchestrator.pipeline.rounds import keep_initial, round_starts, sampling_of
from orchestrator.pipeline.shared_storage import check_object_storage, check_storage
from orchestrator.pipeline.writing import Writers
from orchestrator.preflight.data_files import remarks
from orchestrator.preflight.model_family import unpacked_remark
from orchestrator.preflight.tokenization import dated
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.exported import ExportedRound
from orchestrator.rundir.incidents import restart_incident, write_incident
from orchestrator.rundir.ledger import Fact, Ledger
from orchestrator.rundir.stop import StopFile
from orchestrator.signals import StopRequest
from workers.weights import remove_orphans, segment_path


class Attempt:
    """One attempt at a run, from the beginning or from the newest checkpoint of an earlier attempt."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        stop: StopRequest,
        stage: tuple[int, int] = (1, 1),
        start_cluster: Callable[..., Cluster] = RayCluster,
    ) -> None:
        """Set what to run; nothing is started. `stage`: number of the stage, and number of stages of the recipe."""
        self._config, self._directory, self._stop, self._stage = config, directory, stop, stage
        self._start_cluster = start_cluster
        self._cluster: Cluster | None = None
        self._recorder: Recorder | None = None
        self._resumed_steps = 0  # committed by earlier attempts
        self._has_begun = False  # its first step
        self._exported: ExportedRound | None = None  # round whose model is written; stays None if steps are no rounds

    @property
    def _steps_done(self) -> int:
        """Number of steps committed by this and earlier attempts."""
        return self._resumed_steps if self._recorder is None else self._recorder.steps_done

    def run(self) -> None:
        """Run the attempt until the model is written. However it ends, exit.json says how.

        Raises:
            RlhfError: the attempt failed, was interrupted, or was ended by an alarm.
        """
        config, directory, started = self._config, self._directory, time.monotonic()
        with (
            disk.explained(directory.path, directory.resume_command),
            directory.held(wait_for_stage(config.name, self._stage, self._stop)) as lock,
            uploading(config, directory, lock) as (uploads, fence),
            Ledger.open(directory.ledger, fence) as ledger,
            limits.Spare() as spare,
            self._stop.watching(StopFile(directory.path)),
        ):
            if directory.is_complete:
                print(f"{config.name}: complete, reused ({directory.artifact})")  # the driver that held the lock ran it
                return
            number = directory.start_attempt(after=max((record.attempt for record in ledger.records), default=0))
            if uploads is not None:
                uploads.follow(ledger)
            remove_orphans(config.name)
            monitor = open_monitor(config, directory)
            attempt = AttemptContext(
                number=number, config=config, directory=directory, ledger=ledger, monitor=monitor, uploads=uploads
            )
            try:
                self._stop.poll()
                max_steps = self._execute(attempt)
                self._stop.finish()
            except BaseException as error:
                self._stop.finish()
                spare.give_up()
                if uploads is not None:
                    uploads.rescue(error)
                explained = explain_error(error, directory, fence, stop=None if self._has_begun else self._stop)
                report_failure(attempt, explained, steps_done=self._steps_done, stop=self._stop.asked)
                if explained is error:
                    raise
                raise explained from error
            finally:
                if self._cluster is not None:
                    self._cluster.shutdown()
                Path(segment_path(config.name)).unlink(missing_ok=True)
                with suppress(Superseded, OSError):
                    fence()
                    for temporary in (directory.adapters, directory.base):
                        shutil.rmtree(temporary, ignore_errors=True)
            done, seconds = self._steps_done, time.monotonic() - started
            exported = self._exported
            attempt.record(Fact.finished, step=done, **({"round": exported.round} if exported else {}))
            report_completion(attempt, steps_done=done, max_steps=max_steps, seconds=seconds, exported=exported)
            StopFile(directory.path).withdraw()
            if self._recorder is not None:
                self._recorder.models.drop_all()
            if uploads is not None:
                uploads.flush()

    # -------------------------------------------------------------------------------------------- one attempt

    def _execute(self, attempt: AttemptContext) -> int:
        """Run the steps that are left, and write the model or the data set. Return the steps of the whole run."""
        disk.probe(attempt.directory.checkpoints)
        material = Material.read(attempt.config)
        data_set = data_set_of(attempt.config, material)
        require_models(attempt.config, attempt.monitor.note)
        point, alarms = self._resume(attempt, material)
        cluster, gangs = self._start_gangs(attempt, material)
        parts = self._build_parts(attempt, material, point, cluster, gangs, alarms)
        self._has_begun = True
        try:
            with self._stop.graceful(attempt.monitor.note):
                finished = loop.run(parts, steps_done=point.state.next_step, max_steps=material.max_steps)
        except Drifted as drifted:
            parts.recorder.checkpoint(self._steps_done)
            alarm = drift_alarm(drifted, attempt.config.reference, attempt.ledger)
            raise self._acted_on(attempt, alarm) from drifted
        exported = self._check_end(attempt, parts.recorder, alarms, finished=finished)
        if isinstance(parts.learners, Learners):
            parts.recorder.models.publish(exported)
            parts.learners.close()
        elif data_set is not None:
            cluster.shutdown()  # filtering takes minutes, in which others can have the GPUs
            write_data_set(attempt, data_set, num_steps=self._steps_done)
        self._exported = exported if in_rounds(attempt.config) else None
        return material.max_steps

    def _resume(self, attempt: AttemptContext, material: Material) -> tuple[ResumePoint, AlarmMonitor]:
        """Find the resume point, restore metrics and alarms, and start the monitor."""
        point = find_resume_point(attempt, material)
        self._resumed_steps = point.state.next_step
        alarms = restore_alarms(attempt, rewind_metrics(attempt, point))
        attempt.monitor.start(run_info(attempt, point, self._stage, max_steps=material.max_steps))
        unpacked = filter(None, [unpacked_remark(attempt.config)])
        audited = audit_remarks(attempt.config, material.sources) if point.checkpoint is None else ()
        for remark in [*remarks(attempt.config, material.sources), *audited, *unpacked, *point.remarks]:
            attempt.monitor.note(remark)
        return point, alarms

    def _start_gangs(self, attempt: AttemptContext, material: Material) -> tuple[Cluster, Mapping[str, Gang[Any]]]:
        config, logs = dated(attempt.config, attempt.ledger.records[0].time), attempt.directory.logs(attempt.number)
        monitor = attempt.monitor
        monitor.phase("driver", "starting Ray")
        self._cluster = cluster = self._start_cluster(
            config.cluster,
            log_directory=logs,
            on_restart=lambda restart: self._on_restart(attempt, restart),
            holding=attempt.directory.path,
        )
        self._stop.poll()  # Ray may have swallowed the exception of the signal handler
        cluster.when_idle(self._stop.poll)
        check_capacity(config, cluster, logs)
        plans = gang_plans(config, cuda=cluster.cuda, max_steps=material.max_steps)
        placed = partial(attempt.record, Fact.placed, step=self._steps_done, devices=devices_of(plans, cluster.cuda))
        gangs = cluster.spawn(plans, wait_for_room([plan.role for plan in plans], monitor, self._stop, placed))
        if attempt.stored is None:
            check_storage(attempt.directory.path, gangs)
        else:
            check_object_storage(attempt.stored, gangs)
        for plan in plans:
            monitor.phase(plan.role, "")
        monitor.phase("driver", "")
        return cluster, gangs

    def _build_parts(
        self,
        attempt: AttemptContext,
        material: Material,
        point: ResumePoint,
        cluster: Cluster,
        gangs: Mapping[str, Gang[Any]],
        alarms: AlarmMonitor,
    ) -> loop.Parts:
        """Build the parts of the loop, with learners and engines at the resume point.

        In a new run, evaluate the initial model.
        """
        config, directory = attempt.config, attempt.directory
        learners = self._learners(attempt, point, gangs)
        checkpointer = self._checkpointer(attempt, point, learners)
        rollouts = open_rollouts(attempt, material, point, cluster, self._stop.poll)
        self._recorder = recorder = Recorder(
            attempt,
            point,
            checkpointer,
            self._round_models(attempt, point, learners, alarms),
            build_evaluator(config, material, gangs),
            max_steps=material.max_steps,
            pace=Pace(config.checkpoint.every),
            rollouts=rollouts,
        )
        publisher = build_publisher(config, directory, gangs, cuda=cluster.cuda)
        if point.checkpoint is not None:
            publisher.publish(point.state.next_step)
        else:
            recorder.baseline()
        reference_policy = build_reference(config, directory, gangs, point.state, attempt.uploads)
        return loop.Parts(
            source=build_source(
                config,
                directory,
                material,
                gangs,
                reference_policy.begin,
                rollouts,
                rollbacks=len(rolled_back(attempt.ledger.records)),
            ),
            reference_policy=reference_policy,
            learners=learners,
            publisher=publisher,
            recorder=recorder,
            waited_s=cluster.waited_s,
            restarts=cluster.restarts,
            publishes=lambda: rollouts is not None or recorder.evaluates,
            ends_early=lambda: recorder.is_over_budget() or alarms.ends_step,
            stop=lambda: self._stop.requested() or alarms.verdict is not None or recorder.is_spent,
            halts=self._stop.requested,
            interruptible=self._stop.interruptible,
        )

    def _learners(
        self, attempt: AttemptContext, point: ResumePoint, gangs: Mapping[str, Gang[Any]]
    ) -> Learners | Writers:
        """Return the learners, in their initial state; the writer, where nothing is trained."""
        config, directory = attempt.config, attempt.directory
        if not config.algorithm.needs.trains:
            return Writers(gangs["writer"], directory.part, sampling_of(config))
        learners = Learners(
            gangs["policy"],
            gangs.get("critic"),
            needs_old=config.algorithm.needs_old_logprobs,
            every_updates=config.checkpoint.every_updates,
            progress=point.state.progress,
            rounds=round_starts(config, base=directory.base),
            is_shared=attempt.stored is None,
        )
        keep_initial(
            config, gangs["policy"], base=directory.base, reference=directory.reference(0), uploads=attempt.uploads
        )
        return learners

    def _checkpointer(self, attempt: AttemptContext, point: ResumePoint, learners: Learners | Writers) -> Checkpointer:
        """Return the writer of checkpoints, with the learners in the state of the resume point."""
        checkpointer = Checkpointer(
            learners,
            attempt.directory.checkpoints,
            keep=attempt.config.checkpoint.keep,
            about=point.about,
            fence=attempt.ledger.fence,
            stored=attempt.stored,
        )
        if attempt.uploads is not None:
            attempt.uploads.uploads_of(checkpointer.gangs())
        if point.checkpoint is not None:
            checkpointer.load(point.checkpoint)
        return checkpointer

    def _round_models(
        self, attempt: AttemptContext, point: ResumePoint, learners: Learners | Writers, alarms: AlarmMonitor
    ) -> RoundModels:
        def export(target: Path) -> None:
            assert isinstance(learners, Learners), "a run without learners has no model"
            write_model(learners.policy, target, uploads=attempt.uploads, fence=attempt.ledger.fence)

        return RoundModels(
            attempt.directory,
            attempt.config.best_round_by,
            export,
            steps_done=point.state.next_step,
            may_export=lambda number: (decision := alarms.promotion(number)) is None or decision.promoted,
            note=attempt.monitor.note,
            fence=attempt.ledger.fence,
            uploads=attempt.uploads,
        )

    def _check_end(
        self, attempt: AttemptContext, recorder: Recorder, alarms: AlarmMonitor, *, finished: bool
    ) -> ExportedRound:
        """Check that the run may end here with a model, and return the round (or step) that it is of.

        If the run is to be resumed, save a checkpoint first.

        Raises:
            Alarmed: an alarm ends the attempt, or the safety gate does not promote the model.
            Interrupted: the run was asked to stop.
        """
        directory, ledger, done = attempt.directory, attempt.ledger, recorder.steps_done
        if alarms.verdict is not None:
            recorder.checkpoint(done)
            if alarms.verdict.name == GATE:
                record_promotion(alarms, ledger, attempt=attempt.number, steps_done=done, exported=done)
            raise self._acted_on(attempt, alarms.verdict)
        if not finished and not recorder.is_spent:
            if done:
                recorder.checkpoint(done)
            raise self._stop.error(directory.resume_command)
        ledger.fence()
        exported = recorder.models.choose(done)
        promotion = record_promotion(alarms, ledger, attempt=attempt.number, steps_done=done, exported=exported.round)
        if promotion is not None and not promotion.promoted:
            raise gate_error(promotion, directory)
        return exported

    def _acted_on(self, attempt: AttemptContext, alarm: Alarm) -> Alarmed:
        done = self._steps_done
        return apply_action(alarm, attempt.directory, attempt.ledger, attempt=attempt.number, steps_done=done)

    def _on_restart(self, attempt: AttemptContext, restart: Restart) -> None:
        """Report a worker that was restarted in place."""
        count = f"{restart.number} of at most {restart.limit} times in this attempt"
        attempt.monitor.note(f"{restart.why}; restarted ({count})")
        incident = restart_incident(restart, attempt=attempt.number, step=self._steps_done)
        write_incident(attempt.directory.incidents, incident)
