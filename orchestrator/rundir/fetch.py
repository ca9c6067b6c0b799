"""Fetch runs from object storage to this machine: one by its URL, or the stages of a recipe before they start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.config.recipe import resolved
from orchestrator.config.run import RunConfig
from orchestrator.data.sources import local
from orchestrator.errors import Problem, ResumeError
from orchestrator.preflight.data_files import KEYS
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.manifest import WEIGHTS
from orchestrator.rundir.stored import STOP, StoredRun, explained, open_stored, settings_in
from workers.files.mirror import Mirror
from workers.storage import Storage


def bring_in(config: RunConfig) -> None:
    """Bring the directory of a run up to what is in its storage, if it has one and no driver holds the directory.

    Raises:
        BadInput, StorageFailed: as in `open_stored`; or storage holds a run of this name with another config.
    """
    directory = RunDirectory(local(config.output_dir).absolute() / config.name)
    if (stored := open_stored(config, directory)) is None:
        return
    with explained(stored.storage.url):
        if directory.holder() is None:
            stored.pull(resolved(config))
    fetch_inputs(config)


def fetch_inputs(config: RunConfig) -> None:
    """Fetch what a driver reads of other runs in the same storage: data sets, and of models all but the weights.

    Raises:
        BadInput, StorageFailed: as in `open_stored`.
    """
    if config.storage is None:
        return
    with explained(config.storage):
        mirror = Mirror(Storage(config.storage), local(config.output_dir).absolute())
        for path in paths_in(resolved(config)):
            if mirror.name_of(local(path).absolute()) is not None:
                mirror.fetch_beside(local(path).absolute(), WEIGHTS)
        for path in (path for key in KEYS for path in config.data.paths(key)):
            mirror.fetch_file(local(path).absolute())


def paths_in(settings: Any) -> Iterator[str]:
    """Yield the paths of models in a resolved config."""
    for key, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
        if key == "path" and isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            yield from paths_in(value)


def fetch_run(url: str, output_dir: Path) -> RunDirectory:
    """Return the directory of the run at STORAGE/RUN, which is created below `output_dir`.

    Raises:
        ResumeError: there is no run at `url`.
        BadInput, StorageFailed: as in `bring_in`.
    """
    base, _, name = url.rstrip("/").rpartition("/")
    directory = RunDirectory(output_dir.absolute() / name)
    with explained(base):
        stored = StoredRun(Storage(base), directory)
        content = stored.storage.get(stored.full("resolved.json"))
        if content is None:
            fix = "give STORAGE/RUN: the recipe's storage and the name of the run"
            raise ResumeError(Problem(what="not a run", where=url, why="it has no resolved.json", fix=fix))
        if directory.holder() is None:
            stored.pull(settings_in(content, f"{url}/resolved.json") | {"storage": base, "output_dir": str(output_dir)})
    return directory


def request_stop_at(url: str, by: str) -> None:
    """Ask for the end of the run at STORAGE/RUN: its driver sees the object within seconds.

    Raises:
        BadInput, StorageFailed: as in `open_stored`.
    """
    base, _, name = url.rstrip("/").rpartition("/")
    with explained(base):
        Storage(base).put(f"{name}/{STOP}", by.encode())
