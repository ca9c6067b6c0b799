"""Turn pydantic's validation errors into problems of a recipe: location, key, value, reason and fix."""

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
    # key, its last part, or TYPE.KEY → why its range is as it is
    "beta": "it is the strength of the KL regularisation towards the reference",
    "cliprange": "it bounds the probability ratio to 1 ± cliprange",
    "checkpoint.every": "nothing would ever be saved",
    "distill.beta": "it interpolates from the forward KL (0) to the reverse KL (1)",
    "epsilon": "it bounds the probability ratio to 1 ± epsilon",
    "evaluation.every": "nothing would ever be evaluated",
    "gamma": "it is a discount factor per token",
    "kl_coef": "it is the strength of the KL regularisation towards the reference",
    "lam": "it is the λ of generalised advantage estimation",
    "learning_rate": "at 0 nothing is trained, above 1 nothing converges",
    "max_staleness": "older completions are too far off-policy",
    "name": "the run's directory is named after it",
    "num_generations": "completions are compared within their group: the variance of one sample is undefined",
    "seed": "the random number generators take 31 bits",
}


METHODS: Mapping[str, str] = {
    # name of a method in papers and other trainers → fix
    "online_dpo": "write type: dpo with data.prompts and a reward, and few prompts_per_step",
    "iterative_dpo": "write type: dpo with data.prompts and a reward, and reference: {refresh: every_round}",
    "iterative_rpo": "write type: dpo as configs/8b/iterative_rpo.yaml does",
    "tr_dpo": "write type: dpo with data.prompts, a reward and reference: {refresh: ema}",
    "offline_dpo": "write type: dpo with data.dataset",
    "ipo": "write type: dpo with data.dataset and loss_type: ipo",
    "simpo": "write type: dpo with data.dataset and loss_type: simpo",
    "sppo": "write type: dpo with loss_type: sppo",
    "sppo_hard": "write loss_type: sppo, without soft_labels",
    "spin": "write type: dpo with pairs: {gold: chosen} and reference: {refresh: every_round}",
    "xpo": "write type: dpo with exploration_alpha, pairs: {selection: random} and reference: {refresh: every_round}",
    "nash_md": "write type: dpo with loss_type: sppo and pairs: {selection: random}, which has the same equilibrium; "
    "Nash-MD samples from a mixture of the policy and the reference, and an engine holds one model",
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


FORMS: Mapping[str, str] = {
    # kind of pydantic's error → why
    "string_pattern_mismatch": "wrong format",
    "string_too_short": "too short",
    "too_short": "too few values",
}


def explain(error: ValidationError, document: Document, problems: Problems, root: type[BaseModel] = RunConfig) -> None:
    """Add a problem for each error of `document`, validated as a `root`."""
    seen: set[KeyPath] = set()
    details = [(_key_path(detail["loc"], document.data), detail) for detail in error.errors(include_url=False)]
    # A mapping or a list that fits no member of a union: the errors within it say more than that it is the wrong kind.
    seen |= {path[:end] for path, _ in details for end in range(1, len(path))}
    for path, detail in details:
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ConflictsError):
            _explain_conflicts(cause, document, problems)
        elif path not in seen:
            seen.add(path)
            _explain_one(detail, path, document, problems, root)


def _known_elsewhere(path: KeyPath, tag: object) -> str:
    """Return the fix for a method that other trainers know by this name; empty: none does."""
    is_method = path in (("algorithm",), ("algorithm", "loss_type"))
    return METHODS.get(str(tag).lower().replace("-", "_"), "") if is_method else ""


def _key_path(loc: tuple[str | int, ...], data: Any) -> KeyPath:
    """Return pydantic's location without the tags of union members: a `type:`, a class, or `tuple[…]`."""
    path: list[str | int] = []
    untagged = True
    for part in loc:
        if untagged and isinstance(data, Mapping) and data.get("type") == part:
            untagged = False
            continue
        if _is_tag(part, data):
            continue
        if path and not isinstance(data, Mapping | list):
            break  # what follows are members of a union of scalars
        path.append(part)
        data, untagged = _child(data, part), True
    return tuple(path)


