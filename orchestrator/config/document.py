"""Read a YAML file as plain data together with the location of every value.

PyYAML's loader forgets lines, takes the last of two equal keys and expands alias bombs. This one composes the node
graph and walks it once, collecting all problems instead of stopping at the first.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from orchestrator.errors import Problems

KeyPath: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_VALUES = 10_000  # after aliases are expanded
MAX_DEPTH = 30
NO_CHARACTER = re.compile(r"[\0\ud800-\udfff]")  # a NUL, or half of a surrogate pair
EXPONENT = re.compile(r"[-+]?(\d+)(\.\d*)?[eE]([-+]?\d+)")
# Numbers that YAML 1.1 and a person read alike: not 010 (8), 0x10 (16), 1_00 (100) or 1:30 (90).
PLAIN_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d*|[1-9]\d{0,2}(?:_\d{3})+)")
PLAIN_FLOAT = re.compile(
    r"[-+]?(?:(?:\d+|[1-9]\d{0,2}(?:_\d{3})+)\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|nan)", re.I
)
INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Location of a value and, for a scalar, its text in the file.

    Example: `Location(text="grpo.yaml:7", raw="off")`.
    """

    text: str
    raw: str | None = None  # None: not a scalar


@dataclass(kw_only=True, slots=True)
class Document:
    """Plain data (mappings, lists, scalars) with the location of every key path."""

    data: Any
    places: dict[KeyPath, Location] = field(default_factory=dict)

    def place(self, path: KeyPath) -> Location:
        """Return the location of `path`, or of the nearest enclosing path that has one."""
        for length in range(len(path), -1, -1):
            if found := self.places.get(path[:length]):
                return found
        return next(iter(self.places.values()), Location(text=""))


def dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def read_document(path: Path, problems: Problems) -> Document | None:
    """Read a file, adding what is wrong to `problems`. Return None if it cannot be read at all."""
    text = _read_text(path, problems)
    return None if text is None else parse(text, str(path), problems)


