"""What a report says in words: how a run went, what was not measured, what differs between runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.config.run import RunConfig
from orchestrator.config.values import show
from orchestrator.errors import RlhfError, redact
from orchestrator.monitor.figures import duration, number
from orchestrator.report.run_record import RunRecord
from orchestrator.rundir.directory import differences
from workers.types import Sample

PLACE = ("name", "output_dir", "report_to", "wandb")  # where a run lives and who is told, not what it is


def findings(record: RunRecord) -> Iterator[str]:
    """The few sentences that a person would ask for first."""
    word, done = record.word, record.steps_done
    time = f" in {duration(record.seconds)}" if record.records else ""
    yield f"{record.method}: {done} {word}{'s' * (done != 1)}{time}; {record.ended}."
    for metric, name in (
        ("eval/accuracy", "held-out accuracy"),
        ("eval/reward", "held-out reward"),
    ):
        curve = record.curve(metric)
        if len(curve) > 1:
            best = max(curve, key=lambda point: point[1])
            fell = f", after {number(best[1])} at {word} {best[0]}" if best[1] > curve[-1][1] else ""
            yield f"The {name} went from {number(curve[0][1])} to {number(curve[-1][1])}{fell}."
    if kl := record.curve("eval/kl"):
        yield f"At the end it was {number(kl[-1][1])} nats per completion away from where it began."
    elif record.setting("reference.refresh", "never") == "never" and (kl := record.curve("objective/kl")):
        yield f"At the end it was {number(kl[-1][1])} nats per completion away from its reference."
    if count := len(record.alarms):
        yield f"{count} alarm{'s' * (count > 1)} rang."
    attempts = len(record.meter.attempts)
    if attempts > 1:
        yield f"It took {attempts} attempts."


def not_measured(record: RunRecord) -> Iterator[str]:
    """What a reader might take for granted and this run does not show."""
    keys = ("eval_prompts", "eval_dataset", "eval_harmful", "eval_benign")
    if not any(record.setting(f"data.{key}") for key in keys):
        yield "Nothing is held out (`data.eval_prompts`): every figure is of what was learned from."
    elif not any(key.startswith("eval/") for row in record.rows for key in row):
        yield "Held-out data are named, and no evaluation was written down."
    elif record.setting("data.eval_prompts") and not record.curve("eval/kl"):
        yield "Held-out answers are greedy ones; sampled ones were not measured (`evaluation.num_samples`)."
    yield from _distance(record)
    if record.setting("data.prompts") is None:
        yield "Whether engine and learner agree on log-probabilities: nothing that was learned from was sampled."
    elif not record.curve("sampling/logp_difference"):
        yield "Whether engine and learner agree on log-probabilities was not measured."
    if not any(a.devices for a in record.meter.attempts):
        yield "Devices: the run did not write down what it reserved."
    yield "One seed: what another one would have given is not known."
    if record.setting("reward"):
        yield "Nobody but the scorers of the recipe has judged an answer."
    yield from (f"Could not be read: {what}." for what in record.unreadable)


def _distance(record: RunRecord) -> Iterator[str]:
    """What is not known of how far the policy went from where it began."""
    if record.curve("eval/kl"):
        return
    refresh = record.setting("reference.refresh", "never")
    if _follows_the_policy(record):
        yield (
            "The reference is the policy of the round before, from which the samples come: their KL to it is 0. To the "
            "first model it was not measured (`evaluation.num_samples`)."
        )
    elif not any(record.curve(name) for name in ("objective/kl", "kl", "drift/kl", "divergence")):
        why = "there is no reference, and no KL was measured"
        if _has_reference(record):
            why = "there is a reference, and no KL to it was measured: a dataset's completions are not the policy's own"
            why = (
                why if record.setting("data.prompts") is None else "there is a reference, and no KL to it was measured"
            )
        yield f"How far the policy went from where it began: {why}."
    elif refresh != "never":
        yield "The KL is that to the current reference, which moves; to the first model it was not measured."


def _follows_the_policy(record: RunRecord) -> bool:
    """Whether its reference is, at the beginning of each round, the policy itself."""
    return bool(record.setting("reference.refresh") == "every_round")


def _has_reference(record: RunRecord) -> bool:
    """Whether the run compared its policy with another model's log-probabilities."""
    try:
        return record.directory.config().algorithm.needs_reference
    except (RlhfError, OSError):
        return bool(record.curve("rewards/chosen"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One setting that runs do not share; for a single run, that is not its default."""

    key: str
    values: tuple[str, ...]  # of each run


def config_differences(stories: Sequence[RunRecord]) -> list[Difference]:
    """Between the runs; of a single one, from the defaults."""
    if len(stories) == 1:
        return _own(stories[0])
    flat = [_flat(record.config) for record in stories]
    missing = object()
    found = []
    for key in dict.fromkeys(key for config in flat for key in config):
        values = tuple(_show(config.get(key, missing), missing) for config in flat)
        if key.partition(".")[0] not in PLACE and len(set(values)) > 1:
            found.append(Difference(key=key, values=values))
    return found


def _own(record: RunRecord) -> list[Difference]:
    try:
        config = record.directory.config()
    except (RlhfError, OSError):
        return []
    told = config.model_dump(mode="json")
    found = [(key, value) for key, before, value in differences(_defaults(config), told) if before != value]
    return [Difference(key=key, values=(_show(value, None),)) for key, value in found if key != "name"]


def _defaults(config: RunConfig) -> dict[str, Any]:
    """What the config would be if it said no more than it must."""
    found = {name: _default(field) for name, field in type(config).model_fields.items()}
    for name in ("model", "data", "algorithm"):
        section = getattr(config, name)
        found[name] = {key: _default(field) for key, field in type(section).model_fields.items()}
    return found


def _default(field: FieldInfo) -> Any:
    """As JSON has it."""
    made = None if field.is_required() else field.get_default(call_default_factory=True)
    return json.loads(json.dumps(made.model_dump(mode="json") if isinstance(made, BaseModel) else made))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _show(value: Any, missing: Any) -> str:
    return "" if value is missing and missing is not None else redact(show(value))


# ------------------------------------------------------------------------------------------------ samples


@dataclass(frozen=True, kw_only=True, slots=True)
class SamePrompt:
    """One prompt and what was answered to it at several steps. `answers`: None where that step has none."""

    prompt: str
    answers: tuple[Sample | None, ...]  # as many as steps are shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """What a run said at its start, its middle and its end."""

    steps: tuple[int, ...]
    held_out: bool  # the same prompts each time; else what was learned from, whose prompts differ
    prompts: tuple[SamePrompt, ...]


def samples_of(record: RunRecord, at_most: int = 8) -> Samples | None:
    """None: nothing was kept."""
    by_step = record.held_out or record.sampled
    if not by_step:
        return None
    steps = sorted(by_step)
    shown = tuple(sorted({steps[0], steps[len(steps) // 2], steps[-1]}))
    if not record.held_out:
        rows = [SamePrompt(prompt=s.prompt, answers=tuple(s if at == step else None for at in shown))
                for step in shown for s in by_step[step][: max(1, at_most // len(shown))]]  # fmt: skip
        return Samples(steps=shown, held_out=False, prompts=tuple(rows))
    prompts = {s.prompt_id: s.prompt for step in shown for s in by_step[step]}
    answers = {(step, s.prompt_id): s for step in shown for s in reversed(by_step[step])}
    return Samples(
        steps=shown,
        held_out=True,
        prompts=tuple(
            SamePrompt(prompt=prompt, answers=tuple(answers.get((step, id)) for step in shown))
            for id, prompt in list(prompts.items())[:at_most]
        ),
    )
