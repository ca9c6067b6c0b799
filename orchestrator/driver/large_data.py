"""Large sources of data: their rows are read and checked once, and stay in files that are shared by all later starts.

    content of the files, settings, code ──digest──► OUTPUT_DIR/.rows/DIGEST ──► rows that are read when they are drawn
                                           │                   ▲
                                           └── none yet ──► a process that reads, checks and writes all rows, and ends

A start of a run finds every bad row before anything else is started, as with small sources. What remains in the driver
of a large source is a few numbers. Any other content, setting of the rows, tokenizer or code is another directory.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import disk
from orchestrator.audit.before_run import audit_remarks
from orchestrator.config import RunConfig, resolved
from orchestrator.config.recipe import from_resolved
from orchestrator.data.remarks import Labels
from orchestrator.data.sources import is_hub_name, local
from orchestrator.data.stored import OFFSETS, ROWS, NotPlainError, StoredRows, store
from orchestrator.data.tokens import TokenCounter
from orchestrator.errors import BadInput, Problem, RlhfError
from orchestrator.preflight.data_files import (
    KEYS,
    read_whole,
    scored_rows,
    tokenizer_directory,
    tokens_of,
)
from orchestrator.preflight.source import Facts, Source
from orchestrator.rundir.inputs import digest_data, digest_tokenizer
from orchestrator.rundir.provenance import fingerprint, software
from workers.config import ModelRewardConfig

LARGE_BYTES = 4 * 2**20  # of the files of a key; the rows of smaller ones take up to 40 MiB of memory
FOLDER = ".rows"
SUMMARY, PROMPT_KEYS = "source.json", "prompt_keys"
NO_MATTER = (  # settings that no check of rows looks at
    "name", "output_dir", "storage", "seed", "policy", "critic", "critic_model", "reference", "rounds", "evaluation",
    "max_device_seconds", "max_staleness", "checkpoint", "export", "alarms", "cluster", "report_to", "wandb",
    "samples_per_step",
)  # fmt: skip


def read_key(config: RunConfig, name: str, tokens: TokenCounter | None) -> Source | None:
    """Read the rows of `data.NAME`: into memory, or, if they are many, into files.

    Raises:
        BadInput: with every row that cannot be used.
        RlhfError: the process that reads a large source has been killed.
        OSError: the disk failed.
    """
    if not is_large(config, name):
        return read_whole(config, name, tokens)
    folder = local(config.output_dir).absolute() / FOLDER / digest_of(config, name)
    if (source := open_source(folder)) is not None:
        return source
    sources = ", ".join(config.data.paths(name))
    print(f"data.{name}: reading and checking all rows of {sources}, once; they are kept in {folder}", flush=True)
    started = time.monotonic()
    foreign = _write_apart(config, name, folder)
    if foreign is not None:
        print(f"data.{name}: the rows stay in memory: {foreign}", flush=True)
        return read_whole(config, name, tokens)
    source = open_source(folder)
    assert source is not None, "it was written just now"
    print(f"data.{name}: {len(source.rows):,} rows read in {time.monotonic() - started:.0f} s", flush=True)
    return source


def is_large(config: RunConfig, name: str) -> bool:
    """Return whether the rows of `data.NAME` are kept in files; never those of a Hub dataset, which has no digest."""
    sources = config.data.paths(name)
    if any(is_hub_name(source) for source in sources):
        return False
    return sum(map(_size, map(local, sources))) >= LARGE_BYTES


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else []
    return sum(file.stat().st_size for file in files)


def digest_of(config: RunConfig, name: str) -> str:
    """Return a digest of all that the rows and remarks of `data.NAME` depend on."""
    settings = {key: value for key, value in resolved(config).items() if key not in NO_MATTER}
    settings["data"] = {key: value for key, value in settings["data"].items() if key not in KEYS or key == name}
    # The numbers of a method (learning rate, β, batch size) decide how rows are trained on, not which.
    numbers = [key for key, value in settings["algorithm"].items() if type(value) in (int, float)]
    settings["algorithm"] = {key: value for key, value in settings["algorithm"].items() if key not in numbers}
    readers = [config.model.path, *(reward.path for reward in config.reward if isinstance(reward, ModelRewardConfig))]
    folders = [tokenizer_directory(path) for path in readers if path is not None]
    principles = getattr(config.algorithm, "constitution", None)  # drawn for each row, and written into it
    content = {
        "key": name,
        "settings": settings,
        "files": [digest_data(local(path)) for path in config.data.paths(name)],
        "tokenizers": [None if folder is None else digest_tokenizer(folder) for folder in folders],
        "principles": None if principles is None else [digest_data(local(principles)), config.seed],
        "software": software(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def open_source(folder: Path) -> Source | None:
    """Return the source in a folder of rows; None: there is none, or a file of it is damaged."""
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        if any(disk.sha256(folder / file) != digest for file, digest in summary["sha256"].items()):
            return None
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
    return Source(
        key=summary["key"],
        source=summary["source"],
        rows=StoredRows(folder),
        files=summary["files"],
        remarks=tuple(summary["remarks"]),
        num_dropped=summary["num_dropped"],
        facts=Facts(
            prompt_keys=folder / PROMPT_KEYS,
            labels=None if summary["labels"] is None else Labels(**summary["labels"]),
            blocks=tuple(summary["blocks"]),
            audit=tuple(summary["audit"]),
        ),
    )


# ------------------------------------------------------------------------------------------------ the other process


def _write_apart(config: RunConfig, name: str, folder: Path) -> str | None:
    """Write a folder of rows in a process of its own, whose memory is free again when it ends.

    Returns:
        Why the rows cannot be kept in files; None: they are.
    """
    command = [sys.executable, "-P", "-m", "orchestrator.driver.large_data", name, str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        try:
            child.stdin.write(json.dumps(resolved(config)).encode() + b"\n")
            child.stdin.flush()  # and stays open: its end tells the process that the driver is gone, however it ended
            answer = child.stdout.read()
            child.wait()
        except BaseException:  # a signal, too
            child.kill()
            raise
    if child.returncode:
        what = f"the process that reads data.{name} ended with exit code {child.returncode}"
        why = "its last lines are above" if child.returncode > 0 else "it was killed, perhaps for want of memory"
        raise RlhfError(
            Problem(what=what, where=", ".join(config.data.paths(name)), why=why, fix="start the run again")
        )
    result = json.loads(answer.splitlines()[-1])  # a library may have printed something before
    if result["disk"] is not None:
        raise OSError(*result["disk"])
    if result["problems"]:
        raise BadInput([Problem(**problem) for problem in result["problems"]])
    foreign: str | None = result["foreign"]
    return foreign


def main(name: str, folder: str) -> None:
    """Read, check and write the rows of `data.NAME` of the config in stdin. Print what is wrong with them as JSON."""
    config = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    gc.disable()  # rows have no cycles, and looking for some takes a fifth of the time
    problems: list[Problem] = []
    foreign: str | None = None
    failed: tuple[int | None, str | None, str] | None = None
    try:
        write_source(from_resolved(config, name), name, Path(folder))
    except BadInput as error:
        problems.extend(error.problems)
    except NotPlainError as error:
        row, kind = error.args
        foreign = f"{row} has a value of type {kind}"
    except OSError as error:
        failed = (error.errno, error.strerror, str(error.filename or folder))
    found = [asdict(problem) for problem in problems]
    print(json.dumps({"problems": found, "foreign": foreign, "disk": failed}))


def _end_with_the_driver() -> None:
    os.read(sys.stdin.fileno(), 1)  # not by the buffered file, which the interpreter locks when it ends
    os._exit(1)


def write_source(config: RunConfig, name: str, folder: Path) -> None:
    """Read all rows of `data.NAME` and write them into a folder, complete or not at all.

    Raises:
        BadInput: with every row that cannot be used.
        NotPlainError: the rows cannot be kept in files.
    """
    source = read_whole(config, name, tokens_of(config.model.path, config.model.chat_template_kwargs))
    assert source is not None
    if problems := scored_rows(config, {name: source}):
        raise BadInput(problems)
    if digest_of(config, name) != folder.name:
        what, fix = "it has changed while it was read", "start the run again when nothing writes to it"
        raise BadInput(Problem(what=what, where=source.source, fix=fix))
    disk.make_directory(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    try:
        store(temporary, source.rows)
        np.concatenate([*source.prompt_keys()]).tofile(temporary / PROMPT_KEYS)
        digests = {file: disk.sha256(temporary / file) for file in (ROWS, OFFSETS, PROMPT_KEYS)}
        (temporary / SUMMARY).write_text(json.dumps(_summary(config, name, source) | {"sha256": digests}))
        disk.sync_tree(temporary)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        temporary.rename(folder)
    except OSError:
        if not folder.exists():  # else another run has written the same
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _summary(config: RunConfig, name: str, source: Source) -> dict[str, Any]:
    return {
        "key": source.key,
        "source": source.source,
        "files": dict(source.files),
        "remarks": list(source.remarks),
        "num_dropped": source.num_dropped,
        "labels": asdict(source.labels()) if name.endswith("dataset") else None,
        "blocks": fingerprint(source.source, source.rows)["blocks"],
        "audit": audit_remarks(config, {name: source}),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
