"""Whether a model directory holds what a recipe wants of it: one that writes text, or one that scores it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.config.run import RunConfig
from orchestrator.errors import Problems
from workers.needs import NEEDS

SCORER = "ForSequenceClassification"


def check_scorer(path: str, where: str, problems: Problems) -> None:
    """A reward model: a directory of a sequence-classification model with one label."""
    if (config := _config(path)) is None:
        return
    named = [str(name) for name in config.get("architectures") or ()]
    fix = "give a model that `type: reward_model` or TRL's RewardTrainer made, or another with one label"
    if not any(name.endswith(SCORER) for name in named):
        why = f"it is a {', '.join(named) or 'model of no named kind'}, and a reward model is a …{SCORER}"
        problems.add("not a reward model", where=where, why=why, fix=fix)
    elif (labels := _labels(config)) != 1:
        why = f"it has {labels} labels, and a reward is one number"
        problems.add("not a reward model", where=where, why=why, fix=fix)


def check_writer(path: str, where: str, problems: Problems) -> None:
    """A language model: its output layer would be made up if it were a reward model."""
    config = _config(path)
    if config is not None and any(str(name).endswith(SCORER) for name in config.get("architectures") or ()):
        fix = "give a causal language model; a reward model goes to `reward: [{type: model, path: …}]`"
        problems.add("a reward model writes no text", where=where, why="it has no language-model head", fix=fix)


def check_same_tokens(path: str, other: str, where: str, problems: Problems) -> None:
    """A critic reads the policy's tokens, so both must have the same vocabulary."""
    mine, its = (((_config(p) or {}).get("vocab_size")) for p in (path, other))
    if mine is not None and its is not None and mine != its:
        why = f"it has a vocabulary of {mine} tokens and the policy one of {its}: the critic reads the policy's tokens"
        problems.add("another vocabulary", where=where, why=why, fix="give a model with the policy's tokenizer")


def check_stage(stage: RunConfig, where: str, problems: Problems, *, scores: bool) -> None:
    """The same of a model that an earlier stage will have made."""
    kind = stage.algorithm.type
    if (NEEDS[kind].head == "scores") == scores:
        return
    if scores:
        why = f"stage {stage.name} is of type {kind}, whose model writes text"
        problems.add("not a reward model", where=where, why=why, fix="name a stage of type reward_model")
    else:
        why = f"stage {stage.name} makes a reward model, which writes no text"
        fix = "name a stage that makes a policy; a reward model goes to `reward: [{type: model, from_stage: …}]`"
        problems.add("not a language model", where=where, why=why, fix=fix)


def _config(path: str) -> dict[str, Any] | None:
    """config.json of a local directory; None when there is none to look into."""
    try:
        config = json.loads((Path(path).expanduser() / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _labels(config: dict[str, Any]) -> int:
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) else int(config.get("num_labels") or 2)  # transformers' default is 2
