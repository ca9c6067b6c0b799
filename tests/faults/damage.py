"""Flipped bits and truncated files in the checkpoint and the ledger of a finished run."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from orchestrator.errors import ResumeError
from orchestrator.rundir.ledger import read_ledger
from orchestrator.rundir.manifest import verify


def damage_file(path: Path, draw: random.Random) -> None:
    """Flip one bit of a file, or cut off its end."""
    raw = bytearray(path.read_bytes())
    if draw.random() < 0.5:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    else:
        del raw[draw.randrange(len(raw)) :]
    path.write_bytes(raw)


def damaged_checkpoint_is_refused(checkpoint: Path, copy: Path, seed: int) -> bool:
    """Damage one file of a copy of the checkpoint and return whether the copy is refused."""
    draw = random.Random(seed)
    shutil.copytree(checkpoint, copy)
    damage_file(draw.choice(sorted(p for p in copy.rglob("*") if p.is_file())), draw)
    refused = bool(verify(copy))
    shutil.rmtree(copy)
    return refused


def damaged_ledger_is_detected(ledger: Path, copy: Path, seed: int) -> bool:
    """Damage a copy of the ledger and return whether it is refused, or read only up to the damage."""
    whole, _, _ = read_ledger(ledger)
    shutil.copy(ledger, copy)
    damage_file(copy, random.Random(seed))
    try:
        found, good_bytes, size = read_ledger(copy)
    except ResumeError:
        return True
    torn_or_cut = good_bytes < size or size < ledger.stat().st_size
    return torn_or_cut and len(found) < len(whole) and found == whole[: len(found)]
