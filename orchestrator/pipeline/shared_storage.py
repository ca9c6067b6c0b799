"""Check before the first step that every worker sees the files of the run, and the driver theirs.

driver ──token──► RUN/.storage.partial/ ◄──looks, answers── every member of every gang, at once
"""

from __future__ import annotations

import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.cluster.base import Gang
from orchestrator.errors import BadInput, Problem
from orchestrator.rundir.stored import StoredRun, explained
from workers.files.shared_storage import EVERY_NODE, TOKEN, SharesStorage, Sighting, eventually, read

UNSEEN = "cannot show the driver a file in"
WHY = "ranks write checkpoints, models and rollouts there, and other ranks and the driver read them"
FIX = "give an output_dir on a network file system that every machine mounts at the same path"


def check_storage(directory: Path, gangs: Mapping[str, Gang[Any]]) -> None:
    """Check that the run directory is the same one for every member of every gang.

    Raises:
        BadInput: it is not. All members that fail are named, by machine.
    """
    with _token(directory) as (place, token):
        names = [f"{role}-{rank}" for role, gang in gangs.items() for rank in range(len(gang))]
        calls = [
            handle
            for role, gang in gangs.items()
            for handle in gang.each(
                SharesStorage.check_storage, [(str(place), token, f"{role}-{rank}") for rank in range(len(gang))]
            )
        ]
        sightings = dict(zip(names, (call.result() for call in calls), strict=True))
        answered = [name for name, sighting in sightings.items() if not sighting.why]
        eventually(lambda: all(read(place / name) == token for name in answered))
        unseen = {name for name in answered if read(place / name) != token}
    if problems := list(_problems(directory, sightings, unseen)):
        raise BadInput(problems)


def check_object_storage(stored: StoredRun, gangs: Mapping[str, Gang[Any]]) -> None:
    """Check that every member of every gang reads and writes the storage of the run.

    Raises:
        BadInput: one does not. All members that fail are named, by machine.
        StorageFailed: the storage does not answer here.
    """
    name = stored.full(f"storage-{secrets.token_hex(4)}")
    with explained(stored.storage.url):
        stored.storage.put(name, b"token")
        calls = {role: gang.all(SharesStorage.check_object_storage, name) for role, gang in gangs.items()}
        sightings = {f"{role}-{n}": call.result() for role, own in calls.items() for n, call in enumerate(own)}
        stored.storage.delete([name, *(f"{name}.{sighting.node}" for sighting in sightings.values())])
    failed = {member: sighting for member, sighting in sightings.items() if sighting.why}
    if failed:
        fix = "give the machines of the workers the same access (docs/cluster/storage.md)"
        raise BadInput(
            [
                Problem(what=f"{member.replace('-', ' rank ')} on {s.node} cannot use storage", why=s.why, fix=fix)
                for member, s in failed.items()
            ]
        )


@contextmanager
def _token(directory: Path) -> Iterator[tuple[Path, str]]:
    """Create a directory with a new token in it, and remove it afterwards."""
    place, token = disk.fresh(directory / f"storage-{secrets.token_hex(4)}"), secrets.token_hex(16)
    try:
        (place / TOKEN).write_text(token)
        yield place, token
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _problems(directory: Path, sightings: Mapping[str, Sighting], unseen: set[str]) -> Iterator[Problem]:
    """Yield a problem for each machine and reason, with the members that it concerns."""
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, sighting in sightings.items():
        if why := UNSEEN if name in unseen else sighting.why:
            role, _, rank = name.rpartition("-")
            members[sighting.node, why].append(f"{role} rank {rank}")
    for (node, why), names in members.items():
        who, fails = names[0], why
        if len(names) > 1:
            who, fails = f"{', '.join(names[:-1])} and {names[-1]}", why.replace("does not", "do not")
        yield Problem(what=f"{who} on {node} {fails} {directory}: {EVERY_NODE}", why=WHY, fix=FIX)
