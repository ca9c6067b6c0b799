"""Models of rounds: written when a round is the best so far, kept while a resume may need them, exported at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from orchestrator import disk
from orchestrator.driver.round_models import RoundModels, copy_model
from orchestrator.errors import Superseded
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.manifest import seal


class Rounds:
    """Rounds of a run of which only the weights and the metrics are real: the weights are the round's number."""

    def __init__(self, path: Path, by: str | None = "eval/reward", unsafe: tuple[int, ...] = ()) -> None:
        self.directory, self._by, self._unsafe = RunDirectory(path), by, unsafe
        self.metrics, self.trained = MetricsFile(self.directory.metrics), 0
        self.notes: list[str] = []
        self.resume(0)

    def resume(self, steps_done: int, fence: Callable[[], None] = lambda: None) -> None:
        """Begin an attempt at a checkpoint."""
        self.metrics.rewind(steps_done)
        self.trained = steps_done
        self.models = RoundModels(
            self.directory, self._by, self._export, steps_done=steps_done,
            may_export=lambda number: number not in self._unsafe, note=self.told,
            fence=fence,
        )  # fmt: skip

    def told(self, text: str) -> None:
        self.notes.append(text)

    def _export(self, target: Path) -> None:
        directory = disk.fresh(target)
        (directory / "model.safetensors").write_text(str(self.trained))
        (directory / "config.json").write_text("{}")
        disk.publish(target)

    def train(self, reward: float | None, *, checkpoint: bool = True) -> None:
        self.trained += 1
        self.metrics.append(self.trained, {} if reward is None else {"eval/reward": reward})
        if self.models.is_best(self.trained):
            self.models.keep(self.trained)
        if checkpoint:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Save a checkpoint and delete all but the newest two."""
        new = self.directory.checkpoint(self.trained)
        new.mkdir(parents=True, exist_ok=True)
        seal(new, {}, {})
        for step in range(self.trained - 1):
            (self.directory.checkpoint(step) / "manifest.json").unlink(missing_ok=True)
        self.models.drop()

    @property
    def kept(self) -> Mapping[int, str]:
        numbers = self.directory.rounds_with("model")
        return {n: (self.directory.round_model(n) / "model.safetensors").read_text() for n in numbers}

    def end(self) -> tuple[int, str]:
        """Export, and return the round and the weights that were written."""
        chosen = self.models.choose(self.trained)
        self.models.publish(chosen)
        self.models.drop_all()
        assert not self.kept
        return chosen.round, (self.directory.model / "model.safetensors").read_text()


def test_the_best_round_is_exported_and_its_model_is_one_copy(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path)
    rounds.train(0.5)
    assert rounds.kept == {1: "1"}
    rounds.train(0.75)
    assert rounds.kept == {1: "1", 2: "2"}, "the checkpoint of round 1 is still there to resume from"
    rounds.train(0.625)
    assert rounds.kept == {2: "2"}
    rounds.train(0.75)
    assert rounds.kept == {2: "2"}, "of equal rounds the earlier one is the best"
    assert rounds.end() == (2, "2")


def test_without_a_figure_the_last_round_is_exported(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, by=None)
    rounds.train(0.75)
    rounds.train(0.5)
    assert rounds.kept == {}
    assert rounds.end() == (2, "2")
    assert rounds.models.choose(2).by is None


def test_a_round_that_was_not_evaluated_is_not_the_best(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path)
    for reward in (0.5, None, 0.25):
        rounds.train(reward)
    assert rounds.end() == (1, "1")


def test_rounds_after_the_checkpoint_count_no_more(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path)
    rounds.train(0.5)
    rounds.train(0.875, checkpoint=False)
    assert rounds.kept == {1: "1", 2: "2"}
    rounds.resume(1)  # killed, or rolled back: now the second round becomes another one
    assert rounds.kept == {1: "1"}
    rounds.train(0.25)
    assert rounds.end() == (1, "1")


def test_a_rollback_finds_the_best_round_of_its_checkpoint(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path)
    for reward in (0.5, 0.75, 0.875):
        rounds.train(reward)
    assert rounds.kept == {2: "2", 3: "3"}
    rounds.resume(2)
    rounds.train(0.25)
    assert rounds.end() == (2, "2")


def test_a_round_that_the_safety_gate_refuses_is_not_the_best(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, unsafe=(2, 3))
    for reward in (0.5, 0.875, 0.75):
        rounds.train(reward)
    assert rounds.end() == (1, "1")
    (tmp_path / "none").mkdir()
    none = Rounds(tmp_path / "none", unsafe=(1, 2))
    none.train(0.875)
    none.train(0.5)
    assert none.models.choose(2).round == 2, "the gate then refuses the last round"


def test_the_best_of_the_models_that_are_left_is_exported(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, by=None)
    rounds.train(0.875)
    rounds._by = "eval/reward"  # `export.round=best` on resume: the first round's model was not kept
    rounds.resume(1)
    rounds.train(0.5)
    assert rounds.end() == (2, "2")
    assert rounds.notes == ["round 1 has a higher eval/reward than round 2, but its model is not stored"]


def test_a_driver_that_was_superseded_writes_and_deletes_nothing(tmp_path: Path) -> None:
    def superseded() -> None:
        raise Superseded("run", "process 1 on a")

    rounds = Rounds(tmp_path)
    rounds.train(0.5)
    rounds.resume(1, fence=superseded)
    rounds.trained = 2
    with pytest.raises(Superseded):
        rounds.models.keep(2)
    assert rounds.kept == {1: "1"}


def test_weights_are_linked_and_other_files_are_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    for path in (source / "adapter", target):
        path.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "adapter/adapter_model.safetensors"):
        (source / name).write_text(name)
    copy_model(source, target)
    links = {str(p.relative_to(target)): p.stat().st_nlink for p in target.rglob("*") if p.is_file()}
    assert links == {"model.safetensors": 2, "config.json": 1, "adapter/adapter_model.safetensors": 2}