def _is_tag(part: str | int, data: Any) -> bool:
    """Return whether a part of a location names a union's member, not a key of the list or mapping `data`."""
    if (
        not isinstance(part, str)
        or not isinstance(data, Mapping | list)
        or (isinstance(data, Mapping) and part in data)
    ):
        return False
    return part[0].isupper() or "[" in part


def _child(data: Any, key: str | int) -> Any:
    try:
        return data[key]
    except (LookupError, TypeError):
        return None


def _value(path: KeyPath, data: Any) -> Any:
    for key in path:
        data = _child(data, key)
    return data


def _explain_conflicts(error: ConflictsError, document: Document, problems: Problems) -> None:
    for conflict in error.conflicts:
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
        why, fix = "it contains half of a surrogate pair, which is not a character", "restore it from a copy"
        problems.add("not text", where=place.text, why=why, fix=fix)
    elif kind == "extra_forbidden":
        problems.add(what, where=place.text, why="there is no such key", fix=suggest(path, data, root))
    elif kind == "missing":
        problems.add(f"{key} is missing", where=place.text, fix=f"give {allowed(path, data, root)}")
    elif kind == "union_tag_not_found":
        problems.add(f"{key}.type is missing", where=place.text, why=what, fix=_one_of("", types_at(path, data, root)))
    elif kind == "union_tag_invalid":
        where, tag = document.place((*path, "type")).text, detail["ctx"]["tag"]
        problems.add(
            f"{key}.type = {show(tag)}",
            where=where,
            why="there is no such type",
            fix=_known_elsewhere(path, tag) or _one_of(tag, types_at(path, data, root)),
        )
    elif kind == "value_error":
        problems.add(what, where=place.text, fix=str(detail["ctx"]["error"]))
    else:
        why, fix = _wrong_value(kind, path, value, place.raw, data, root)
        problems.add(what, where=place.text, why=why, fix=fix)


def _one_of(given: str, choices: list[str]) -> str:
    return f"{_did_you_mean(given, choices)}give one of {', '.join(choices)}"


def _did_you_mean(given: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(given.lower(), choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]}? " if close else ""


def _wrong_value(
    kind: str, path: KeyPath, value: Any, raw: str | None, data: Any, root: type[BaseModel]
) -> tuple[str, str]:
    """Return (why, fix) for a value of the wrong type or out of range. `raw`: the value's text in the file."""
    expected = allowed(path, data, root)
    fix = f"give {expected}" if expected else ""
    if isinstance(value, bool) and raw is not None and raw.lower() not in ("true", "false"):
        quoted = kind == "string_type" or raw in options(path, data, root)
        return f"YAML reads {raw} as {show(value)}", f"quote it: '{raw}'" if quoted else fix
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        if number := EXPONENT.fullmatch(value):
            digits, fraction, exponent = number[1], number[2] or ".0", int(number[3])
            return (
                f"YAML reads {value} as text",
                f"write {digits}{fraction if fraction != '.' else '.0'}e{exponent:+d}",
            )
        if re.fullmatch(r"[-+]?0\d+", value):  # 08 and 09, which are not octal numbers
            return f"YAML reads {value} as text", f"write {int(value)}"
        if re.fullmatch(r"[-+]?\d+(\.\d*)?", value):
            return "the quotes make it text", f"write {value} without quotes"
        if value.lower() in ("none", "nil"):
            return f"YAML reads {value} as text", fix
    if kind == "string_type" and isinstance(value, int | float) and raw is not None:
        return f"YAML reads {raw} as a number", f"quote it: '{raw}'"
    if kind == "literal_error":
        elsewhere = _known_elsewhere(path, value)
        return "not one of the choices", elsewhere or _did_you_mean(str(value), options(path, data, root)) + fix
    if kind.endswith("_type"):
        return f"it is {kind_of(value)}", fix
    if kind == "finite_number":
        return "it is not a finite number", fix
    of_type = f"{_value((*path[:-1], 'type'), data)}.{path[-1]}"
    names = (of_type, dotted(path), str(path[-1])) if root is RunConfig else ()
    reasons = (REASONS[name] for name in names if name in REASONS)
    return next(reasons, FORMS.get(kind, "out of range")), fix
