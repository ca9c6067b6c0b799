"""Reference policies: when the reference is refreshed, and how."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import Events, FakeLearner, FakeReference

from orchestrator.cluster.local import Done, LocalGang
from orchestrator.pipeline.exports import write_model
from orchestrator.pipeline.reference import (
    AdapterOffReference,
    Decision,
    Drifted,
    NoReference,
    ReferenceGang,
    Teacher,
    decide,
    metrics_of,
)
from orchestrator.pipeline.sources import Chunk
from workers.config import ReferenceConfig
from workers.types import Drift

NEAR = Drift(kl=0.25, kl_error=0.0, spread=0.5, saturated=0.0, num_completions=8)
FAR = Drift(kl=1.5, kl_error=0.0, spread=0.5, saturated=0.25, num_completions=8)


def chunk(index: int = 0) -> Chunk:
    return Chunk(index=index, prompts=1, experience=[Done(None)], scores=None)  # type: ignore[list-item]


# ------------------------------------------------------------------------------------------------ the refresh decision


@pytest.mark.parametrize(
    ("refresh", "step", "version", "drift", "decision"),
    [
        ("never", 5, 0, None, ("keep", "reference.refresh is never", 0)),
        ("every_round", 5, 4, None, ("refresh", "reference.refresh is every_round", 5)),
        ("every_round", 0, 0, None, ("keep", "it holds the current policy", 0)),
        ("when_drifted", 5, 5, NEAR, ("keep", "it holds the current policy", 5)),
        ("when_drifted", 5, 2, NEAR, ("keep", "KL 0.25 ± 0 is not certainly over max_kl 1", 2)),
        ("when_drifted", 5, 2, FAR, ("refresh", "KL 1.5 ± 0 > max_kl 1", 5)),
    ],
)
def test_decide(refresh: Any, step: int, version: int, drift: Drift | None, decision: tuple[Any, str, int]) -> None:
    found = decide(ReferenceConfig(refresh=refresh, max_kl=1.0), step=step, version=version, drift=drift)
    assert (found.action, found.reason, found.version, found.drift) == (*decision, drift)


@pytest.mark.parametrize(("kl_error", "action"), [(0.25, "refresh"), (0.26, "keep")])
def test_a_limit_is_exceeded_by_the_lower_bound_of_the_interval(kl_error: float, action: str) -> None:
    """1.5 − 1.96 · 0.25 = 1.01, and 1.5 − 1.96 · 0.26 = 0.9904."""
    config = ReferenceConfig(refresh="when_drifted", max_kl=1.0)
    assert decide(config, step=5, version=2, drift=replace(FAR, kl_error=kl_error)).action == action


def test_a_drift_equal_to_the_limit_keeps_the_reference() -> None:
    config = ReferenceConfig(refresh="when_drifted", max_kl=1.5)
    assert decide(config, step=5, version=2, drift=FAR).action == "keep"


@pytest.mark.parametrize(
    ("limits", "action"),
    [
        ({"abort_kl": 1.4}, "abort"),
        ({"roll_back_kl": 1.4}, "roll_back"),
        ({"roll_back_kl": 1.2, "abort_kl": 1.4}, "abort"),
        ({"roll_back_kl": 1.4, "abort_kl": 1.6}, "roll_back"),
        ({"abort_kl": 1.6}, "refresh"),
    ],
)
def test_the_guards_come_before_the_refresh(limits: dict[str, float], action: str) -> None:
    config = ReferenceConfig(refresh="every_round", **limits)  # type: ignore[arg-type]
    assert decide(config, step=5, version=2, drift=FAR).action == action


# ------------------------------------------------------------------------------------------------ reference policies


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def reference_policy(
    events: Events, refresh: Any, *, version: int = 0, drift: Drift | None = None, **more: Any
) -> ReferenceGang:
    reference: Any = LocalGang("reference", [FakeReference(events, rank=rank, drift=drift) for rank in range(2)])
    policy: Any = LocalGang("policy", [FakeLearner(events, rank=rank) for rank in range(2)])
    return ReferenceGang(
        reference,
        partial(write_model, policy),
        ReferenceConfig(refresh=refresh, max_kl=1.0, **more.pop("limits", {})),
        temperature=0.7,
        directory=lambda version: Path("reference") / f"version-{version}",
        version=version,
        **more,
    )


SCORED = ["reference 0: logprobs at 0.7", "reference 1: logprobs at 0.7"]
REFRESHED = [
    "policy 0: export .version-3.partial",
    "policy 1: export .version-3.partial",
    "reference 0: load version-3",
    "reference 1: load version-3",
]


def test_a_reference_that_never_changes_scores_as_soon_as_it_can() -> None:
    events: Events = []
    never = reference_policy(events, "never")
    never.begin(3, chunk(0))
    never.begin(3, chunk(1))
    assert events == SCORED * 2
    assert [len(never.logprobs(3, chunk(index))) for index in (0, 1)] == [2, 2]
    assert events == SCORED * 2  # not scored again
    never.logprobs(4, chunk())
    assert events == SCORED * 3


def test_every_round_the_policy_becomes_the_reference() -> None:
    events: Events = []
    moving = reference_policy(events, "every_round")
    moving.begin(3, chunk())
    assert events == []  # the reference may be refreshed by then
    moving.logprobs(3, chunk())
    assert events == [*REFRESHED, *SCORED]
    assert moving.version == 3
    assert moving.decision() == Decision(action="refresh", reason="reference.refresh is every_round", version=3)


def test_the_first_chunk_of_a_step_decides_for_all() -> None:
    events: Events = []
    moving = reference_policy(events, "every_round")
    for index in range(3):
        moving.logprobs(3, chunk(index))
    assert events == [*REFRESHED, *SCORED * 3]


def test_a_reference_that_is_kept_does_not_score_again_after_the_measurement() -> None:
    events: Events = []
    kept = reference_policy(events, "when_drifted", drift=NEAR)
    assert len(kept.logprobs(3, chunk())) == 2
    assert events == [*SCORED, "reference 0: drift of 2 shares"]
    assert kept.version == 0


def test_a_reference_that_has_drifted_is_refreshed_and_scores_again() -> None:
    events: Events = []
    replaced = reference_policy(events, "when_drifted", drift=FAR)
    assert len(replaced.logprobs(3, chunk())) == 2
    assert events == [*SCORED, "reference 0: drift of 2 shares", *REFRESHED, *SCORED]
    assert replaced.version == 3
    decision = replaced.decision()
    assert decision is not None
    assert decision.drift == FAR


def test_the_drift_is_measured_at_the_sampling_temperature_and_whatever_refresh_says() -> None:
    events: Events = []
    measuring = reference_policy(events, "never", drift=FAR, drift_temperature=lambda step: 1.0)
    measuring.logprobs(3, chunk())
    sampled = [line.replace("0.7", "1") for line in SCORED]
    assert events == [*sampled, "reference 0: drift of 2 shares", *SCORED]
    assert metrics_of(measuring.decision(), 3)["drift/kl"] == 1.5


@pytest.mark.parametrize("limit", ["roll_back_kl", "abort_kl"])
def test_a_drift_over_a_guard_ends_the_step_before_a_refresh(limit: str) -> None:
    events: Events = []
    guarded = reference_policy(
        events, "every_round", drift=FAR, drift_temperature=lambda step: 0.7, limits={limit: 1.4}
    )
    with pytest.raises(Drifted, match=rf"KL 1.5 ± 0 > {limit} 1.4"):
        guarded.logprobs(3, chunk())
    assert events == [*SCORED, "reference 0: drift of 2 shares"]


def test_a_step_that_is_resumed_in_its_middle_keeps_its_decision() -> None:
    events: Events = []
    decided = Decision(action="refresh", reason="as before", version=3)
    resumed = reference_policy(events, "every_round", version=3, decided=decided)
    events.clear()
    resumed.logprobs(3, chunk(0))
    resumed.logprobs(3, chunk(1))
    assert events == SCORED * 2, "neither measured nor refreshed again"
    assert resumed.decision() == decided
    resumed.logprobs(4, chunk(0))
    assert resumed.version == 4, "the next step decides for itself"


def test_a_resumed_run_loads_the_reference_that_it_had() -> None:
    events: Events = []
    reference_policy(events, "every_round", version=3)
    assert events == ["reference 0: load version-3", "reference 1: load version-3"]


# ------------------------------------------------------------------------------------------------ metrics


def test_metrics() -> None:
    kept = Decision(action="keep", reason="", version=2, drift=NEAR)
    assert metrics_of(kept, step=5) == {
        "ref/age": 3.0,
        "ref/refreshed": 0.0,
        "drift/kl": 0.25,
        "drift/kl_error": 0.0,
        "drift/spread": 0.5,
        "drift/saturated": 0.0,
        "drift/num_completions": 8.0,
    }
    refreshed = Decision(action="refresh", reason="", version=5)
    assert metrics_of(refreshed, step=5) == {"ref/age": 0.0, "ref/refreshed": 1.0}
    assert metrics_of(NoReference().decision(), step=5) == {}


def test_without_a_reference_there_are_no_log_probabilities() -> None:
    assert NoReference().logprobs(0, chunk()) is None


def test_a_teacher_scores_once_and_as_soon_as_it_can() -> None:
    events: Events = []
    gang: Any = LocalGang("teacher", [FakeReference(events, rank=rank) for rank in range(2)])
    teacher = Teacher(gang, temperature=1.0, states=True)
    teacher.begin(3, chunk())
    assert events == ["reference 0: hidden states", "reference 1: hidden states"]
    scored = teacher.logprobs(3, chunk())
    assert [handle.result().has_vectors for handle in scored] == [True, True]
    assert len(events) == 2
    teacher.logprobs(4, chunk())
    assert len(events) == 4
    assert teacher.decision() is None


def test_with_adapters_the_policy_scores_for_its_base() -> None:
    events: Events = []
    policy: Any = LocalGang("policy", [FakeLearner(events, rank=rank) for rank in range(2)])
    base = AdapterOffReference(policy, temperature=0.7, cache=True)
    base.begin(3, chunk())
    assert events == [], "the gang is training on the step before"
    assert len(base.logprobs(3, chunk())) == 2
    assert events == ["policy 0: base logprobs at 0.7 cached", "policy 1: base logprobs at 0.7 cached"]
    assert metrics_of(base.decision(), 3) == {"ref/age": 3.0, "ref/refreshed": 0.0}


def test_a_moving_average_is_of_the_reference_before_and_the_policy() -> None:
    events: Events = []
    average = reference_policy(events, "ema", limits={"ema_alpha": 0.75})
    average.logprobs(2, chunk())
    average.logprobs(3, chunk())
    exports = [event for event in events if "export" in event and event.startswith("policy 0")]
    assert exports == [
        "policy 0: export .version-2.partial with 0.25 of version-0",
        "policy 0: export .version-3.partial with 0.25 of version-2",
    ]
    decision = average.decision()
    assert decision is not None
    assert (decision.action, decision.version) == ("refresh", 3)
    assert decision.reason == "reference.refresh is ema: 0.25·reference + 0.75·policy"


def test_the_drift_is_measured_at_the_temperature_of_the_round() -> None:
    events: Events = []
    measuring = reference_policy(events, "never", drift=FAR, drift_temperature=lambda step: 0.7 if step == 3 else 1.3)
    measuring.logprobs(3, chunk())
    assert events == [*SCORED, "reference 0: drift of 2 shares"]
    events.clear()
    measuring.logprobs(4, chunk())
    hotter = [line.replace("0.7", "1.3") for line in SCORED]
    assert events == [*hotter, "reference 0: drift of 2 shares", *SCORED]
