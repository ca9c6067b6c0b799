"""Cost of a run, from ledgers written by hand."""

from __future__ import annotations

from typing import Any

from orchestrator.rundir.cost import Meter, by_step
from orchestrator.rundir.ledger import Fact, Record

DEVICES = {"policy": 2.0, "rollout": 1.0}


def ledger(*facts: tuple[float, int, Fact, int, dict[str, Any]]) -> list[Record]:
    """Return records from tuples of (time, attempt, fact, step, details)."""
    return [
        Record(seq=i, attempt=attempt, step=step, fact=fact, details=details, time=at)
        for i, (at, attempt, fact, step, details) in enumerate(facts)
    ]


ONE_STEP = (
    (100.0, 1, Fact.attempt, 0, {}),
    (105.0, 1, Fact.placed, 0, {"devices": DEVICES}),
    (125.0, 1, Fact.planned, 1, {}),
    (129.0, 1, Fact.generated, 1, {}),
    (131.0, 1, Fact.trained, 1, {}),
    (137.0, 1, Fact.committed, 1, {"evaluating_s": 2.0}),
)
KILLED = (*ONE_STEP, (137.0, 1, Fact.planned, 2, {}), (141.0, 1, Fact.trained, 2, {}))
RESUMED = (
    *KILLED,
    (900.0, 2, Fact.attempt, 1, {}),  # next morning
    (901.0, 2, Fact.placed, 1, {"devices": {"policy": 1.0, "rollout": 1.0}}),
    (911.0, 2, Fact.planned, 2, {}),
    (921.0, 2, Fact.committed, 2, {}),
)


def test_a_step_costs_its_seconds_on_every_device_without_the_evaluation() -> None:
    meter = Meter(ledger(*ONE_STEP))
    (attempt_cost,) = meter.attempts
    assert (attempt_cost.loading_s, attempt_cost.working_s, attempt_cost.evaluating_s) == (
        20.0,
        10.0,
        2.0,
    )  # 137 - 125 - 2
    assert (meter.device_seconds, meter.seconds) == (30.0, 10.0)
    assert by_step(ledger(*ONE_STEP)) == {1: (30.0, 10.0)}


def test_time_lost_to_a_failure_counts() -> None:
    """14 s on three devices, of which 4 s were lost; then 10 s of loading and 10 s of work on two devices.

    The night between the attempts costs nothing.
    """
    records = ledger(*RESUMED)
    assert Meter(records).device_seconds == 3 * 14 + 2 * 10 + 2 * 10
    assert Meter(records).seconds == 14 + 10 + 10
    assert by_step(records) == {1: (30.0, 10.0), 2: (82.0, 34.0)}


def test_a_meter_adds_only_new_records() -> None:
    records = ledger(*RESUMED)
    meter = Meter(records[:6])
    meter.read(records)
    assert meter.device_seconds == Meter(records).device_seconds


def test_a_run_without_a_step_has_only_loaded() -> None:
    meter = Meter(ledger(*ONE_STEP[:2], (112.0, 1, Fact.alarm, 0, {})))
    assert (meter.attempts[0].loading_s, meter.device_seconds) == (7.0, 0.0)


def test_a_ledger_without_placed_records_has_seconds_but_no_devices() -> None:
    meter = Meter(ledger(*(fact for fact in ONE_STEP if fact[2] != Fact.placed)))
    assert (meter.device_seconds, meter.seconds) == (0.0, 10.0)
    assert Meter([]).device_seconds == 0.0


def test_roles_that_only_measure_are_not_counted() -> None:
    """The base always measures; engines and scorers do in a run that trains on a dataset."""
    devices = {"policy": 2.0, "rollout": 3.0, "reward": 1.0, "base": 4.0, "dataset": 0.0}
    sampled = [(*fact[:4], {"devices": devices}) if fact[2] == Fact.placed else fact for fact in ONE_STEP]
    offline = [fact for fact in sampled if fact[2] != Fact.generated]
    assert Meter(ledger(*sampled)).device_seconds == (2 + 3 + 1) * 10
    assert Meter(ledger(*sampled)).measuring_device_seconds == 4 * 10 + 10 * 2
    assert Meter(ledger(*offline)).device_seconds == 2 * 10
    assert Meter(ledger(*offline)).measuring_device_seconds == 8 * 10 + 10 * 2
    assert by_step(ledger(*offline)) == {1: (20.0, 10.0)}
