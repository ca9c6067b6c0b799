"""What pydantic found wrong, said in the words of a recipe: place, key, value, what is allowed, the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.config.conflicts import ConflictsError
from orchestrator.config.document import EXPONENT, Document, KeyPath, dotted
from orchestrator.config.key_index import suggest, types_at
from orchestrator.config.run import RunConfig
from orchestrator.config.values import allowed, kind_of, options, show
from orchestrator.errors import Problems

REASONS: Mapping[str, str] = {
    # last part of a key (or a whole one, or the type it belongs to with it) → why its range is what it is
    "beta": "it scales the pull towards the reference",
    "cliprange": "the ratio of new to old probability is kept within 1 ± it",
    "checkpoint.every": "nothing would ever be saved",
    "distill.beta": "it is a share: 0 is the forward KL, 1 the reverse KL",
    "epsilon": "the ratio of new to old probability is kept within 1 ± it",
    "evaluation.every": "nothing would ever be evaluated",
    "gamma": "it is a share: the weight of the next token's reward",
    "kl_coef": "it scales the pull towards the reference",
    "lam": "it is a share: the weight of longer returns",
    "learning_rate": "at 0 nothing is learned, above 1 nothing converges",
    "max_staleness": "completions older than that say little about the current policy",
    "name": "the run's directory is named after it",
    "num_generations": "completions are compared within their group: the variance of one sample is undefined",
    "seed": "the random generators take 31 bits",
}


METHODS: Mapping[str, str] = {
    # as papers and other trainers call a method → what is written for it here
    "online_dpo": "write type: dpo with data.prompts and a reward, and few prompts_per_step",
    "iterative_dpo": "write type: dpo with data.prompts and a reward, and reference: {refresh: every_round}",
    "offline_dpo": "write type: dpo with data.dataset",
    "ipo": "write type: dpo with data.dataset and loss_type: ipo",
    "simpo": "write type: dpo with data.dataset and loss_type: simpo",
    "cispo": "write type: grpo with loss_type: cispo and epsilon_high",
    "dapo": "write type: grpo, as configs/quickstart/dapo.yaml does",
    "dr_grpo": "write type: grpo, as configs/quickstart/dr_grpo.yaml does",
    "gspo": "write type: grpo, as configs/quickstart/gspo.yaml does",
    "gkd": "write type: distill with a teacher",
    "raft": "write type: rejection_sampling",
    "best_of_n": "write type: rejection_sampling",
    "reinforce_pp": "write type: reinforce++",
    "reinforce_plus_plus": "write type: reinforce++",
    "rm": "write type: reward_model",
    "reward": "write type: reward_model",
}


def explain(error: ValidationError, document: Document, problems: Problems, root: type[BaseModel] = RunConfig) -> None:
    """Adds one problem for each thing that is wrong in what `root` describes."""
    seen: set[KeyPath] = set()
    for detail in error.errors(include_url=False):
        found = detail.get("ctx", {}).get("error")
        path = _key_path(detail["loc"], document.data)
        if isinstance(found, ConflictsError):
            _explain_conflicts(found, document, problems)
        elif path not in seen:
            seen.add(path)
            _explain_one(detail, path, document, problems, root)


def _elsewhere(path: KeyPath, tag: object) -> str:
    """What is written here for a method that has another name elsewhere; empty: it has none that is known."""
    return METHODS.get(str(tag).lower().replace("-", "_"), "") if path == ("algorithm",) else ""


def _key_path(loc: tuple[str | int, ...], data: Any) -> KeyPath:
    """Pydantic's location without the tags that it adds where a mapping was picked by its `type:`."""
    path: list[str | int] = []
    untagged = True
    for part in loc:
        if untagged and isinstance(data, Mapping) and data.get("type") == part:
            untagged = False
            continue
        if path and not isinstance(data, Mapping | list):
            break  # pydantic goes on with the members of a union of scalars
        path.append(part)
        data, untagged = _child(data, part), True
    return tuple(path)


def _child(data: Any, key: str | int) -> Any:
    try:
        return data[key]
    except (LookupError, TypeError):
        return None


def _value(path: KeyPath, data: Any) -> Any:
    for key in path:
        data = _child(data, key)
    return data


