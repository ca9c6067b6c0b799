"""Runs on two machines that share no directory: everything that one writes and another reads goes through storage."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attempts import RECIPES, Run
from processes import Command
from two_machines import SECOND, Machines, needs_namespaces

if TYPE_CHECKING:
    from fault_proxy import FaultProxy
    from seaweed import Seaweed

pytestmark = [pytest.mark.stack, pytest.mark.long, needs_namespaces]

RANKS = ["policy.num_ranks=4", "algorithm.max_steps=6", "checkpoint.every=1", "checkpoint.keep=8"]
CPUS = (3, 3)  # Ray fills a machine with the first three ranks; the other has room for what is left


@pytest.fixture(scope="module")
def machines(seaweed: Seaweed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Start machines that may both use the storage."""
    own = (seaweed.environment, seaweed.environment)
    with Machines.open(tmp_path_factory.mktemp("machines"), cpus=CPUS, own=own) as machines:
        yield machines


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Two machines and a prefix of the storage, which a driver on the first machine reaches at an endpoint."""

    machines: Machines
    seaweed: Seaweed
    endpoint: str
    prefix: str
    family: Path

    @property
    def storage(self) -> str:
        return f"{self.seaweed.url}/{self.prefix}"

    @property
    def disks(self) -> tuple[Path, Path]:
        """Directory `alone/` of each machine."""
        return self.machines.root / "alone", self.machines.second / "alone"

    def command(self, *words: str, **variables: str) -> Command:
        """Start a command on the first machine."""
        storage = {**self.seaweed.environment, "AWS_ENDPOINT_URL": self.endpoint}
        known = {**self.machines.variables, **storage, **variables}
        return Command(*words, cwd=self.family, variables=known)

    def run(self, recipe: str, *overrides: str, **variables: str) -> Command:
        places = [f"output_dir={self.disks[0]}", f"storage={self.storage}"]
        return self.command("run", str(RECIPES / f"{recipe}.yaml"), *places, *overrides, **variables)

    def resume(self, name: str) -> Command:
        return self.command("resume", f"{self.storage}/{name}", f"output_dir={self.disks[0]}")

    def read(self, name: str) -> bytes:
        import obstore

        return bytes(obstore.get(self.seaweed.store(self.prefix), name).bytes())

    def names(self, prefix: str = "") -> set[str]:
        """Return the names of all objects."""
        import obstore

        pages = obstore.list(self.seaweed.store(self.prefix), prefix)
        return {str(meta["path"]) for page in pages for meta in page}

    def newest_checkpoint(self, name: str) -> str:
        """Return the name of a run's newest complete checkpoint, such as base/checkpoints/step-3/attempt-1."""
        checkpoints = self.names(f"{name}/checkpoints")
        complete = [name.removesuffix("/manifest.json") for name in checkpoints if name.endswith("/manifest.json")]
        return max(complete, key=lambda place: int(place.split("/")[2].removeprefix("step-")))

    def weights_digest(self, name: str) -> str:
        return hashlib.sha256(self.read(f"{name}/model/model.safetensors")).hexdigest()

    def lose_disks(self) -> None:
        """Delete all that the machines have of any run."""
        for disk in self.disks:
            for path in disk.iterdir():
                shutil.rmtree(path)

    def ranks_on(self, name: str, attempt: int) -> tuple[set[int], set[int]]:
        """Return the ranks of the policy that ran on each machine: it has their logs."""
        logs = f"{name}/logs/attempt-{attempt}"
        first, second = (
            {int(p.stem.removeprefix("policy-")) for p in disk.glob(f"{logs}/policy-*.log")} for disk in self.disks
        )
        return first, second

    def shards(self, checkpoint: str) -> dict[str, Mapping[str, Any]]:
        """Return the files of the ranks (bytes, sha256, rank) in a checkpoint."""
        files = json.loads(self.read(f"{checkpoint}/manifest.json"))["files"]
        return {name: file for name, file in files.items() if "rank" in file}


