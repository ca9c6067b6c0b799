"""Text of a report: how a run went, what was not measured, and which settings differ between runs."""

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
from orchestrator.rundir.exported import ExportedRound
from workers.types import Sample

LOCATION_KEYS = ("name", "output_dir", "report_to", "wandb")  # location and reporting of a run: not compared


def findings(record: RunRecord) -> Iterator[str]:
    """Yield the main results of a run, one sentence each."""
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
    if exported := ExportedRound.of((record.exit or {}).get("exported")):
        yield f"The model is that of {exported}."
    if kl := record.curve("eval/kl"):
        yield f"The final KL to the initial model is {number(kl[-1][1])} nats per completion."
    elif record.setting("reference.refresh", "never") == "never" and (kl := record.curve("objective/kl")):
        yield f"The final KL to the reference is {number(kl[-1][1])} nats per completion."
    if count := len(record.alarms):
        yield f"{count} alarm{'s' * (count > 1)} fired."
    attempts = len(record.meter.attempts)
    if attempts > 1:
        yield f"The run took {attempts} attempts."


def not_measured(record: RunRecord) -> Iterator[str]:
    """Yield what a reader might assume but the run did not measure."""
    keys = ("eval_prompts", "eval_dataset", "eval_harmful", "eval_benign")
    if not any(record.setting(f"data.{key}") for key in keys):
        yield "No data are held out (`data.eval_prompts`): every metric is measured on training data."
    elif not any(key.startswith("eval/") for row in record.rows for key in row):
        yield "Held-out data are configured, but no evaluation was recorded."
    elif record.setting("data.eval_prompts") and not record.curve("eval/kl"):
        yield "Held-out answers are greedy; sampled answers were not measured (`evaluation.num_samples`)."
    yield from _distance(record)
    if record.setting("data.prompts") is None:
        yield "The agreement of engine and learner on log-probabilities: no training data were sampled by an engine."
    elif not record.curve("sampling/logp_difference"):
        yield "The agreement of engine and learner on log-probabilities was not measured."
    if not any(a.devices for a in record.meter.attempts):
        yield "Devices: the run did not record its reservations."
    yield "One seed: the variation between seeds is unknown."
    if record.setting("reward"):
        yield "Answers were judged by the scorers of the recipe only."
    yield from (f"Unreadable file: {what}." for what in record.unreadable)


def _distance(record: RunRecord) -> Iterator[str]:
    """Yield what is unknown about the distance of the policy from the initial model."""
    if record.curve("eval/kl"):
        return
    refresh = record.setting("reference.refresh", "never")
    if _follows_the_policy(record):
        yield (
            "The reference is the policy of the previous round, which generated the samples, so their KL to it is 0. "
            "The KL to the initial model was not measured (`evaluation.num_samples`)."
        )
    elif not any(record.curve(name) for name in ("objective/kl", "kl", "drift/kl", "divergence")):
        why = "there is no reference, and no KL was measured"
        if _has_reference(record):
            why = "there is a reference, but no KL to it was measured"
            if record.setting("data.prompts") is None:
                why += ": a dataset's completions are not samples of the policy"
        yield f"The distance of the policy from the initial model is unknown: {why}."
    elif refresh != "never":
        yield "The KL is measured to the current reference, which changes during the run, not to the initial model."


def _follows_the_policy(record: RunRecord) -> bool:
    """Return whether the reference is reset to the policy at the start of each round."""
    return bool(record.setting("reference.refresh") == "every_round")


def _has_reference(record: RunRecord) -> bool:
    """Return whether the run compared its policy with the log-probabilities of a reference."""
    try:
        return record.directory.config().algorithm.needs_reference
    except (RlhfError, OSError):
        return bool(record.curve("rewards/chosen"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A setting that differs between runs or, for a single run, from its default."""

    key: str
    values: tuple[str, ...]  # one per run


def config_differences(records: Sequence[RunRecord]) -> list[Difference]:
    """Compare the settings of several runs, or those of a single run with the defaults."""
    if len(records) == 1:
        return _differences_from_defaults(records[0])
    flat = [_flatten(record.config) for record in records]
    missing = object()
    rows = []
    for key in dict.fromkeys(key for config in flat for key in config):
        values = tuple(_show(config.get(key, missing), missing) for config in flat)
        if key.partition(".")[0] not in LOCATION_KEYS and len(set(values)) > 1:
            rows.append(Difference(key=key, values=values))
    return rows


def _differences_from_defaults(record: RunRecord) -> list[Difference]:
    try:
        config = record.directory.config()
    except (RlhfError, OSError):
        return []
    changes = differences(_defaults(config), config.model_dump(mode="json"))
    changed = [(key, value) for key, default, value in changes if default != value]
    return [Difference(key=key, values=(_show(value, None),)) for key, value in changed if key != "name"]


def _defaults(config: RunConfig) -> dict[str, Any]:
    """Return the defaults of every setting, for the algorithm of the config."""
    defaults = {name: _default(field) for name, field in type(config).model_fields.items()}
    for name in ("model", "data", "algorithm"):
        section = getattr(config, name)
        defaults[name] = {key: _default(field) for key, field in type(section).model_fields.items()}
    return defaults


def _default(field: FieldInfo) -> Any:
    """Return the default of a field as JSON data."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return json.loads(json.dumps(default.model_dump(mode="json") if isinstance(default, BaseModel) else default))


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _show(value: Any, missing: Any) -> str:
    return "" if value is missing and missing is not None else redact(show(value))


# ------------------------------------------------------------------------------------------------ samples


@dataclass(frozen=True, kw_only=True, slots=True)
class SamePrompt:
    """A prompt and its answers at several steps."""

    prompt: str
    answers: tuple[Sample | None, ...]  # one per step; None: no answer at that step


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Answers of a run at its start, middle and end."""

    steps: tuple[int, ...]
    held_out: bool  # True: held-out prompts, the same at every step; False: training prompts, which differ
    prompts: tuple[SamePrompt, ...]


def samples_of(record: RunRecord, at_most: int = 8) -> Samples | None:
    """Select the answers to show, or return None if the run has no samples."""
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
