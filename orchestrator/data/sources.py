"""Read rows from a .jsonl or .parquet file, a `datasets` folder, or a Hub dataset."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.data.jsonl import read_jsonl
from orchestrator.data.rows import Row, RowProblems

SUFFIXES = (".jsonl", ".json", ".parquet")
GENERATED = ("rows.parquet", "pairs.parquet")  # names of the files of a data set that a run writes
BOMB_BYTES = 64 * 2**20  # smaller files are harmless at any ratio
TEMPLATE_COLUMNS = frozenset(
    ("prompt", "chosen", "rejected", "completion", "completions", "messages", "tools", "chat_template_kwargs")
)
MAX_RATIO = 1000  # text compresses to a tenth, a column of one repeated text to a hundredth
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_hub_name(source: str, root: Path = Path()) -> bool:
    """Return whether `source` can only be a Hub dataset: nothing on this machine has that name below `root`."""
    path = root / source
    local = path.exists() or path.is_symlink() or path.suffix in SUFFIXES or source.startswith((".", "/", "~"))
    parts = Path(source).parts
    in_a_folder = len(parts) > 1 and (root / parts[0]).is_dir()
    return not local and not in_a_folder and bool(HUB_NAME.fullmatch(source))


def local(path: str | Path) -> Path:
    """Return a path with `~` expanded; it stays as it is for an unknown user."""
    with suppress(ValueError):  # a NUL, which no name of a user or file contains
        path = os.path.expanduser(path)
    return Path(path)


def label(source: str) -> str:
    """Return the short name that row ids start with: `prompts.jsonl` for `./data/prompts.jsonl`.

    For the data set of a run it names the run: `answers/rows.parquet` for `runs/answers/data/rows.parquet`.
    """
    path = Path(source)
    if path.name in GENERATED and path.parent.name == "data" and len(path.parts) > 2:
        return f"{path.parents[1].name}/{path.name}"
    return source if is_hub_name(source) else path.name


def read_rows(source: str, split: str, problems: RowProblems, only: Container[int] | None = None) -> Iterator[Row]:
    """Yield the rows of `source` in order.

    Args:
        only: numbers of the rows to yield, or None for all.

    Raises:
        BadInput: if there is no such source, or its content does not match its name.
    """
    if is_hub_name(source):
        return _picked(_from_datasets(source, split, problems), only)
    path = local(source)
    mode = _mode(path, problems)
    if stat.S_ISDIR(mode):
        return _picked(_from_datasets(str(path), split, problems), only)
    if not stat.S_ISREG(mode):
        kind = next((k for t, k in _KINDS if t(mode)), "not a file")
        raise problems.stop(f"this is {kind}", fix="give a .jsonl or .parquet file")
    if path.suffix not in SUFFIXES:
        raise problems.stop(
            f"files of type {path.suffix or '(none)'} are not supported", fix="give a .jsonl or .parquet file"
        )
    if path.suffix == ".parquet":
        return _picked(_from_parquet(path, problems), only)
    return read_jsonl(path, problems, only)


def _picked(rows: Iterator[Row], only: Container[int] | None) -> Iterator[Row]:
    return rows if only is None else (row for row in rows if row.number in only)


_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def _mode(path: Path, problems: RowProblems) -> int:
    try:
        mode = os.stat(path).st_mode
        if not os.access(path, os.R_OK):
            raise problems.stop("cannot be read", why="permission denied", fix=f"chmod +r {path}")
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES) if path.parent.is_dir() else []
        fix = f"files in {path.parent}: {', '.join(near[:8])}" if near else f"relative paths start at {Path.cwd()}"
        raise problems.stop("cannot be read", why=why, fix=fix) from None
    return mode


def _from_parquet(path: Path, problems: RowProblems) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        metadata = parquet.read_metadata(path)
        _refuse_foreign_types(metadata.metadata or {}, problems)
        _refuse_bombs(metadata, path.stat().st_size, problems)
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(number, without_nulls(values))
    except (
        pyarrow.ArrowException,
        OSError,
        ValueError,
        OverflowError,
    ) as error:  # dates beyond Python's; names not UTF-8
        why = str(error).split("\n")[0]
        raise problems.stop("not a readable parquet file", why=why, fix="write the file again") from None


def _refuse_foreign_types(metadata: dict[bytes, bytes], problems: RowProblems) -> None:
    """Refuse Ray's extension types before their metadata are read, which ran code (CVE-2026-41486)."""
    schema = base64.b64decode(metadata.get(b"ARROW:schema", b""), validate=False)
    if b"ARROW:extension:name" in schema and b"ray." in schema:
        why, fix = "their metadata is not read, for security", "write the columns as plain text and lists"
        raise problems.stop("has columns of a Ray extension type", why=why, fix=fix)


def _refuse_bombs(metadata: Any, packed: int, problems: RowProblems) -> None:
    """Refuse a file of `packed` bytes that would decompress to more than fits into memory."""
    # Not by column: on a damaged column pyarrow (26) ends the process instead of raising.
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if size > BOMB_BYTES and size > MAX_RATIO * packed:
        why = (
            f"{packed} bytes decompress to {size / 2**20:.0f} MiB, {size // packed} times as much; "
            f"the limit is {MAX_RATIO}"
        )
        raise problems.stop("decompression bomb", why=why, fix="write it again without compression")


def _from_datasets(name: str, split: str, problems: RowProblems) -> Iterator[Row]:
    for number, values in enumerate(load_table(name, split, problems), start=1):
        yield Row(number, without_nulls(values))


def load_table(name: str, split: str, problems: RowProblems) -> Any:
    """Return a split of a `datasets` folder or Hub dataset.

    Raises:
        BadInput: if it cannot be loaded, or has no such split.
    """
    import datasets

    try:
        on_disk = Path(name) if Path(name).is_dir() else None
        saved = on_disk and any((on_disk / f).exists() for f in ("dataset_info.json", "dataset_dict.json"))
        table: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split)
    except Exception as error:  # the Hub, its cache and dataset builders raise errors of any type
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        fix = "check the name, data.split and HF_TOKEN; offline, only what is in the cache can be read"
        raise problems.stop(f"the dataset cannot be loaded (split {split})", why=why, fix=fix) from None
    if not isinstance(table, datasets.DatasetDict):
        return table
    if split not in table:
        raise problems.stop(f"there is no split {split}", fix=f"use one of {', '.join(table)}")
    return table[split]


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the nulls that columnar files add to messages, tools and template arguments.

    There, every object of a column has the keys of all objects. Other columns are unchanged.
    """

    def pruned(value: Any) -> Any:
        if isinstance(value, list):
            return [pruned(item) for item in value]
        if isinstance(value, dict):
            return {key: pruned(item) for key, item in value.items() if item is not None}
        return value

    return {name: pruned(value) if name in TEMPLATE_COLUMNS else value for name, value in values.items()}
