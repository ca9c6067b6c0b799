"""Settings as the configuration reference shows them: key, type, default, unit and meaning, read from the classes.

The meaning of a setting is the comment on its field: beside it, in `#` lines directly above it, or in a string directly
below it.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import annotated_types as at
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from workers.config import PathText, Settings
from workers.config.base import IsoTime
from workers.config.rewards import Pattern

SettingsClass: TypeAlias = type[Settings]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting. Example: `Setting(name="keep", type="integer ≥ 1", default="2", unit="checkpoints", …)`."""

    name: str
    type: str
    default: str  # empty: the setting is required
    unit: str  # empty: none
    meaning: str
    nested: tuple[SettingsClass, ...]  # settings classes that its value may be
    required: bool


def settings_of(cls: SettingsClass) -> list[Setting]:
    """Return the settings of a class in the order of its fields, inherited ones first."""
    return [_setting(cls, name, field) for name, field in cls.model_fields.items()]


def first_sentence(cls: type) -> str:
    """Return the first sentence of a class's own docstring."""
    text = " ".join((cls.__dict__.get("__doc__") or "").split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", text, maxsplit=1)[0]


def _setting(cls: SettingsClass, name: str, field: FieldInfo) -> Setting:
    nested = tuple(_nested(field.annotation))
    meaning = _meaning(cls, name) or _of_the_type(cls, name, nested)
    return Setting(
        name=name,
        type=type_text(field.annotation, field.metadata),
        default="" if field.is_required() else default_text(field.get_default(call_default_factory=True)),
        unit=_unit(name, field, meaning),
        meaning=meaning,
        nested=nested,
        required=field.is_required(),
    )


# ---------------------------------------------------------------------------------------------- meaning


def _meaning(cls: SettingsClass, name: str) -> str:
    """Return the comment on a field, of the most derived class that has one."""
    for base in cls.__mro__:
        if found := _comments(base).get(name):
            return found
    return ""


def _of_the_type(cls: SettingsClass, name: str, nested: Sequence[SettingsClass]) -> str:
    if name == "type":
        return f"Selects: {first_sentence(cls)}"
    return first_sentence(nested[0]) if len(nested) == 1 else ""


def _comments(cls: type) -> Mapping[str, str]:
    """Return the comment on each field that a class itself declares; nothing for classes of others."""
    if cls.__module__.partition(".")[0] not in ("workers", "orchestrator"):
        return {}
    return _comments_in(inspect.getsourcefile(cls) or "")[cls.__name__]


@cache
def _comments_in(path: str) -> Mapping[str, Mapping[str, str]]:
    return field_comments(Path(path).read_text("utf-8"))


def field_comments(source: str) -> dict[str, dict[str, str]]:
    """Return the comment on each field of each class in a module's source.

    A comment stands beside the field, in `#` lines directly above it, or in a string directly below it.
    """
    lines = _comment_lines(source)
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: dict(_fields(node.body, lines)) for node in classes}


def _fields(body: Sequence[ast.stmt], lines: Mapping[int, tuple[bool, str]]) -> Iterator[tuple[str, str]]:
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            parts = [*_above(node.lineno, lines), *_beside(node, lines), *_below(after)]
            yield node.target.id, " ".join(" ".join(parts).split())


