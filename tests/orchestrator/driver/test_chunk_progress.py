"""Progress of sampling and scoring, from the chunks of the steps."""

from __future__ import annotations

from fakes import Events, EventSink

from orchestrator.driver.chunk_progress import ChunkProgress
from orchestrator.monitor import Monitor
from orchestrator.pipeline.sources import Chunk

STEMS = ("rollout-0",)


def chunk(index: int, prompts: int = 4, *, recalled: bool = False, scored: bool = True) -> Chunk:
    stems = None if recalled else STEMS
    return Chunk(
        index=index,
        prompts=prompts,
        experience=[],
        scores=[] if scored else None,
        file_stems=stems,
        score_file_stems=stems,
    )


def progress() -> tuple[ChunkProgress, Events]:
    events: Events = []
    return ChunkProgress(Monitor([EventSink(events)]), prompts_per_step=lambda index: 8), events


def test_prompts_are_counted_by_role_and_step() -> None:
    counted, events = progress()
    for role, index in (("rollout", 0), ("rollout", 1), ("reward", 0), ("reward", 1)):
        counted.arrived(role, 0, chunk(index))
    counted.arrived("rollout", 1, chunk(0))
    assert events == [
        "reward has 0 of 8 prompts of step 1",
        "rollout has 4 of 8 prompts of step 1",
        "rollout has 8 of 8 prompts of step 1",
        "reward has 4 of 8 prompts of step 1",
        "reward has 8 of 8 prompts of step 1",
        "reward has 0 of 8 prompts of step 2",
        "rollout has 4 of 8 prompts of step 2",
    ]


def test_scores_may_arrive_while_engines_are_steps_ahead() -> None:
    counted, events = progress()
    for index in range(3):
        counted.arrived("rollout", index, chunk(0))
    counted.arrived("reward", 0, chunk(0))
    counted.arrived("reward", 0, chunk(1))
    assert events[-2:] == ["reward has 4 of 8 prompts of step 1", "reward has 8 of 8 prompts of step 1"]


def test_a_step_that_is_taken_again_begins_at_0() -> None:
    counted, events = progress()
    for _ in range(2):
        counted.arrived("rollout", 0, chunk(0))
        counted.arrived("rollout", 0, chunk(1))
    assert events[-1] == "rollout has 8 of 8 prompts of step 1"


def test_further_prompts_of_dynamic_sampling_raise_the_total() -> None:
    counted, events = progress()
    for index in range(3):
        counted.arrived("rollout", 0, chunk(index))
    assert events[-1] == "rollout has 12 of 12 prompts of step 1"


def test_what_nothing_scores_is_not_reported_as_scored() -> None:
    counted, events = progress()
    counted.arrived("rollout", 0, chunk(0, scored=False))
    counted.arrived("reward", 0, chunk(0, scored=False))
    assert events == ["rollout has 4 of 8 prompts of step 1"]


def test_recalled_chunks_are_done_but_tell_no_speed() -> None:
    seen = []

    class PhaseSink(EventSink):
        def advance(self, phase) -> None:  # type: ignore[no-untyped-def]
            seen.append((phase.role, phase.done, phase.recalled, phase.per_s is None))

    counted = ChunkProgress(Monitor([PhaseSink([])]), prompts_per_step=lambda index: 8)
    counted.arrived("rollout", 0, chunk(0, recalled=True))
    counted.arrived("rollout", 0, chunk(1))
    assert seen == [("reward", 0, 0, True), ("rollout", 4, 4, True), ("rollout", 8, 4, False)]
