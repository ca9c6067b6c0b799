"""Reference policies: when the reference is refreshed, and how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Events, FakeLearner, FakeReference

from orchestrator.cluster.local import Done, LocalGang
from orchestrator.pipeline.reference import (
    AdapterOffReference,
    Decision,
    NoReference,
    ReferenceGang,
    Teacher,
    decide,
    metrics_of,
)
from workers.config import ReferenceConfig
from workers.types import Drift

NEAR = Drift(kl=0.25, spread=0.5, saturated=0.0, num_completions=8)
FAR = Drift(kl=1.5, spread=0.5, saturated=0.25, num_completions=8)


def measure_nothing() -> Drift:
    raise AssertionError("the decision does not depend on the drift")


# ------------------------------------------------------------------------------------------------ the refresh decision


@pytest.mark.parametrize(
    ("refresh", "step", "version", "measure", "decision"),
    [
        ("never", 5, 0, measure_nothing, ("keep", "reference.refresh is never", 0)),
        ("every_round", 5, 4, measure_nothing, ("refresh", "reference.refresh is every_round", 5)),
        ("every_round", 0, 0, measure_nothing, ("keep", "it holds the current policy", 0)),
        ("when_drifted", 5, 5, measure_nothing, ("keep", "it holds the current policy", 5)),
        ("when_drifted", 5, 2, lambda: NEAR, ("keep", "KL 0.25 <= max_kl 1", 2)),
        ("when_drifted", 5, 2, lambda: FAR, ("refresh", "KL 1.5 > max_kl 1", 5)),
    ],
)
def test_decide(
    refresh: Any, step: int, version: int, measure: Callable[[], Drift], decision: tuple[Any, str, int]
) -> None:
    found = decide(ReferenceConfig(refresh=refresh, max_kl=1.0), step=step, version=version, measure=measure)
    assert (found.action, found.reason, found.version) == decision
    assert (found.drift is None) == (measure is measure_nothing)


def test_a_drift_equal_to_the_limit_keeps_the_reference() -> None:
    config = ReferenceConfig(refresh="when_drifted", max_kl=1.5)
    assert decide(config, step=5, version=2, measure=lambda: FAR).action == "keep"


# ------------------------------------------------------------------------------------------------ reference policies


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def reference_policy(events: Events, refresh: Any, *, version: int = 0, drift: Drift | None = None) -> ReferenceGang:
    reference: Any = LocalGang("reference", [FakeReference(events, rank=rank, drift=drift) for rank in range(2)])
    policy: Any = LocalGang("policy", [FakeLearner(events, rank=rank) for rank in range(2)])
    return ReferenceGang(
        reference,
        policy,
        ReferenceConfig(refresh=refresh, max_kl=1.0),
        temperature=0.7,
        directory=lambda version: Path("reference") / f"version-{version}",
        version=version,
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
    never.begin(3, [Done(None)])
    assert events == SCORED
    assert len(never.logprobs(3, [Done(None)]).handles or ()) == 2
    assert events == SCORED  # not scored again
    never.logprobs(4, [Done(None)])
    assert events == SCORED * 2


def test_every_round_the_policy_becomes_the_reference() -> None:
    events: Events = []
    moving = reference_policy(events, "every_round")
    moving.begin(3, [Done(None)])
    assert events == []  # the reference may be refreshed by then
    decision = moving.logprobs(3, [Done(None)]).decision
    assert events == [*REFRESHED, *SCORED]
    assert moving.version == 3
    assert decision == Decision(action="refresh", reason="reference.refresh is every_round", version=3)


def test_a_reference_that_is_kept_does_not_score_again_after_the_measurement() -> None:
    events: Events = []
    kept = reference_policy(events, "when_drifted", drift=NEAR)
    assert len(kept.logprobs(3, [Done(None)]).handles or ()) == 2
    assert events == [*SCORED, "reference 0: drift of 2 shares"]
    assert kept.version == 0


def test_a_reference_that_has_drifted_is_refreshed_and_scores_again() -> None:
    events: Events = []
    replaced = reference_policy(events, "when_drifted", drift=FAR)
    scored = replaced.logprobs(3, [Done(None)])
    assert len(scored.handles or ()) == 2
    assert events == [*SCORED, "reference 0: drift of 2 shares", *REFRESHED, *SCORED]
    assert replaced.version == 3
    assert scored.decision is not None
    assert scored.decision.drift == FAR


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
        "drift/spread": 0.5,
        "drift/saturated": 0.0,
        "drift/num_completions": 8.0,
    }
    refreshed = Decision(action="refresh", reason="", version=5)
    assert metrics_of(refreshed, step=5) == {"ref/age": 0.0, "ref/refreshed": 1.0}
    assert metrics_of(NoReference().logprobs(5, []).decision, step=5) == {}


def test_without_a_reference_there_are_no_log_probabilities() -> None:
    assert NoReference().logprobs(0, []).handles is None


def test_a_teacher_scores_once_and_as_soon_as_it_can() -> None:
    events: Events = []
    gang: Any = LocalGang("teacher", [FakeReference(events, rank=rank) for rank in range(2)])
    teacher = Teacher(gang, temperature=1.0, states=True)
    teacher.begin(3, [Done(None)])
    assert events == ["reference 0: hidden states", "reference 1: hidden states"]
    scored = teacher.logprobs(3, [Done(None)])
    assert [handle.result().has_vectors for handle in scored.handles or ()] == [True, True]
    assert len(events) == 2
    teacher.logprobs(4, [Done(None)])
    assert len(events) == 4
    assert scored.decision is None


def test_with_adapters_the_policy_scores_for_its_base() -> None:
    events: Events = []
    policy: Any = LocalGang("policy", [FakeLearner(events, rank=rank) for rank in range(2)])
    base = AdapterOffReference(policy, temperature=0.7, cache=True)
    base.begin(3, [])
    assert events == [], "the gang is training on the step before"
    scored = base.logprobs(3, [])
    assert len(scored.handles or ()) == 2
    assert events == ["policy 0: base logprobs at 0.7 cached", "policy 1: base logprobs at 0.7 cached"]
    assert metrics_of(scored.decision, 3) == {"ref/age": 3.0, "ref/refreshed": 0.0}