def _comment_lines(source: str) -> Mapping[int, tuple[bool, str]]:
    """Return (stands alone on its line, text) of every comment, by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.line.lstrip().startswith("#"), token.string.lstrip("# "))
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _above(line: int, lines: Mapping[int, tuple[bool, str]]) -> list[str]:
    texts: list[str] = []
    while (found := lines.get(line - 1 - len(texts))) and found[0] and not found[1].startswith("---"):
        texts.insert(0, found[1])
    return texts


def _beside(node: ast.AnnAssign, lines: Mapping[int, tuple[bool, str]]) -> Iterator[str]:
    for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
        if line in lines:
            yield lines[line][1]


def _below(node: ast.stmt | None) -> Iterator[str]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        yield node.value.value


# ------------------------------------------------------------------------------------- type and default

NAMES = {int: "integer", float: "number", bool: "boolean", str: "text", type(None): "null", Any: "any value"}


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return a type as a person reads it, such as `integer ≥ 1` or `"never" | "every_round"`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return " | ".join(_value(value) for value in arguments)
    if origin in (Union, types.UnionType):
        texts = [type_text(argument) for argument in arguments]
        return " | ".join(dict.fromkeys(texts))
    if origin is tuple:
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return "mapping"
    return _kind(metadata) or " ".join([NAMES[annotation], *filter(None, [_range(metadata)])])


def _kind(metadata: Sequence[Any]) -> str:
    """Return the name of a text with a meaning of its own; empty for others."""
    validators = [item for item in metadata if isinstance(item, AfterValidator)]
    for alias, name in ((PathText, "path"), (IsoTime, "date"), (Pattern, "regular expression")):
        if any(validator in get_args(alias) for validator in validators):
            return name
    return ""


def _range(metadata: Sequence[Any]) -> str:
    parts = []
    for item in _constraints(metadata):
        match item:
            case at.Ge():
                parts.append(f"≥ {_number(item.ge)}")
            case at.Gt():
                parts.append(f"> {_number(item.gt)}")
            case at.Le():
                parts.append(f"≤ {_number(item.le)}")
            case at.Lt():
                parts.append(f"< {_number(item.lt)}")
    return ", ".join(parts)


def _constraints(metadata: Sequence[Any]) -> Iterator[Any]:
    """Yield what `metadata` demands; a `Field` in an alias holds demands of its own."""
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]


def default_text(value: Any) -> str:
    """Return a default as it would be written in a recipe."""
    if isinstance(value, Settings):
        given = {name: getattr(value, name) for name in value.model_fields_set}
        return "{" + ", ".join(f"{name}: {default_text(held)}" for name, held in given.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(default_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {default_text(held)}" for key, held in value.items()) + "}"
    return _value(value)


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return _number(value) if isinstance(value, int | float) else str(value)


def _number(value: Any) -> str:
    if value == 2**31:
        return "2^31"
    return repr(value) if isinstance(value, int) else f"{value:.12g}"


def _nested(annotation: Any) -> Iterator[SettingsClass]:
    """Yield the settings classes in a type."""
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        yield annotation
    for argument in get_args(annotation):
        yield from _nested(argument)


# ----------------------------------------------------------------------------------------------- unit

BY_ENDING = {"_s": "s", "_seconds": "s", "_mib": "MiB", "_tokens": "tokens", "_length": "tokens"}
BY_NAME = {"warmup_steps": "updates or share"}
UNITS = (
    *("nats per completion", "nats per token", "nats", "optimiser updates", "updates", "tokens", "steps", "rounds"),
    *("versions", "completions", "prompts", "pairs", "rows", "passes", "ranks", "GPUs", "CPU cores", "checkpoints"),
    *("processes", "engines", "sequences", "workers", "restarts", "retries", "requests", "attempts", "elements"),
    *("answers", "samples"),
)
NAMED = re.compile(rf"(?:number of |in |^|maximum |\()(?:[\w-]+ ){{0,2}}?({'|'.join(UNITS)})\b")
SHARE = re.compile(r"^(?:allowed \w+ of the )?share\b|\bas a share\b")


def _unit(name: str, field: FieldInfo, meaning: str) -> str:
    """Return the unit of a number: by the ending of its name, else as its meaning says it; empty for a pure number."""
    if not {int, float} & {*_atoms(field.annotation)}:
        return ""
    if name in BY_NAME:
        return BY_NAME[name]
    for ending, unit in BY_ENDING.items():
        if name.endswith(ending):
            return unit
    if SHARE.search(meaning):
        return "share"
    if found := NAMED.search(meaning.replace("optimizer", "optimiser")):
        return "optimiser updates" if found[1] == "updates" else found[1]
    return "factor" if meaning.startswith("factor") else ""


def _atoms(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of a union without their demands."""
    if get_origin(annotation) is Annotated:
        yield from _atoms(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _atoms(argument)
    else:
        yield annotation
