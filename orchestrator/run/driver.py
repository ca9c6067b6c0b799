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
from orchestrator.cluster.base import Cluster, Gang, Restart, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import Recipe, RunConfig, resolved
from orchestrator.config.data_files import Source as DataSource
from orchestrator.config.data_files import read_all, remarks, tokens_of
from orchestrator.errors import Interrupted, RlhfError
from orchestrator.evaluation.held_out import Evaluator, HeldOut, Several
from orchestrator.evaluation.preferences import HeldOutPairs
from orchestrator.monitor import Monitor, Outcome, RunInfo, open_monitor
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.pipeline.anchor import Anchor, BaseAnchor, Decision, NoAnchor, ReferenceAnchor, TeacherAnchor
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.publishing import AdapterPublisher, EnginePublisher, NoPublisher, Publisher
from orchestrator.pipeline.sources import Begun, DatasetSource, Keeper, RolloutSource, Source
from orchestrator.run.changes import changed, keep
from orchestrator.run.checkpoint import Checkpointer, newest
from orchestrator.run.devices import admit
from orchestrator.run.directory import RunDirectory
from orchestrator.run.incidents import first_cause, of_restart, write_incident
from orchestrator.run.ledger import Fact, Ledger
from orchestrator.run.manifest import State, list_checkpoints, read_about
from orchestrator.run.provenance import compare, describe
from orchestrator.run.recorder import Recorder
from orchestrator.run.roles import asks_states, gang_plans, shares_base, teacher_samples
from orchestrator.run.rollouts import Rollouts
from orchestrator.run.stop import Stop
from workers.config import DistillConfig, DpoConfig, FromDataset, Sampled
from workers.learner import Learner
from workers.needs import NEEDS
from workers.types import Example, Prompt, Sampling
from workers.weights import remove_orphans, segment_path


def run_recipe(recipe: Recipe, *, debug: bool = False) -> int:
    """Run every stage that is not complete yet; returns 0. Raises RlhfError when everything has been put in order."""
    with Stop() as stop:
        for index, config in enumerate(recipe.stages):
            directory = RunDirectory.create(config, recipe.text)
            if directory.is_complete:
                print(f"{config.name}: complete, reused ({directory.model})")
            else:
                Attempt(config, directory, stop, stage=(index + 1, len(recipe.stages))).run()
    return 0


