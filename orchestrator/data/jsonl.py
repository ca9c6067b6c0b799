"""Read JSON Lines in bounded memory, reporting every problem with its line."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.data.rows import Row, RowProblems, kind_of

MAX_LINE_BYTES = 8 * 2**20
INT64 = range(-(2**63), 2**63)
MAGIC = {
    b"\xef\xbb\xbf": ("starts with a byte order mark (byte 0)", "save it as UTF-8 without BOM"),
    b"\xff\xfe": ("is UTF-16 (byte 0)", "save it as UTF-8"),
    b"\xfe\xff": ("is UTF-16 (byte 0)", "save it as UTF-8"),
    b"\x1f\x8b": ("is compressed (gzip)", "unpack it: gunzip FILE"),
    b"\x28\xb5\x2f\xfd": ("is compressed (zstd)", "unpack it: zstd -d FILE"),
    b"PAR1": ("is a parquet file", "call it .parquet"),
}
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _BadRowError(ValueError):
    """Problem found by a JSON hook: (what, why, fix)."""


def read_jsonl(path: Path, problems: RowProblems, only: Container[int] | None = None) -> Iterator[Row]:
    """Yield the valid rows of a file, adding the others to `problems`. Blank lines are skipped.

    Args:
        only: numbers of the rows to parse, or None for all.

    Raises:
        BadInput: if the file is not JSON Lines at all, or reading it fails.
    """
    try:
        yield from _read(path, problems, only)
    except OSError as error:
        raise problems.stop("cannot be read", why=os.strerror(error.errno or 0).lower(), fix="copy it again") from None


def _read(path: Path, problems: RowProblems, only: Container[int] | None) -> Iterator[Row]:
    with open(path, "rb") as file:
        start = file.read(4)
        for magic, (what, fix) in MAGIC.items():
            if start.startswith(magic):
                raise problems.stop(f"the file {what}", why="a .jsonl file is UTF-8 text", fix=fix)
        file.seek(0)
        offset = 0  # of the line in bytes
        for number, line in enumerate(_lines(file), start=1):
            if only is not None and number not in only:
                pass
            elif len(line) > MAX_LINE_BYTES:
                fix = "split the row, or use parquet"
                problems.add(number, f"a line of more than {MAX_LINE_BYTES // 2**20} MiB", fix=fix)
            elif line.strip():
                values = _parse(line, number, offset, problems)
                if values is not None:
                    yield Row(number, values)
            offset += len(line)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines. A line that is too long is truncated to one byte more than the limit."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield line


def _parse(line: bytes, number: int, offset: int, problems: RowProblems) -> dict[str, Any] | None:
    if b"\0" in line:
        what = f"a NUL byte (byte {offset + line.index(0)})"
        problems.add(number, what, why="not text: is this UTF-16 or binary?", fix="save it as UTF-8")
        return None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.add(number, f"not UTF-8 (byte {offset + error.start})", fix="save the file as UTF-8")
        return None
    stripped = text.strip()
    if number == 1 and stripped.startswith("["):
        fix = "write one object per line: jq -c '.[]' FILE > FILE.jsonl"
        raise problems.stop("one big JSON array", row=1, why="a .jsonl file has one object per line", fix=fix)
    if stripped in ("{", "}"):
        fix = "write one object per line: jq -c . FILE > FILE.jsonl"
        raise problems.stop("an object over several lines", row=number, why="one line is one row", fix=fix)
    try:
        values = json.loads(stripped, **_HOOKS)
    except json.JSONDecodeError as error:
        what, fix = _hint(stripped, error, cut=not line.endswith(b"\n"))
        problems.add(number, what, fix=fix)
    except _BadRowError as error:
        what, why, fix = error.args
        problems.add(number, what, why=why, fix=fix)
    except RecursionError:
        problems.add(number, "nested too deeply", fix="a row is an object of texts and short lists")
    else:
        if not isinstance(values, dict):
            problems.add(number, f"the row is {kind_of(values)}", fix='write an object: {"prompt": …}')
        elif "\\u" in stripped and (invalid := _invalid_escape(stripped, values)):
            problems.add(number, invalid, why="not a character: no tokenizer can encode it", fix="remove it")
        else:
            return values
    return None


def _hint(text: str, error: json.JSONDecodeError, *, cut: bool) -> tuple[str, str]:
    if text.endswith(","):
        return "a comma at the end of the line", "remove the comma: one object per line, nothing between them"
    if cut and not text.endswith("}"):
        return "the file ends in the middle of this row", "the file was cut off: copy or write it again"
    if text.startswith("{'"):
        return "single quotes", "this is Python, not JSON: write it with json.dumps"
    return f"not JSON: {error.msg} (column {error.colno})", "write one JSON object per line"


def _invalid_escape(text: str, values: dict[str, Any]) -> str:
    plain = json.dumps(values, ensure_ascii=False)
    if LONE_SURROGATE.search(plain):
        return f"half of a surrogate pair (byte {text.lower().index(chr(92) + 'ud')} of the line)"
    return f"a NUL character (byte {text.index('u0000') - 1} of the line)" if "\\u0000" in plain else ""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise _BadRowError(f"the key `{duplicate}` is given twice", "", "keep one of them")
    return values


def _constant(name: str) -> Any:
    raise _BadRowError(f"the number {name}", "JSON has no such number", "use null, or remove the row")


def _integer(digits: str) -> int:
    if len(digits) > len(str(INT64.start)) or int(digits) not in INT64:
        raise _BadRowError("a number of more than 64 bits", "", "write it as text")
    return int(digits)


def _float(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise _BadRowError(
            f"the number {digits[:40]}", "it is beyond float64 and would be read as infinite", "scale it"
        )
    return number


_HOOKS: dict[str, Any] = {
    "object_pairs_hook": _no_duplicates,
    "parse_constant": _constant,
    "parse_int": _integer,
    "parse_float": _float,
}
