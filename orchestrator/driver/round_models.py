"""Models of rounds that may be exported: the best round so far, kept until a better one is in every checkpoint.

evaluated ──► the best so far? ──► rounds/N/model, published before the round counts ──► model/ at the end of the run
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orchestrator import disk
from orchestrator.driver.uploads import Uploads
from orchestrator.evaluation.best_round import best, describe, figures
from orchestrator.monitor.metrics import MetricsFile
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.exported import ExportedRound
from orchestrator.rundir.manifest import WEIGHTS, list_checkpoints, step_of

Export = Callable[[Path], object]
"""Function that writes the learners' current model to a directory, which exists when it is complete."""


class RoundModels:
    """Models of the rounds of one run, during one attempt."""

    def __init__(
        self,
        directory: RunDirectory,
        by: str | None,
        export: Export,
        *,
        steps_done: int,
        may_export: Callable[[int], bool] = lambda number: True,
        note: Callable[[str], None] = lambda text: None,
        fence: Callable[[], None] = lambda: None,
        uploads: Uploads | None = None,
    ) -> None:
        """Continue at a resume point. Models of later rounds, which will be trained again, are deleted.

        Args:
            by: held-out figure by which the best round is exported; None: the last round is.
            export: writes the current model.
            steps_done: number of rounds done.
            may_export: whether the safety gate promotes a round.
            note: tells the user something.
            fence: raises Superseded if another driver has taken over the run.
            uploads: to the storage of the run; None: it has none.
        """
        self._directory, self._by, self._export, self._fence = directory, by, export, fence
        self._uploads = uploads
        self._may_export, self._note = may_export, note
        for number in directory.rounds_with("model"):
            if number > steps_done:
                if uploads is not None:
                    uploads.delete_now(directory.round_model(number))
                self._delete(number)

    def is_best(self, number: int) -> bool:
        """Return whether the newest round, whose metrics are recorded, was evaluated and is the best one so far."""
        return best(self._figures()) == number

    def keep(self, number: int) -> None:
        """Write the current model as that of a round."""
        self._fence()
        self._export(self._directory.round_model(number))

    def drop(self) -> None:
        """Delete the models that neither this run nor one resumed from a checkpoint would export."""
        by_round = self._figures()
        ends = [max(by_round, default=0), *map(step_of, list_checkpoints(self._directory.checkpoints))]
        needed = {best({n: value for n, value in by_round.items() if n <= end}) for end in ends}
        for number in self._directory.rounds_with("model"):
            if number not in needed:
                self._drop(number)

    def choose(self, steps_done: int) -> ExportedRound:
        """Choose the round to export after `steps_done`: the best one or, without a held-out figure, the last."""
        by_round = self._figures()
        at_hand = {*self._directory.rounds_with("model"), steps_done}
        number = best({n: value for n, value in by_round.items() if n in at_hand})
        if self._by is None or number is None:
            return ExportedRound(round=steps_done, rounds=steps_done)
        if (highest := best(by_round)) != number:  # `export` was changed on resume, or its model was removed
            self._note(f"round {highest} has a higher {self._by} than round {number}, but its model is not stored")
        answers = {n: self._directory.answers(n) for n in by_round}
        return describe(number, by_round, answers, rounds=steps_done, by=self._by)

    def publish(self, chosen: ExportedRound) -> None:
        """Write the model of the run, which is that of the chosen round."""
        kept, model = self._directory.round_model(chosen.round), self._directory.model
        self._fence()
        if not kept.is_dir():
            self._export(model)
            return
        copy_model(kept, disk.fresh(model))
        self._fence()
        disk.publish(model)
        if self._uploads is not None:
            self._uploads.flush()
            self._uploads.copied(kept, model)

    def drop_all(self) -> None:
        """Delete the models of rounds, once the run is complete."""
        for number in self._directory.rounds_with("model"):
            self._drop(number)

    def _figures(self) -> dict[int, float]:
        """Return the figures of the rounds that may be exported."""
        if self._by is None:
            return {}
        by_round = figures(MetricsFile(self._directory.metrics).rows(), self._by)
        return {number: value for number, value in by_round.items() if self._may_export(number)}

    def _drop(self, number: int) -> None:
        if self._uploads is not None:
            self._uploads.delete(self._directory.round_model(number))
        self._delete(number)

    def _delete(self, number: int) -> None:
        model = self._directory.round_model(number)
        model.rename(gone := disk.partial(model))  # first, so that no half of a model has its name
        shutil.rmtree(gone)


def copy_model(source: Path, target: Path) -> None:
    """Copy a model to an empty directory. Weights become hard links where the file system has them: they take no space.

    The other files are copied, because people edit them.
    """

    def copy(file: str, place: str) -> None:
        with suppress(OSError):
            if file.endswith(WEIGHTS):
                return os.link(file, place)
        shutil.copyfile(file, place)

    shutil.copytree(source, target, copy_function=copy, dirs_exist_ok=True)