def resume_run(path: Path, overrides: Sequence[str] = (), *, debug: bool = False) -> int:
    """Go on with a run from its newest checkpoint, some of its settings changed. Raises ResumeError when it has none,
    or when it would be another run."""
    directory = RunDirectory.open(path)
    if directory.is_complete:
        print(f"{directory.name}: complete, nothing to resume ({directory.model})")
        return 0
    config = changed(directory, overrides)
    newest(directory.checkpoints)
    with Stop() as stop:
        Attempt(config, directory, stop).run()
    return 0


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
        self._data: Mapping[str, DataSource] = {}
        self._prompts: Sequence[Prompt] = ()
        self._examples: Sequence[Example] = ()
        self._cluster: Cluster | None = None
        self._turns = 0  # committed by this or an earlier attempt
        self._recording: Recorder | None = None

    def run(self) -> None:
        """Ends with the model written, or with exit.json saying why not. Raises RlhfError."""
        directory, started = self._directory, time.monotonic()
        with (
            disk.explained(directory.path, directory.resume_command),
            directory.held(),
            Ledger.open(directory.ledger) as ledger,
        ):
            self._number = directory.start_attempt()
            remove_orphans(self._config.name)
            monitor = open_monitor(self._config, directory)
            try:
                self._live(ledger, monitor)
            except BaseException as error:
                self._failed(disk.explain(error, directory.path, directory.resume_command), monitor)
                raise
            finally:
                if self._cluster is not None:
                    self._cluster.shutdown()
                Path(self._segment).unlink(missing_ok=True)
                shutil.rmtree(directory.adapters, ignore_errors=True)
            ledger.append(Fact.finished, attempt=self._number, step=self._turns)
            directory.write_exit(
                cause="completed", message="all steps done", exit_code=0, attempt=self._number, step=self._turns
            )
            monitor.close(self._success(time.monotonic() - started))

    # -------------------------------------------------------------------------------------------- a life

    def _live(self, ledger: Ledger, monitor: Monitor) -> None:
        config, directory = self._config, self._directory
        disk.probe(directory.checkpoints)
        self._read_data()
        resumed = list_checkpoints(directory.checkpoints)
        checkpoint, state, refused = (
            newest(directory.checkpoints) if resumed else (None, State(next_step=0, reference_version=0), [])
        )
        about = describe(config, self._prompts, self._examples)
        differs = compare(read_about(checkpoint), about) if checkpoint else []
        changes = keep(directory, config)
        ledger.append(
            Fact.attempt,
            attempt=self._number,
            step=state.next_step,
            **({"refused": list(refused)} if refused else {}),
            **({"changed": changes} if changes else {}),
        )
        ledger.refuse_gaps(state.next_step)
        self._turns = state.next_step
        told = MetricsFile(directory.metrics)
        told.rewind(state.next_step if checkpoint else -1)
        self._num_tokens = max((row.get("num_tokens") or 0.0 for row in told.rows()), default=0.0)
        monitor.start(self._info(state.next_step))
        lost = [f"not used: {damage}; going on from the checkpoint before it" for damage in refused]
        for remark in [*remarks(config, self._data), *lost, *differs]:
            monitor.note(remark)
        monitor.phase("driver", "starting Ray")
        self._cluster = cluster = self._start_cluster(
            config.cluster,
            log_directory=directory.logs(self._number),
            told=lambda restart: self._restarted(restart, monitor),
        )
        admit(config, cluster, directory.logs(self._number))
        plans = gang_plans(config, cuda=cluster.cuda, max_steps=self._max_steps)
        for plan in plans:
            monitor.phase(plan.role, "loading")
        gangs = cluster.spawn(plans)
        for plan in plans:
            monitor.phase(plan.role, "")
        monitor.phase("driver", "")
        learners = Learners(
            gangs["policy"],
            gangs.get("critic"),
            needs_old=config.algorithm.needs_old_logprobs,
            every_updates=config.checkpoint.every_updates,
            progress=state.progress,
        )
        checkpointer = Checkpointer(learners, directory.checkpoints, keep=config.checkpoint.keep, about=about)
        if checkpoint is not None:
            checkpointer.load(checkpoint)
        rollouts = None
        if config.data.prompts is not None:
            rollouts = Rollouts(directory.rollouts, ledger, attempt=self._number, note=monitor.note)
            if state.updates:
                rollouts.require(state.next_step)
        self._recording = recorder = self._recorder(ledger, monitor, checkpointer, rollouts, gangs, state)
        publisher = self._publisher(gangs, cuda=cluster.cuda)
        if checkpoint is not None:
            publisher.publish(state.next_step)
        else:
            recorder.baseline()
        anchor = self._anchor(gangs, state)
        parts = loop.Parts(
            source=self._source(gangs, anchor.begin, rollouts),
            anchor=anchor,
            learners=learners,
            publisher=publisher,
            recorder=recorder,
            waited_s=cluster.waited_s,
            restarts=cluster.restarts,
            stop=self._stop.asked,
        )
        try:
            with self._stop.at_the_end_of_a_step(monitor.note):
                finished = loop.run(parts, first_step=state.next_step, max_steps=self._max_steps)
        finally:
            self._turns = recorder.turns
        if not finished:
            recorder.checkpoint(self._turns)
            raise Interrupted(self._stop.signal, resume=directory.resume_command)
        self._export(learners)
        wait([*learners.policy.all(Learner.close), *(learners.critic.all(Learner.close) if learners.critic else [])])

    def _export(self, learners: Learners) -> None:
        aside = disk.fresh(self._directory.model)
        wait(learners.policy.all(Learner.export, str(aside)))
        disk.publish(self._directory.model)

    # -------------------------------------------------------------------------------------------- its parts

    def _read_data(self) -> None:
        algorithm = self._config.algorithm
        self._data = data = read_all(self._config, tokens_of(self._config.model.path))
        self._prompts = data["prompts"].rows if "prompts" in data else ()
        self._examples = data["dataset"].rows if "dataset" in data else ()
        if algorithm.max_steps is not None:
            self._max_steps = algorithm.max_steps
        else:
            assert isinstance(algorithm, FromDataset)
            self._max_steps = math.ceil(len(self._examples) * algorithm.num_train_epochs / algorithm.batch_size)

    def _source(self, gangs: Mapping[str, Gang[Any]], begun: Begun, keeper: Keeper | None) -> Source:
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
            keeper=keeper,
        )

    def _anchor(self, gangs: Mapping[str, Gang[Any]], state: State) -> Anchor:
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
            version=state.reference_version,
            decided=None if state.decision is None else Decision.of(state.decision),
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
        rollouts: Rollouts | None,
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
            rollouts=rollouts,
            rounds=_in_rounds(config),
            reference_version=state.reference_version,
        )

    def _evaluators(self, gangs: Mapping[str, Gang[Any]]) -> list[Evaluator]:
        config, found = self._config, list[Evaluator]()
        if "eval_prompts" in self._data:
            found.append(
                HeldOut(
                    gangs["rollout"],
                    gangs["reward"],
                    self._data["eval_prompts"].rows[: config.evaluation.max_prompts],
                    max_completion_length=config.rollout.max_completion_length,
                    seed=config.seed,
                )
            )
        if "eval_dataset" in self._data:
            pairs = self._data["eval_dataset"].rows[: config.evaluation.max_prompts]
            found.append(HeldOutPairs(gangs["dataset"], gangs["policy"], gangs.get("reference"), pairs))
        return found

    # -------------------------------------------------------------------------------------------- its end

    @property
    def _segment(self) -> str:
        return segment_path(self._config.name)

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
        hints += [
            f"model: {_short(directory.model)}  (loads with {loads})",
            f"metrics: {_short(directory.metrics)}"
            + (f"   samples: {_short(samples)}" if (samples := directory.path / "samples").is_dir() else ""),
        ]
        return Outcome(ok=True, message=f"done: {self._turns} {word}s in {_minutes(seconds)}", hints=tuple(hints))

    def _restarted(self, restart: Restart, monitor: Monitor) -> None:
        monitor.note(f"{restart.why}; started again, {restart.number} of {restart.limit} times in this attempt")
        turns = self._turns if self._recording is None else self._recording.turns
        write_incident(self._directory.incidents, of_restart(restart, attempt=self._number, step=turns))

    def _failed(self, error: BaseException, monitor: Monitor) -> None:
        """Say how it ended, wherever that can still be said."""
        known = error if isinstance(error, RlhfError) else None
        resumable = bool(list_checkpoints(self._directory.checkpoints))
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        hints = (f"resume with: {self._directory.resume_command}",) if resumable else ()
        with suppress(OSError):
            self._directory.write_exit(
                cause=known.cause if known else "error",
                message=str(error) or type(error).__name__,
                exit_code=known.exit_code if known else 1,
                attempt=self._number,
                step=self._turns,
                first_cause=first_cause(error, attempt=self._number),
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
