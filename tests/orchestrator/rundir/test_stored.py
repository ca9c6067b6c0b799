"""Twin of a run in object storage, with a directory as the store: its ledger, its checkpoints, and what is fetched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BadInput, ResumeError
from orchestrator.rundir import stored as twin
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.fetch import fetch_run
from orchestrator.rundir.ledger import Fact, Ledger, Record, read_ledger
from orchestrator.rundir.manifest import State, list_checkpoints, seal, write_state
from orchestrator.rundir.stored import StoredRun
from workers.files.written import report
from workers.storage import Storage

SETTINGS: Mapping[str, Any] = {
    "name": "run",
    "output_dir": "/there",
    "storage": None,
    "seed": 1,
    "model": {"path": "/there/base/model"},
    "cluster": {},
}


def record(seq: int, fact: Fact, step: int = 0, attempt: int = 1, **details: Any) -> Record:
    return Record(seq=seq, attempt=attempt, step=step, fact=fact, details=details, time=1.0)


class Twins:
    """One store, and machines with a directory each."""

    def __init__(self, root: Path) -> None:
        self.root, self.storage = root, Storage(f"file://{root}/store")

    def machine(self, name: str) -> StoredRun:
        return StoredRun(self.storage, RunDirectory(self.root / name / "run"))

    def settings(self, name: str, **changes: Any) -> dict[str, Any]:
        return {**SETTINGS, "output_dir": str(self.root / name), **changes}

    def begin(self, name: str, *records: Record, stored: int | None = None) -> StoredRun:
        """Write a run on a machine, with records of which the first `stored` (None: all) are stored."""
        machine = self.machine(name)
        machine.directory.path.mkdir(parents=True)
        settings = self.settings(name)
        machine.directory.resolved.write_text(json.dumps(settings))
        self.storage.create("run/resolved.json", json.dumps(settings).encode())
        machine.directory.ledger.write_bytes(b"".join(r.line() for r in records))
        for one in records[:stored]:
            machine.put_record(one)
        return machine

    def checkpoint(self, machine: StoredRun, state: State, attempt: int = 1) -> Path:
        """Write a checkpoint of one rank, and store it."""
        checkpoint = machine.directory.checkpoints / state.name
        (checkpoint / "policy").mkdir(parents=True)
        (weights := checkpoint / "policy" / "weights.pt").write_bytes(b"weights")
        write_state(checkpoint, state)
        reports = {"policy": [report(checkpoint / "policy", [weights], role="policy", rank=0)]}
        seal(checkpoint, {"attempt": attempt}, reports, ["state.json"])
        for path in ("policy/weights.pt", "state.json", "manifest.json"):
            self.storage.put(f"{machine.prefix_of(checkpoint)}/{path}", (checkpoint / path).read_bytes())
        return checkpoint


@pytest.fixture
def twins(tmp_path: Path) -> Twins:
    return Twins(tmp_path)


# ------------------------------------------------------------------------------------------------ ledger


def test_a_number_of_the_ledger_is_written_once(twins: Twins) -> None:
    machine, one, other = twins.machine("a"), record(0, Fact.attempt), record(0, Fact.attempt, attempt=2)
    assert machine.put_record(one)
    assert machine.put_record(one), "the same record again: its first answer was lost"
    assert not machine.put_record(other)
    assert machine.records() == [one]


def test_a_damaged_record_is_named(twins: Twins) -> None:
    machine = twins.begin("a", record(0, Fact.attempt), record(1, Fact.placed))
    twins.storage.put("run/ledger/00000001.json", b"{}")
    with pytest.raises(ResumeError, match=r"ledger/00000001\.json"):
        machine.records()


def test_records_after_a_gap_do_not_count(twins: Twins) -> None:
    machine = twins.begin("a", record(0, Fact.attempt))
    machine.put_record(record(2, Fact.placed))
    assert len(machine.records()) == 1


# ------------------------------------------------------------------------------------------------ pull


def test_a_machine_that_has_nothing_fetches_the_run(twins: Twins) -> None:
    records = (record(0, Fact.attempt), record(1, Fact.checkpoint, 2))
    first = twins.begin("a", *records)
    twins.checkpoint(first, State(next_step=2, reference_version=0))
    twins.storage.put("run/metrics.jsonl", b"{}\n")
    twins.storage.put("run/model/config.json", b"{}")
    twins.storage.put("run/model/model.safetensors", b"large")
    second = twins.machine("b")
    second.pull(twins.settings("b"), lambda text: None)
    directory = second.directory
    assert read_ledger(directory.ledger)[0] == list(records)
    assert directory.metrics.read_text() == "{}\n"
    assert (directory.model / "config.json").exists()
    assert not (directory.model / "model.safetensors").exists(), "a worker that needs weights fetches them"
    assert [path.name for path in list_checkpoints(directory.checkpoints)] == ["step-2"]
    assert not (directory.checkpoint(2) / "policy").exists(), "ranks fetch their own files"
    assert second.damage(directory.checkpoint(2)) == ""
    assert json.loads(directory.resolved.read_text())["output_dir"] == str(twins.root / "b")


def test_records_that_were_not_stored_are_kept_on_their_own_machine(twins: Twins) -> None:
    records = [record(n, Fact.attempt if n == 0 else Fact.planned, n) for n in range(4)]
    machine = twins.begin("a", *records, stored=2)
    machine.pull(twins.settings("a"), lambda text: None)
    assert (machine.num_records, len(read_ledger(machine.directory.ledger)[0])) == (2, 4)


def test_a_machine_whose_run_went_on_elsewhere_takes_that_history(twins: Twins) -> None:
    shared = [record(0, Fact.attempt), record(1, Fact.checkpoint, 1)]
    left = twins.begin("a", *shared, record(2, Fact.planned, 2), record(3, Fact.trained, 2), stored=2)
    twins.checkpoint(left, State(next_step=1, reference_version=0))
    own = twins.checkpoint(left, State(next_step=2, reference_version=0))
    twins.storage.delete(twins.storage.sizes("run/checkpoints/step-2/"))
    (left.directory.path / "rollouts").mkdir()
    left.put_record(record(2, Fact.attempt, 1, attempt=2))
    said: list[str] = []
    left.pull(twins.settings("a"), said.append)
    assert [r.attempt for r in read_ledger(left.directory.ledger)[0]] == [1, 1, 2]
    assert not own.exists()
    assert not (left.directory.path / "rollouts").exists()
    assert said == [f"run: fetched from {twins.storage.url}/run (1 newer records)"]


def test_a_run_with_other_settings_is_refused_and_nothing_is_changed(twins: Twins) -> None:
    twins.begin("a", record(0, Fact.attempt))
    other = twins.machine("b")
    other.directory.path.mkdir(parents=True)
    other.directory.resolved.write_text(json.dumps(twins.settings("b", seed=2)))
    with pytest.raises(BadInput, match="belongs to a run with another config") as caught:
        other.pull(twins.settings("b", seed=2))
    assert "seed" in caught.value.problems[0].why
    assert not other.directory.ledger.exists()


def test_models_of_other_stages_are_looked_for_beside_the_run(twins: Twins) -> None:
    machine = twins.begin("a", record(0, Fact.attempt))
    content = json.dumps(twins.settings("a", model={"path": f"{twins.root}/a/base/model"})).encode()
    twins.storage.put("run/resolved.json", content)
    shutil.rmtree(machine.directory.path)

    def model_path() -> str:
        shutil.rmtree(twins.root / "b", ignore_errors=True)
        twins.machine("b").pull(twins.settings("b"), lambda text: None)
        return str(json.loads((twins.root / "b" / "run" / "resolved.json").read_text())["model"]["path"])

    assert model_path() == f"{twins.root}/a/base/model", "it is not stored: it stays where it was"
    twins.storage.put("base/model/config.json", b"{}")
    assert model_path() == f"{twins.root}/b/base/model"


def test_a_run_is_fetched_by_its_url(twins: Twins) -> None:
    twins.begin("a", record(0, Fact.attempt))
    directory = fetch_run(f"{twins.storage.url}/run/", twins.root / "c")
    assert directory.path == twins.root / "c" / "run"
    assert json.loads(directory.resolved.read_text())["storage"] == twins.storage.url
    with pytest.raises(ResumeError, match="not a run"):
        fetch_run(f"{twins.storage.url}/nothing", twins.root / "c")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"\xff"])
def test_settings_that_are_damaged_in_storage_are_refused(twins: Twins, content: bytes) -> None:
    twins.storage.put("run/resolved.json", content)
    with pytest.raises(ResumeError, match=r"resolved\.json is damaged"):
        twins.machine("b").pull(twins.settings("b"))
    with pytest.raises(ResumeError, match=r"resolved\.json is damaged"):
        fetch_run(f"{twins.storage.url}/run", twins.root / "c")


# ------------------------------------------------------------------------------------------------ checkpoints

LINEAGE: dict[str, tuple[Callable[[], list[Record]], list[str]]] = {
    "listed": (lambda: [record(0, Fact.attempt), record(1, Fact.checkpoint, 2)], ["step-2"]),
    "not listed": (lambda: [record(0, Fact.attempt)], []),
    "of a step in progress": (
        lambda: [record(0, Fact.attempt), record(1, Fact.checkpoint, 2, updates=3)],
        ["step-2-update-3"],
    ),
    "left behind by a later attempt": (
        lambda: [record(0, Fact.attempt), record(1, Fact.checkpoint, 2), record(2, Fact.attempt, 1, attempt=2)],
        [],
    ),
    "that a later attempt resumed from": (
        lambda: [record(0, Fact.attempt), record(1, Fact.checkpoint, 2), record(2, Fact.attempt, 2, attempt=2)],
        ["step-2"],
    ),
    "taken back": (
        lambda: [
            record(0, Fact.attempt),
            record(1, Fact.checkpoint, 2),
            record(2, Fact.alarm, 3, action="roll_back", target=1),
        ],
        [],
    ),
}


@pytest.mark.parametrize("case", LINEAGE)
def test_a_checkpoint_counts_if_the_history_of_the_run_leads_through_it(twins: Twins, case: str) -> None:
    records, expected = LINEAGE[case]
    machine = twins.begin("a", *records())
    for state in (
        State(next_step=2, reference_version=0),
        State(next_step=2, reference_version=0, updates=3, stats={}),
    ):
        twins.checkpoint(machine, state)
    assert [checkpoint.state for checkpoint in machine.checkpoints(records())] == expected


def test_a_checkpoint_of_another_attempt_does_not_count(twins: Twins) -> None:
    records = [record(0, Fact.attempt), record(1, Fact.checkpoint, 2)]
    machine = twins.begin("a", *records)
    twins.checkpoint(machine, State(next_step=2, reference_version=0), attempt=7)
    assert machine.checkpoints(records) == []


@pytest.mark.parametrize(
    ("name", "content", "damage"),
    [
        ("policy/weights.pt", b"short", "policy/weights.pt has 5 bytes"),
        ("policy/weights.pt", None, "policy/weights.pt is missing in file://"),
        ("state.json", None, "state.json is missing in file://"),
    ],
)
def test_damage_in_storage_is_described(twins: Twins, name: str, content: bytes | None, damage: str) -> None:
    machine = twins.begin("a", record(0, Fact.attempt), record(1, Fact.checkpoint, 2))
    checkpoint = twins.checkpoint(machine, State(next_step=2, reference_version=0))
    full = f"{machine.prefix_of(checkpoint)}/{name}"
    twins.storage.delete([full])
    if content is not None:
        twins.storage.put(full, content)
    assert machine.damage(checkpoint).startswith(damage)


# ------------------------------------------------------------------------------------------------ holder


def test_a_driver_that_renews_is_not_taken_over(twins: Twins) -> None:
    machine, renewals = twins.machine("a"), [0]

    def renew(seconds: float = 0.0) -> None:
        renewals[0] += 1
        holder = {"process": "process 7 on node-3", "driver": "node-3:/x", "renewals": renewals[0]}
        twins.storage.put("run/holder.json", json.dumps(holder).encode())

    renew()
    with pytest.raises(BadInput, match="is in use") as caught:
        machine.wait_for_holder("me", lambda text: None, sleep=renew)
    assert caught.value.problems[0].why == "process 7 on node-3 runs it and renews its lease"


def test_a_driver_that_does_not_renew_is_taken_over_after_the_lease(twins: Twins) -> None:
    machine, waited, said = twins.machine("a"), list[float](), list[str]()
    twins.storage.put("run/holder.json", json.dumps({"process": "process 7 on node-3", "driver": "x"}).encode())
    machine.wait_for_holder("me", said.append, sleep=waited.append)
    assert sum(waited) == pytest.approx(twin.LEASE_S)
    assert said == ["run: process 7 on node-3 held this run; waiting 30 s to see whether it still does"]
    twins.storage.put("run/holder.json", b"not JSON")
    machine.wait_for_holder("me", said.append, sleep=waited.append)
    twins.storage.put("run/holder.json", json.dumps({"process": "process 7 on node-3", "driver": "x"}).encode())
    waited.clear()
    machine.wait_for_holder("x", said.append, sleep=waited.append)
    assert waited == [], "the lock of this directory tells that its own driver has ended"


def test_the_ledger_claims_an_attempt_before_it_is_written_here(twins: Twins, tmp_path: Path) -> None:
    class Taken:
        def claim(self, record: Record) -> None:
            raise ResumeError("taken")

        def send(self, record: Record) -> None:
            raise AssertionError("nothing is sent")

    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        ledger.copies = Taken()
        with pytest.raises(ResumeError):
            ledger.append(Fact.attempt, attempt=1, step=0)
        assert ledger.records == ()
    assert (tmp_path / "ledger.jsonl").read_bytes() == b""