@pytest.fixture
def bench(machines: Machines, seaweed: Seaweed, proxy: FaultProxy, bucket_prefix: str, qwen2: Path) -> Bench:
    bench = Bench(machines=machines, seaweed=seaweed, endpoint=proxy.endpoint, prefix=bucket_prefix, family=qwen2)
    bench.lose_disks()
    return bench


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Outcome of a run that nothing has disturbed."""

    exit_code: int
    output: str
    ranks: tuple[set[int], set[int]]  # on each machine
    weights_digest: str


@pytest.fixture(scope="module")
def whole(machines: Machines, seaweed: Seaweed, qwen2: Path) -> Finished:
    bench = Bench(machines=machines, seaweed=seaweed, endpoint=seaweed.endpoint, prefix="whole", family=qwen2)
    with bench.run("base", *RANKS) as command:
        code = command.exit_code()
    digest = bench.weights_digest("base") if code == 0 else ""
    return Finished(exit_code=code, output=command.output, ranks=bench.ranks_on("base", 1), weights_digest=digest)


def fetched(proxy: FaultProxy, place: str) -> tuple[Counter[str], int]:
    """Return how often each object below a place was fetched, by its name there, and the bytes of all answers."""
    gets = [r for r in proxy.requests if r.method == "GET" and f"/{place}/" in r.path and r.status == 200]
    return Counter(r.path.partition(f"/{place}/")[2] for r in gets), sum(r.response_bytes for r in gets)


def test_c4_ranks_on_two_machines_that_share_nothing_finish_a_run(whole: Finished) -> None:
    assert whole.exit_code == 0, whole.output
    assert sorted(map(len, whole.ranks)) == [1, 3]


def test_c4_both_machines_lose_their_disks_and_each_rank_fetches_what_it_saved(
    whole: Finished, bench: Bench, proxy: FaultProxy
) -> None:
    with bench.run("base", *RANKS) as command:
        command.read_until("step 3/6")
        command.terminate()
        assert command.exit_code() == 143, command.output
    checkpoint = bench.newest_checkpoint("base")
    saved = bench.shards(checkpoint)
    assert {file["rank"] for file in saved.values()} == {0, 1, 2, 3}
    bench.lose_disks()
    proxy.heal()

    with bench.resume("base") as command:
        assert command.exit_code() == 0, command.output
    assert bench.weights_digest("base") == whole.weights_digest
    times, size = fetched(proxy, f"{bench.prefix}/{checkpoint}")
    assert {name: times[name] for name in saved} == dict.fromkeys(saved, 1)
    assert size <= 1.05 * sum(file["bytes"] for file in saved.values())
    ranks = bench.ranks_on("base", 2)
    assert sorted(map(len, ranks)) == [1, 3]
    for name, file in saved.items():
        there = [(disk / Path(checkpoint).parent / name).exists() for disk in bench.disks]
        assert there == [file["rank"] in of_machine for of_machine in ranks], name


def test_c4_rollouts_pairs_references_and_models_of_machines_that_share_nothing_reach_each_other(
    bench: Bench, finished: Callable[..., Run], qwen2: Path
) -> None:
    """Train on one machine; its engine, its scorers and its reference are on the other one."""
    whole = finished("drifting", qwen2, "policy.num_ranks=3", "name=gathered")
    assert sum(whole.figures("ref/refreshed")) >= 1
    with bench.run("drifting", "policy.num_ranks=3") as command:
        assert command.exit_code() == 0, command.output
    assert sorted(map(len, bench.ranks_on("drifting", 1))) == [0, 3]
    assert bench.weights_digest("drifting") == whole.weights_digest


def test_a_machine_without_the_credentials_is_named_before_the_first_step(
    seaweed: Seaweed, bucket_prefix: str, qwen2: Path, tmp_path: Path
) -> None:
    with Machines.open(tmp_path, own=(seaweed.environment, {})) as machines:
        bench = Bench(machines=machines, seaweed=seaweed, endpoint=seaweed.endpoint, prefix=bucket_prefix, family=qwen2)
        with bench.run("base") as command:
            assert command.exit_code() == 2, command.output
    assert f"policy rank 0 on {SECOND} cannot use storage" in command.output
    assert bench.storage in command.output
    assert "AWS_ACCESS_KEY_ID is not set" in command.output
    facts = Run(bench.disks[0] / "base").facts
    assert [fact for fact in facts if not fact.startswith(("ATTEMPT", "PLACED"))] == [], "nothing was trained"
