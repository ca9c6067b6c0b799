"""Records of a labelling tool's export: a JSON array, or JSON lines. Each has the line on which it begins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from orchestrator.data.jsonl import read_jsonl
from orchestrator.data.rows import Row, RowProblems, kind_of
from orchestrator.data.sources import local

FIX = "export the file again, as JSON"


def read_records(path: Path, problems: RowProblems) -> Iterator[Row]:
    """Yield the records of a file, adding those that are no objects to `problems`.

    Raises:
        BadInput: the file cannot be read, or is not JSON.
    """
    try:
        with open(local(path), "rb") as file:
            start = file.read(1024).lstrip()
        text = local(path).read_text("utf-8") if start.startswith(b"[") else None
    except OSError as error:
        why = (error.strerror or "").lower()
        raise problems.stop("cannot be read", why=why, fix="give the file that the labelling tool exported") from None
    except UnicodeDecodeError as error:
        raise problems.stop(f"not UTF-8 (byte {error.start})", fix="save the file as UTF-8") from None
    yield from read_jsonl(local(path), problems) if text is None else _array(text, problems)


def _array(text: str, problems: RowProblems) -> Iterator[Row]:
    """Yield the objects of a JSON array."""
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while (at := _after_space(text, at)) < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise problems.stop(f"not JSON: {error.msg}", row=error.lineno, fix=FIX) from None
        except RecursionError:
            raise problems.stop("nested too deeply", row=line, fix=FIX) from None
        if isinstance(value, dict):
            yield Row(line, value)
        else:
            problems.add(line, f"the record is {kind_of(value)}, not an object", fix=FIX)
        at = _after_space(text, at)
        if at < len(text) and text[at] == ",":
            at += 1
        elif text[at : at + 1] != "]":
            break
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        what = "the array has no end" if at >= len(text) else "not JSON: something between records or after the array"
        raise problems.stop(what, row=line + text.count("\n", counted, at), fix=FIX)


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
