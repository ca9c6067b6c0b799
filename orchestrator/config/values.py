"""Describe values, and the values that a key allows, in the notation of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from orchestrator.config.document import KeyPath, dotted
from orchestrator.config.key_index import annotation_at, members
from orchestrator.config.run import RunConfig

PATTERNS: Mapping[str, str] = {
    "judge.api_key_env": "the name of an environment variable",
    "judge.name": "lower-case letters, digits and `_`, starting with a letter",
    "judge.url": "http://HOST[:PORT]/v1 or https://…, without credentials",
    "name": "1 to 64 letters, digits, `.`, `_` and `-`, starting with a letter or digit",
    "cluster.address": "auto, HOST:PORT or ray://HOST:PORT",
}
SHAPES: Mapping[str, str] = {
    "model": "a mapping: {path: ./my-model}",
    "data": "a mapping: {prompts: ./prompts.jsonl}, or {dataset: ./pairs.jsonl}",
    "algorithm": "a mapping: {type: grpo, max_steps: 100}",
    "reward": "a list: [{type: math}]",
}
LONGEST = 60  # characters of a value that are shown


def show(value: Any) -> str:
    """Return a value as YAML on one line, shortened to LONGEST characters.

    >>> show({"type": "grpo", "beta": None})
    '{type: grpo, beta: null}'
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(show(v) for v in value) + "]"
    elif isinstance(value, str):
        text = value if re.fullmatch(r"[A-Za-z./][\w./:@-]*", value) else ascii(value)
    else:
        text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def kind_of(value: Any) -> str:
    for kinds, word in (
        ((bool,), "true or false"),
        ((int, float), "a number"),
        ((str,), "text"),
        ((list, tuple), "a list"),
    ):
        if isinstance(value, kinds):
            return word
    return "nothing (null)" if value is None else "a mapping"


def allowed(path: KeyPath, data: Any, root: type[BaseModel] = RunConfig) -> str:
    """Return a description of the values allowed at `path`: "a number > 0 and <= 1, or null". Empty: no such key."""
    annotation, metadata = annotation_at(path, data, root)
    if annotation is None:
        return ""
    if text := PATTERNS.get(dotted(path)) or SHAPES.get(dotted(path)):
        return text
    words = list(dict.fromkeys(_word(member) for member in members(annotation)))
    bounds = " and ".join(_bounds([*metadata, *_inner_constraints(annotation)]))
    return ", or ".join([f"{words[0]} {bounds}".strip(), *words[1:]])


def options(path: KeyPath, data: Any, root: type[BaseModel] = RunConfig) -> list[str]:
    """Return the choices at `path`, if it is an enumeration."""
    annotation, _ = annotation_at(path, data, root)
    return [str(o) for m in members(annotation) if get_origin(m) is Literal for o in get_args(m)]


def _word(member: Any) -> str:
    if get_origin(member) is Literal:
        choices = [show(value) for value in get_args(member)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if get_origin(member) in (tuple, dict):
        return "a list" if get_origin(member) is tuple else "a mapping"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(member) or f"a mapping of {', '.join(member.model_fields)}"


def _inner_constraints(annotation: Any) -> list[Any]:
    """Return the constraints within a union: those of `gt=0` for `Annotated[float, Field(gt=0)] | None`."""
    items = [item for part in get_args(annotation) for item in getattr(part, "__metadata__", ())]
    return [constraint for item in items for constraint in getattr(item, "metadata", [item])]


def _bounds(constraints: list[Any]) -> list[str]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [(sign, getattr(c, name, None)) for c in constraints for name, sign in signs.items()]
    return [f"{sign} {bound}" for sign, bound in found if bound is not None]
