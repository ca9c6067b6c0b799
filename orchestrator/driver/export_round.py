"""Export of one round of a run, after the run or while it is stopped: `rlhf export RUN --round N`.

model/ (the exported round), rounds/N/model (the best so far) ──► copied
checkpoints/step-N ──► policy gang ──► Hugging Face directory
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator import disk
from orchestrator.cluster.base import Cluster, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import RunConfig
from orchestrator.driver.checkpoint import saved_files
from orchestrator.errors import BadInput, Problem
from orchestrator.pipeline.exports import export
from orchestrator.pipeline.roles import gang_plans, preloaded
from orchestrator.rundir.directory import COMPLETE, RunDirectory
from orchestrator.rundir.exported import ExportedRound
from orchestrator.rundir.manifest import list_checkpoints, position_of, verify
from orchestrator.rundir.stored import explained, open_stored
from workers.learner import Learner


def export_round(
    directory: RunDirectory,
    config: RunConfig,
    number: int,
    output: Path,
    *,
    say: Callable[[str], None],
    start_cluster: Callable[..., Cluster] = RayCluster,
) -> None:
    """Write the model of round (or step) `number` to `output`, as a Hugging Face directory.

    Args:
        config: config of the run, perhaps with other hardware settings.
        say: told where the model comes from.

    Raises:
        BadInput: the model of that round is not stored, its checkpoint is damaged, `output` exists, or the run is in
            use and only a checkpoint has the round.
    """
    if output.exists():
        why, fix = "it would be overwritten", "give another directory with --output, or remove it"
        raise BadInput(Problem(what="already exists", where=str(output), why=why, fix=fix))
    models, checkpoints = stored_models(directory), stored_checkpoints(directory)
    if number in models:
        say(f"{directory.name}: round {number} is stored as a model ({models[number]})")
        if (stored := open_stored(config, directory)) is not None:
            with explained(stored.storage.url):
                stored.mirror.require(models[number], wait_s=0.0)
        with _published(output) as aside:
            shutil.copytree(models[number], aside, dirs_exist_ok=True)
    elif number in checkpoints:
        with directory.held():
            _from_checkpoint(directory, config, number, checkpoints[number], output, say, start_cluster)
    else:
        raise _not_stored(directory, number, sorted({*models, *checkpoints}))


def stored_models(directory: RunDirectory) -> Mapping[int, Path]:
    """Return the models that are stored as Hugging Face directories, by round."""
    models = {number: directory.round_model(number) for number in directory.rounds_with("model")}
    exit = directory.read_exit() or {}
    if exit.get("cause") in COMPLETE and directory.model.is_dir():
        exported = ExportedRound.of(exit.get("exported"))
        models[int(exit["step"]) if exported is None else exported.round] = directory.model
    return models


def stored_checkpoints(directory: RunDirectory) -> Mapping[int, Path]:
    """Return the checkpoints at the end of a round (or step), by its number."""
    positions = {checkpoint: position_of(checkpoint) for checkpoint in list_checkpoints(directory.checkpoints)}
    return {step: checkpoint for checkpoint, (step, updates) in positions.items() if step and not updates}


def _from_checkpoint(
    directory: RunDirectory,
    config: RunConfig,
    number: int,
    checkpoint: Path,
    output: Path,
    say: Callable[[str], None],
    start_cluster: Callable[..., Cluster],
) -> None:
    """Load a checkpoint into the policy's workers, as a resumed run does, and let them write the model."""
    stored = open_stored(config, directory)
    if damage := verify(checkpoint) if stored is None else stored.damage(checkpoint):
        fix = "export another round, or restore the checkpoint from a backup"
        raise BadInput(Problem(what="the checkpoint is damaged", where=str(checkpoint), why=damage, fix=fix))
    say(f"{directory.name}: round {number} is in {checkpoint}; the policy's workers load it")
    with preloaded(config.cluster):
        logs = directory.path / "logs" / "export"
        logs.mkdir(parents=True, exist_ok=True)
        cluster = start_cluster(config.cluster, log_directory=logs, on_restart=lambda restart: None)
        try:
            plans = gang_plans(config, cuda=cluster.cuda, max_steps=config.algorithm.max_steps or number)
            policy = cluster.spawn([plan for plan in plans if plan.role == "policy"])["policy"]
            wait(policy.all(Learner.load, str(checkpoint / "policy"), saved_files(checkpoint, "policy", stored)))
            with _published(output) as aside:
                export(policy, aside)
            wait(policy.all(Learner.close))
        finally:
            cluster.shutdown()


@contextmanager
def _published(output: Path) -> Iterator[Path]:
    """Yield an empty directory, which becomes `output` at the end; on an error it is removed."""
    aside = disk.fresh(output)
    try:
        yield aside
        disk.publish(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _not_stored(directory: RunDirectory, number: int, stored: list[int]) -> BadInput:
    named = ", ".join(map(str, stored))
    some = f"export one of these: {named}" if stored else "there is none yet: wait, or resume the run"
    return BadInput(
        Problem(
            what=f"the model of round {number} is not stored",
            where=str(directory.path),
            why="a run keeps the model that it exports, the best one so far, and the newest checkpoints "
            "(checkpoint.keep)",
            fix=f"{some}; for more, raise checkpoint.keep and run the recipe again",
        )
    )
