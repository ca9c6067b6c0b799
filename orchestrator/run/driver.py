"""From a recipe to a finished run: stage by stage, with a clean end whatever happens.

recipe ──► stage ──► directory (locked) ──► cluster ──► gangs ──► parts ──► loop ──► model, exit.json
             │                                                      ▲
             └── complete with the same config: reused              └── a checkpoint, when the run goes on
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator import disk, loop
from orchestrator.cluster.base import Cluster, Gang, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import Recipe, RunConfig, resolved
from orchestrator.data import read_examples, read_prompts
from orchestrator.data.remarks import remarks
from orchestrator.errors import Alarmed, Interrupted, Problem, ResumeError, RlhfError
from orchestrator.evaluation.held_out import Evaluator, HeldOut, Several
from orchestrator.evaluation.preferences import HeldOutPairs
from orchestrator.monitor import Monitor, Outcome, RunInfo, open_monitor
from orchestrator.monitor.alarms import Watch
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.pipeline.anchor import Anchor, BaseAnchor, NoAnchor, ReferenceAnchor, TeacherAnchor
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.publishing import AdapterPublisher, EnginePublisher, NoPublisher, Publisher
from orchestrator.pipeline.sources import Begun, DatasetSource, RolloutSource, Source
from orchestrator.run.checkpoint import Checkpointer, State, list_checkpoints, newest
from orchestrator.run.consequences import follow, watch
from orchestrator.run.directory import RunDirectory
from orchestrator.run.ledger import Account, Fact, Ledger, account
from orchestrator.run.recorder import Recorder
from orchestrator.run.roles import asks_states, gang_plans, shares_base, teacher_samples
from orchestrator.run.stop import Stop
from workers.config import DistillConfig, DpoConfig, FromDataset, Sampled
from workers.learner import Learner
from workers.needs import NEEDS
from workers.types import Example, Prompt, Sampling
from workers.weights import segment_path


def run_recipe(recipe: Recipe, *, debug: bool = False) -> int:
    """Run every stage that is not complete yet; returns 0. Raises RlhfError when everything has been put in order."""
    with Stop() as stop:
        for index, config in enumerate(recipe.stages):
            directory = RunDirectory.create(config, recipe.text)
            if directory.is_complete:
                print(f"{config.name}: complete, reused ({directory.model})")
            else:
                attempts(config, directory, stop, stage=(index + 1, len(recipe.stages)))
    return 0


def resume_run(path: Path, *, debug: bool = False) -> int:
    """Go on with a run from its newest checkpoint. Raises ResumeError when it has none."""
    directory = RunDirectory.open(path)
    if directory.is_complete:
        print(f"{directory.name}: complete, nothing to resume ({directory.model})")
        return 0
    newest(directory.checkpoints)
    with Stop() as stop:
        attempts(directory.config(), directory, stop)
    return 0


def attempts(config: RunConfig, directory: RunDirectory, stop: Stop, **given: Any) -> None:
    """One attempt; another one each time an alarm has sent the run back, which each alarm does once."""
    while True:
        try:
            return Attempt(config, directory, stop, **given).run()
        except Alarmed as alarm:
            if alarm.action != "roll_back":
                raise


class Attempt:
    """One life of a run: from nothing, or from the newest checkpoint of the attempt before."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        stop: Stop,
        stage: tuple[int, int] = (1, 1),
        start_cluster: Callable[..., Cluster] = RayCluster,
    ) -> None:
        self._config, self._directory, self._stop, self._stage = config, directory, stop, stage
        self._start_cluster = start_cluster
        self._prompts: tuple[Prompt, ...] = ()
        self._examples: tuple[Example, ...] = ()
        self._cluster: Cluster | None = None
        self._turns = 0  # committed by this or an earlier attempt
        self._watch = Watch(config.alarms)

    def run(self) -> None:
        """Ends with the model written, or with exit.json saying why not. Raises RlhfError."""
        directory, started = self._directory, time.monotonic()
        with directory.held(), Ledger.open(directory.ledger) as ledger:
            self._number = directory.start_attempt()
            monitor = open_monitor(self._config, directory)
            try:
                self._live(ledger, monitor)
            except BaseException as error:
                self._failed(error, monitor)
                raise
            finally:
                if self._cluster is not None:
                    self._cluster.shutdown()
                Path(self._segment).unlink(missing_ok=True)
                shutil.rmtree(directory.adapters, ignore_errors=True)
            ledger.append(Fact.finished, attempt=self._number, step=self._turns)
            directory.write_exit(
                cause="completed",
                message="all steps done",
                exit_code=0,
                attempt=self._number,
                step=self._turns,
                alarms=self._watch.told(),
            )
            monitor.close(self._success(time.monotonic() - started))

    # -------------------------------------------------------------------------------------------- a life

    def _live(self, ledger: Ledger, monitor: Monitor) -> None:
        config, directory = self._config, self._directory
        self._read_data()
        resumed = list_checkpoints(directory.checkpoints)
        checkpoint, state = (
            newest(directory.checkpoints) if resumed else (None, State(next_step=0, reference_version=0))
        )
        ledger.append(Fact.attempt, attempt=self._number, step=state.next_step)
        self._refuse_gaps(account(ledger.records), state.next_step)
        self._turns = state.next_step
        told = MetricsFile(directory.metrics)
        told.rewind(state.next_step if checkpoint else -1)
        self._num_tokens = max((row.get("num_tokens") or 0.0 for row in told.rows()), default=0.0)
        self._watch = monitor.watch = watch(config.alarms, ledger, told.rows(), rounds=_in_rounds(config))
        monitor.start(self._info(state.next_step))
        for remark in remarks(self._examples, config.algorithm):
            monitor.note(remark)
        monitor.phase("driver", "starting Ray")
        self._cluster = cluster = self._start_cluster(config.cluster, log_directory=directory.logs(self._number))
        plans = gang_plans(config, cuda=cluster.cuda, max_steps=self._max_steps)
        for plan in plans:
            monitor.phase(plan.role, "loading")
        gangs = cluster.spawn(plans)
        for plan in plans:
            monitor.phase(plan.role, "")
        monitor.phase("driver", "")
        learners = Learners(gangs["policy"], gangs.get("critic"), needs_old=config.algorithm.needs_old_logprobs)
        checkpointer = Checkpointer(learners, directory.checkpoints, keep=config.checkpoint.keep)
        if checkpoint is not None:
            checkpointer.load(checkpoint)
        recorder = self._recorder(ledger, monitor, checkpointer, gangs, state)
        publisher = self._publisher(gangs, cuda=cluster.cuda)
        if checkpoint is not None:
            publisher.publish(state.next_step)
        else:
            recorder.baseline()
        anchor = self._anchor(gangs, state.reference_version)
        parts = loop.Parts(
            source=self._source(gangs, anchor.begin),
            anchor=anchor,
            learners=learners,
            publisher=publisher,
            recorder=recorder,
            waited_s=cluster.waited_s,
            stop=lambda: self._stop.asked() or self._watch.verdict is not None,
        )
        try:
            with self._stop.at_the_end_of_a_step(monitor.note):
                finished = loop.run(parts, first_step=state.next_step, max_steps=self._max_steps)
        finally:
            self._turns = recorder.turns
        if self._watch.verdict is not None:
            recorder.checkpoint(self._turns)
            raise follow(self._watch.verdict, directory, ledger, attempt=self._number, turns=self._turns)
        if not finished:
            recorder.checkpoint(self._turns)
            raise Interrupted(self._stop.signal, resume=directory.resume_command)
        self._export(learners)
        wait([*learners.policy.all(Learner.close), *(learners.critic.all(Learner.close) if learners.critic else [])])

    def _refuse_gaps(self, told: Account, next_step: int) -> None:
        """The checkpoint says that `next_step` turns were trained; the ledger must know of each of them, once."""
        if told.trained == next_step and not told.lost and not told.repeated:
            return
        raise ResumeError(
            Problem(
                what=f"the ledger knows of {told.trained} trained steps, the checkpoint of {next_step}",
                where=str(self._directory.ledger),
                why="records were removed from the file, or checkpoints of another run put beside it",
                fix="restore the run directory from a copy, or start the recipe anew under another name",
            )
        )

    def _export(self, learners: Learners) -> None:
        aside = disk.fresh(self._directory.model)
        wait(learners.policy.all(Learner.export, str(aside)))
        disk.publish(self._directory.model)

    # -------------------------------------------------------------------------------------------- its parts

    def _read_data(self) -> None:
        data, algorithm = self._config.data, self._config.algorithm
        if data.prompts is not None:
            self._prompts = read_prompts(data.prompts, split=data.split)
        if data.dataset is not None:
            self._examples = read_examples(data.dataset, algorithm=algorithm.type, split=data.split)
        if algorithm.max_steps is not None:
            self._max_steps = algorithm.max_steps
        else:
            assert isinstance(algorithm, FromDataset)
            self._max_steps = math.ceil(len(self._examples) * algorithm.num_train_epochs / algorithm.batch_size)

    def _source(self, gangs: Mapping[str, Gang[Any]], begun: Begun) -> Source:
        config, algorithm = self._config, self._config.algorithm
        if config.data.prompts is None:
            assert isinstance(algorithm, FromDataset)
            return DatasetSource(
                gangs["dataset"],
                self._examples,
                batch_size=algorithm.batch_size,
                seed=config.seed,
                max_steps=self._max_steps,
                begun=begun,
            )
        assert isinstance(algorithm, Sampled)
        return RolloutSource(
            gangs["rollout"],
            gangs.get("reward"),
            self._prompts,
            Sampling(
                num_generations=algorithm.num_generations,
                max_completion_length=config.rollout.max_completion_length,
                temperature=config.rollout.temperature,
                top_p=config.rollout.top_p,
                top_k=config.rollout.top_k,
                ignore_eos=config.rollout.ignore_eos,
                seed=config.seed,
            ),
            prompts_per_step=algorithm.prompts_per_step,
            max_staleness=config.max_staleness,
            max_resamples=getattr(algorithm, "max_resamples", 0)
            if getattr(algorithm, "dynamic_sampling", False)
            else 0,
            max_steps=self._max_steps,
            begun=begun,
        )

    def _anchor(self, gangs: Mapping[str, Gang[Any]], version: int) -> Anchor:
        config = self._config
        if isinstance(config.algorithm, DistillConfig):
            temperature, states = config.algorithm.temperature, asks_states(config)
            return TeacherAnchor(gangs["teacher"], temperature=temperature, states=states)
        if not config.algorithm.needs_reference:
            return NoAnchor()
        temperature = config.rollout.temperature if NEEDS[config.algorithm.type].on_policy else 1.0
        if shares_base(config):
            return BaseAnchor(gangs["policy"], temperature=temperature, cache=config.reference.cache)
        return ReferenceAnchor(
            gangs["reference"],
            gangs["policy"],
            config.reference,
            temperature=temperature,
            sampling_temperature=config.rollout.temperature,
            directory=self._directory.reference,
            version=version,
        )

    def _publisher(self, gangs: Mapping[str, Gang[Any]], *, cuda: bool) -> Publisher:
        if "rollout" not in gangs or teacher_samples(self._config):
            return NoPublisher()
        if self._config.model.lora is not None:
            return AdapterPublisher(gangs["policy"], gangs["rollout"], directory=self._directory.adapters)
        return EnginePublisher(
            gangs["policy"],
            gangs["rollout"],
            cuda=cuda,
            segment=self._segment,
            tensor_parallel_size=self._config.rollout.tensor_parallel_size,
        )

    def _recorder(
        self,
        ledger: Ledger,
        monitor: Monitor,
        checkpointer: Checkpointer,
        gangs: Mapping[str, Gang[Any]],
        state: State,
    ) -> Recorder:
        config, evaluators = self._config, self._evaluators(gangs)
        return Recorder(
            self._directory,
            ledger,
            monitor,
            checkpointer,
            Several(evaluators) if evaluators else None,
            attempt=self._number,
            turns=state.next_step,
            num_tokens=self._num_tokens,
            max_steps=self._max_steps,
            evaluate_every=config.evaluation.every,
            checkpoint_every=config.checkpoint.every,
            sampled=config.data.prompts is not None,
            rounds=_in_rounds(config),
            reference_version=state.reference_version,
        )

    def _evaluators(self, gangs: Mapping[str, Gang[Any]]) -> list[Evaluator]:
        config, found = self._config, list[Evaluator]()
        if config.data.eval_prompts is not None:
            prompts = read_prompts(config.data.eval_prompts, split=config.data.eval_split)
            found.append(
                HeldOut(
                    gangs["rollout"],
                    gangs["reward"],
                    prompts[: config.evaluation.max_prompts],
                    max_completion_length=config.rollout.max_completion_length,
                    seed=config.seed,
                )
            )
        if config.data.eval_dataset is not None:
            kind, split = config.algorithm.type, config.data.eval_split
            pairs = read_examples(config.data.eval_dataset, algorithm=kind, split=split)
            pairs = pairs[: config.evaluation.max_prompts]
            found.append(HeldOutPairs(gangs["dataset"], gangs["policy"], gangs.get("reference"), pairs))
        return found

    # -------------------------------------------------------------------------------------------- its end

    @property
    def _segment(self) -> str:
        return segment_path(f"{self._config.name}-{os.getpid()}")

    def _info(self, first_step: int) -> RunInfo:
        config, rounds = self._config, _in_rounds(self._config)
        return RunInfo(
            name=config.name,
            kind="iter_dpo" if rounds else config.algorithm.type,
            model=config.model.path or "",
            directory=self._directory.path,
            num_steps=self._max_steps,
            roles=tuple(p.role for p in gang_plans(config, cuda=False, max_steps=self._max_steps)),
            first_step=first_step,
            attempt=self._number,
            stage=self._stage[0],
            num_stages=self._stage[1],
            step_word="round" if rounds else "step",
            config=resolved(config),
        )

    def _success(self, seconds: float) -> Outcome:
        directory, rows = self._directory, MetricsFile(self._directory.metrics).rows()
        word = "round" if _in_rounds(self._config) else "step"
        hints = idle_warning(rows, word)
        for name, told in (("eval/reward", "held-out reward (greedy)"), ("eval/accuracy", "held-out accuracy")):
            measured = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            curve = ", ".join(f"{'base' if step == 0 else f'{word} {step}'} {value:.3f}" for step, value in measured)
            hints += [f"{told}: {curve}"] if measured else []
        scores = NEEDS[self._config.algorithm.type].head == "scores"
        loads = "AutoModelForSequenceClassification" if scores else "transformers and with `vllm serve`"
        hints += [f"alarm {alarm.name} since {word} {alarm.step}: {alarm.saw}" for alarm in self._watch.alarms]
        hints += [
            f"model: {_short(directory.model)}  (loads with {loads})",
            f"metrics: {_short(directory.metrics)}"
            + (f"   samples: {_short(samples)}" if (samples := directory.path / "samples").is_dir() else ""),
        ]
        return Outcome(ok=True, message=f"done: {self._turns} {word}s in {_minutes(seconds)}", hints=tuple(hints))

    def _failed(self, error: BaseException, monitor: Monitor) -> None:
        """Say how it ended, wherever that can still be said."""
        known = error if isinstance(error, RlhfError) else None
        final = isinstance(error, Alarmed) and error.action == "stop"
        resumable = bool(list_checkpoints(self._directory.checkpoints)) and not final
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        hints = (f"resume with: {self._directory.resume_command}",) if resumable else ()
        with suppress(OSError):
            self._directory.write_exit(
                cause=known.cause if known else "error",
                message=str(error) or type(error).__name__,
                exit_code=known.exit_code if known else 1,
                attempt=self._number,
                step=self._turns,
                alarms=self._watch.told(),
                **({"resume": None} if final else {}),
            )
        with suppress(Exception):
            monitor.close(Outcome(ok=False, message=message, hints=hints))


def idle_warning(rows: Sequence[Mapping[str, Any]], word: str) -> list[str]:
    """One line when there were steps that learned nothing, with their share; `rows` are those of the metrics."""
    learned = [row["num_updates"] > 0 for row in rows if row.get("num_updates") is not None]
    if all(learned):
        return []
    idle = learned.count(False)
    return [
        f"warning: {idle} of {len(learned)} {word}s ({idle / len(learned):.0%}) learned nothing, because no group of "
        f"completions had rewards that differ: too easy, too hard, or a broken reward? the samples show it"
    ]


def _in_rounds(config: RunConfig) -> bool:
    """Iterative DPO: a step is a round."""
    return isinstance(config.algorithm, DpoConfig) and config.data.prompts is not None


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