def parse(text: str, name: str, problems: Problems, *, one_line: bool = False, strict: bool = True) -> Document | None:
    """Parse YAML, adding what is wrong to `problems`. Return None if it cannot be parsed at all.

    Args:
        name: the file's name in locations.
        one_line: the text is an override, whose location has no line number.
        strict: read `1e-6` as text, as YAML 1.1 does.
    """
    reader = _Reader(name, problems, one_line=one_line, strict=strict)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return Document(data=None if node is None else reader.read(node, ()), places=reader.places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if one_line or mark is None else f":{mark.line + 1}"
        fix = "indent with spaces" if "\\t" in str(error.problem) else "see https://yaml.org, or quote the value"
        problems.add("not YAML", where=f"{name}{line}", why=str(error.problem or error.context), fix=fix)
    except yaml.reader.ReaderError as error:
        problems.add(
            "not text",
            where=name,
            why=f"character {error.position} is {error.reason}",
            fix="save it as UTF-8",
        )
    except (RecursionError, _TooLargeError):
        fix = f"at most {MAX_VALUES} values and {MAX_DEPTH} levels; are there aliases (*) within aliases?"
        problems.add("too large or nested too deeply", where=name, fix=fix)
    return None


def _read_text(path: Path, problems: Problems) -> str | None:
    where = str(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            problems.add(
                "is a directory",
                where=where,
                fix="give a recipe file, for example configs/quickstart/grpo.yaml",
            )
            return None
        if not stat.S_ISREG(mode):
            problems.add("is not a regular file", where=where, fix="give a recipe file (YAML)")
            return None
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        fix = f"recipes in {path.parent}: {', '.join(near[:8])}" if near else "check the path"
        problems.add("no such recipe", where=where, fix=fix)
        return None
    except OSError as error:
        problems.add(
            "cannot be read",
            where=where,
            why=os.strerror(error.errno or 0),
            fix="check the path and its permissions",
        )
        return None
    if len(raw) > MAX_BYTES:
        problems.add(
            f"larger than {MAX_BYTES // 1024} KiB",
            where=where,
            fix="a recipe is a short YAML file: is this data?",
        )
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8"
        problems.add("not text", where=where, why=why, fix="a recipe is a YAML file in UTF-8: is this a binary file?")
        return None


def _shown(path: KeyPath, node: yaml.ScalarNode) -> str:
    return f"{dotted(path)} = {node.value[:40]}" if path else str(node.value[:40])


def _ambiguity(node: yaml.ScalarNode, kind: str) -> str:
    """Return why an unquoted value may be meant differently than YAML reads it; empty: it is unambiguous.

    For keys that accept values of any type, where validation cannot find the mistake.
    """
    if node.style is None and kind == "bool" and node.value.lower() not in ("true", "false"):
        return f"YAML reads {node.value} as true or false"
    number = EXPONENT.fullmatch(node.value) or re.fullmatch(r"[-+]?0\w*\d|[\d,:_]*\d", node.value)
    if node.style is None and (kind == "str" or ":" in node.value) and number:
        return f"YAML reads {node.value} as text"
    return ""


class _TooLargeError(Exception):
    """Document with more values or levels than any recipe has: an alias bomb, or not a recipe."""


class _Reader:
    """Converter of YAML nodes to plain data. A value that cannot be read becomes None and a problem."""

    def __init__(self, name: str, problems: Problems, *, one_line: bool, strict: bool) -> None:
        self.name, self.problems, self.one_line, self.strict = name, problems, one_line, strict
        self.places: dict[KeyPath, Location] = {}
        self.scalars = yaml.constructor.SafeConstructor()
        self.num_values = 0

    def where(self, node: yaml.Node) -> str:
        return self.name if self.one_line else f"{self.name}:{node.start_mark.line + 1}"

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise _TooLargeError
        raw = node.value if isinstance(node, yaml.ScalarNode) else None
        self.places.setdefault(path, Location(text=self.where(node), raw=raw))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        first_node: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and not self.is_text(key_node, path):
                continue
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key == "<<":
                what = f"{dotted(path)}: `<<`" if key == "<<" else f"{dotted(path)}: a key that is not text"
                self.problems.add(what, where=self.where(key_node), why="not supported", fix="write the keys out")
                continue
            if key in first_node:
                lines = [n.start_mark.line + 1 for n in (first_node[key], key_node)]
                self.problems.add(
                    f"`{dotted((*path, key))}` is given twice",
                    where=self.where(key_node),
                    why=f"on line {lines[0]} and on line {lines[1]}",
                    fix="keep one of them",
                )
                continue
            first_node[key] = key_node
            self.places[(*path, key)] = Location(
                text=self.where(key_node),
                raw=value_node.value if isinstance(value_node, yaml.ScalarNode) else None,
            )
            data[key] = self.read(value_node, (*path, key))
        return data

    def is_text(self, node: yaml.ScalarNode, path: KeyPath) -> bool:
        """Check that a scalar has neither a NUL nor a lone surrogate, which no file name or other program accepts.

        Surrogate pairs, as JSON writes characters beyond 16 bits, are joined in the node.
        """
        with suppress(UnicodeDecodeError):
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        if not (bad := NO_CHARACTER.search(node.value)):
            return True
        what = f"{dotted(path) or 'a key'} contains {bad[0]!a}: {ascii(node.value)[:40]}"
        why = "a NUL or half of a surrogate pair is not a character"
        self.problems.add(what, where=self.where(node), why=why, fix="write the character itself")
        return False

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if not self.is_text(node, path):
            return None
        kind = node.tag.rpartition(":")[2]
        if "chat_template_kwargs" in path[:-1] and (why := _ambiguity(node, kind)):
            fix = f"write true, false or a number as 1.0e-6; put text in quotes: '{node.value}'"
            self.problems.add(_shown(path, node), where=self.where(node), why=why, fix=fix)
            return node.value
        if kind in ("str", "timestamp") or (kind == "int" and ":" in node.value):  # YAML 1.1 reads 12:30 as 750
            return (
                float(node.value)
                if not self.strict and not node.style and EXPONENT.fullmatch(node.value)
                else node.value
            )
        if kind == "float" and ":" in node.value:
            return node.value
        if kind in ("null", "bool", "int", "float"):
            try:
                value = self.scalars.construct_object(node)
            except ValueError:
                return node.value
            return self.number(node, value, path) if kind in ("int", "float") else value
        what = f"{dotted(path)}: the tag {node.tag.replace('tag:yaml.org,2002:', '!!')}"
        self.problems.add(what, where=self.where(node), why="not supported", fix="write a plain value")
        return None

    def number(self, node: yaml.ScalarNode, value: float, path: KeyPath) -> float:
        """Return a number, or add a problem if YAML 1.1 and a person may read it differently."""
        is_int = isinstance(value, int)
        if is_int and value not in INT64:
            why, fix = "it does not fit into 64 bits", "give a smaller number; put text in quotes"
        elif (PLAIN_NUMBER if is_int else PLAIN_FLOAT).fullmatch(node.value):
            return value
        else:
            digits = node.value.replace("_", "").lstrip("+-")
            meant = f" or {int(digits)}" if is_int and digits.isdigit() and int(digits) != abs(value) else ""
            why, fix = f"YAML reads {node.value} as {value}", f"write {value}{meant}; put text in quotes"
        self.problems.add(_shown(path, node), where=self.where(node), why=why, fix=fix)
        return value