def _explain_conflicts(conflicts: ConflictsError, document: Document, problems: Problems) -> None:
    for conflict in conflicts.found:
        given = [(key, _value(_path(key), document.data)) for key in conflict.keys]
        written = [(key, value) for key, value in given if value is not None]
        problems.add(
            ", ".join(f"{key} = {show(value)}" for key, value in written) or f"{conflict.keys[0]} is missing",
            where=document.place(_path((written or given)[0][0])).text,
            why=conflict.why,
            fix=conflict.fix,
        )


def _path(key: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _explain_one(detail: Any, path: KeyPath, document: Document, problems: Problems, root: type[BaseModel]) -> None:
    kind, key, value = detail["type"], dotted(path), _value(path, document.data)
    place, data = document.place(path), document.data
    plain = isinstance(value, bool | int | float) and place.raw is not None
    what = f"{key} = {place.raw if plain else show(value)}"
    if kind == "json_invalid":
        why, fix = "it has half of a surrogate pair, which is no character", "restore it from a copy"
        problems.add("not text", where=place.text, why=why, fix=fix)
    elif kind == "extra_forbidden":
        problems.add(what, where=place.text, why="there is no such key", fix=suggest(path, data, root))
    elif kind == "missing":
        problems.add(f"{key} is missing", where=place.text, fix=f"give {allowed(path, data, root)}")
    elif kind == "union_tag_not_found":
        problems.add(f"{key}.type is missing", where=place.text, why=what, fix=_choose("", types_at(path, data, root)))
    elif kind == "union_tag_invalid":
        where, tag = document.place((*path, "type")).text, detail["ctx"]["tag"]
        problems.add(
            f"{key}.type = {show(tag)}",
            where=where,
            why="there is no such type",
            fix=_elsewhere(path, tag) or _choose(tag, types_at(path, data, root)),
        )
    elif kind == "value_error":
        problems.add(what, where=place.text, fix=str(detail["ctx"]["error"]))
    else:
        why, fix = _wrong_value(kind, path, value, place.raw, data, root)
        problems.add(what, where=place.text, why=why, fix=fix)


def _choose(given: str, choices: list[str]) -> str:
    return f"{_did_you_mean(given, choices)}give one of {', '.join(choices)}"


def _did_you_mean(given: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(given.lower(), choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]}? " if close else ""


def _wrong_value(
    kind: str, path: KeyPath, value: Any, raw: str | None, data: Any, root: type[BaseModel]
) -> tuple[str, str]:
    """Why, and what to do."""
    may_be = allowed(path, data, root)
    fix = f"give {may_be}" if may_be else ""
    if isinstance(value, bool) and raw is not None and raw.lower() not in ("true", "false"):
        quoted = kind == "string_type" or raw in options(path, data, root)
        return f"YAML reads {raw} as {show(value)}", f"quote it: '{raw}'" if quoted else fix
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        if number := EXPONENT.fullmatch(value):
            whole, fraction, exponent = number[1], number[2] or ".0", int(number[3])
            return (
                f"YAML reads {value} as text",
                f"write {whole}{fraction if fraction != '.' else '.0'}e{exponent:+d}",
            )
        if re.fullmatch(r"[-+]?0\d+", value):  # 08 and 09, which are no octal numbers
            return f"YAML reads {value} as text", f"write {int(value)}"
        if re.fullmatch(r"[-+]?\d+(\.\d*)?", value):
            return "in quotes it is text", f"write {value} without quotes"
        if value.lower() in ("none", "nil"):
            return f"YAML reads {value} as text", fix
    if kind == "string_type" and isinstance(value, int | float) and raw is not None:
        return f"YAML reads {raw} as a number", f"quote it: '{raw}'"
    if kind == "literal_error":
        return "not one of the choices", _did_you_mean(str(value), options(path, data, root)) + fix
    if kind.endswith("_type"):
        return f"it is {kind_of(value)}", fix
    if kind == "finite_number":
        return "it is not a finite number", fix
    of_type = f"{_value((*path[:-1], 'type'), data)}.{path[-1]}"
    names = (of_type, dotted(path), str(path[-1])) if root is RunConfig else ()
    reasons = (REASONS[name] for name in names if name in REASONS)
    return next(reasons, "outside of what is allowed"), fix
