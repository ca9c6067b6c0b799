"""One evaluation, from a suite and a model to figures.

suite, models ──► files looked at ──► answers of each model ──► log-ratios ──► (cluster gone) judge ──► figures
                                                                                     │
                          DIR/samples.jsonl is written before the judge is asked ────┘   DIR/evaluation.json at the end
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator import disk
from orchestrator.cluster.base import Cluster
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, JudgeFailed, Problem, Problems
from orchestrator.evaluation import figures
from orchestrator.evaluation.answers import Answered, LogProbs, Tell, answer, cluster_for, log_probs, rows_of
from orchestrator.evaluation.judge import Judge, Judgements, Pair
from orchestrator.evaluation.models import ModelRef, model_ref, weights
from orchestrator.evaluation.result import EVALUATION, SAMPLES, Result, write_result
from orchestrator.evaluation.rows import Row, of, write_rows
from orchestrator.evaluation.suite import JudgeConfig, Suite, SuiteConfig
from orchestrator.evaluation.suite_files import (
    check_comparable,
    check_models,
    check_suite,
    difference_of,
    suite_prompts,
)
from orchestrator.preflight.preflight import may_be_of_the_hub
from orchestrator.rundir.provenance import fingerprint, software
from workers.types import Experience, Prompt

MODEL, AGAINST = "model", "against"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSpec:
    """The models of an evaluation: the one it is about, and those it is compared with. None: there is none."""

    model: ModelRef
    against: ModelRef | None = None
    base: str | None = None  # for the KL to what the run began with
    reference: str | None = None  # for the KL to what it was held to in the end

    @property
    def model_refs(self) -> dict[str, ModelRef]:
        return {MODEL: self.model, **({AGAINST: self.against} if self.against else {})}

    @property
    def references(self) -> dict[str, str]:
        """What the KL is measured to, by the name it has in figures."""
        named = {"base": self.base, "reference": self.reference}
        return {name: path for name, path in named.items() if path is not None}


def spec(
    model: str, *, against: str | None = None, base: str | None = None, reference: str | None = None
) -> EvaluationSpec:
    """From what stands on the command line; `against` may be `base`.

    Raises:
        BadInput: when a run has no model, or a base is asked for that nobody knows.
    """
    ours = model_ref(model)
    base = base or ours.base
    if against == "base":
        if base is None:
            why, fix = f"{model} is not the model of a run, which would know", "give --base PATH, or --against PATH"
            raise BadInput(Problem(what="no base is known", where="--against base", why=why, fix=fix))
        theirs: ModelRef | None = ModelRef(path=base)
    else:
        theirs = model_ref(against) if against is not None else None
    return EvaluationSpec(model=ours, against=theirs, base=base, reference=reference or ours.reference)


def evaluate(
    suite: Suite,
    models: EvaluationSpec,
    output: Path,
    tell: Tell,
    start_cluster: Callable[..., Cluster] = RayCluster,
) -> Result:
    """Evaluates, and writes `output`. A judge that fails is told in the remarks, and raised when all else is written.

    Raises:
        BadInput: before anything is started, with everything that is wrong.
        JudgeFailed, WorkerFailed, ClusterError: see there.
    """
    started, config = time.monotonic(), suite.config
    models, remarks = _known(config, models)
    prompts, key = check_inputs(config, models, output)
    models = _hashed(models)
    answered, ratios = _measure(config, models, prompts, output, tell, start_cluster)
    rows = [row for name, parts in answered.items() for part in parts for row in _rows(name, part, models, ratios)]
    disk.make_directory(output)
    write_rows(output / SAMPLES, rows)
    judgements, failed = None, None
    if config.judge is not None and AGAINST in answered:
        try:
            rows, judgements = run_judge(config.judge, key, rows, config.seed, tell)
            write_rows(output / SAMPLES, rows)
        except JudgeFailed as error:
            failed = error
            remarks.append(f"the judge failed, so there is no win rate of it: {error.problems[0].what}")
    bootstrap = figures.BootstrapConfig(seed=config.seed, confidence=config.confidence, num_draws=config.num_draws)
    result = Result(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        suite={"source": str(suite.source), "sha256": _digest(config), "config": config.model_dump(mode="json")},
        models=_told(models),
        prompts=_prompts_told(config, prompts, answered[MODEL]),
        figures={name: figures.figures(rows, name, bootstrap) for name in answered},
        differences=figures.differences(rows, MODEL, AGAINST, bootstrap),
        win_rates=figures.win_rates(rows, MODEL, AGAINST, bootstrap),
        cost=_cost(answered, ratios, judgements) | {"seconds": round(time.monotonic() - started, 3)},
        software=software(),
        remarks=(*remarks, *_dropped(answered[MODEL])),
    )
    write_result(output, result)
    if failed is not None:
        raise failed
    return result


# ------------------------------------------------------------------------------------------------ before


def check_inputs(
    suite: SuiteConfig, models: EvaluationSpec, output: Path
) -> tuple[dict[str, Sequence[Prompt]], str | None]:
    """The prompts, and the judge's key. Raises BadInput with everything that is wrong with any file."""
    problems = Problems()
    prompts = suite_prompts(suite, problems)
    key = check_suite(suite, prompts, problems)
    named = {"MODEL": models.model.path, **{f"--{name}": path for name, path in models.references.items()}}
    named |= {"--against": models.against.path} if models.against else {}
    check_models(named, prompts, suite.rollout.tensor_parallel_size, problems)
    for name, path in models.references.items():
        check_comparable(models.model.path, path, f"--{name}", problems)
    refuse_another(output, EVALUATION, problems)
    if problems:
        raise BadInput(list(dict.fromkeys(problems)))
    return prompts, key


def refuse_another(output: Path, name: str, problems: Problems) -> None:
    """Nothing is written over."""
    if (output / name).exists() or (output.exists() and not output.is_dir()):
        fix = "give another directory as --output, or remove this one"
        problems.add("there is a result already" if output.is_dir() else "is a file", where=str(output), fix=fix)


def _known(suite: SuiteConfig, models: EvaluationSpec) -> tuple[EvaluationSpec, list[str]]:
    """What is measured of what was asked for, and what to say of the rest."""
    remarks = []
    references = {**models.references} if suite.kl and suite.prompts is not None else {}
    for name, path in models.references.items():
        # What the run names may have been removed since; what stands on the command line is refused if it is not there.
        told_by_run = path == getattr(models.model, name)
        if name in references and told_by_run and not local(path).is_dir() and not may_be_of_the_hub(path):
            remarks.append(f"kl/{name} is not measured: the run's {name} is not there any more: {path}")
            del references[name]
    if suite.kl and suite.prompts is not None and not models.references:
        remarks.append("no KL is measured: what the model was trained from is not known; give --base PATH")
    if suite.judge is not None and models.against is None:
        remarks.append("the judge is not asked: there is nothing to compare with; give --against")
    return replace(models, base=references.get("base"), reference=references.get("reference")), remarks


def _hashed(models: EvaluationSpec) -> EvaluationSpec:
    ours, against = models.model, models.against
    return replace(
        models,
        model=replace(ours, weights=weights(ours.path)),
        against=replace(against, weights=weights(against.path)) if against else None,
    )


# ------------------------------------------------------------------------------------------------ meanwhile


def _measure(
    suite: SuiteConfig,
    models: EvaluationSpec,
    prompts: Mapping[str, Sequence[Prompt]],
    output: Path,
    tell: Tell,
    start_cluster: Callable[..., Cluster],
) -> tuple[dict[str, list[Answered]], LogProbs | None]:
    with cluster_for(suite, output, tell, start_cluster) as cluster:
        answered = {}
        for name, one in models.model_refs.items():
            tell(f"{one.name} answers {', '.join(f'{len(some)} {key}' for key, some in prompts.items())}")
            answered[name] = answer(cluster, suite, one.path, prompts)
        completions = _comparable(models, answered)
        if not completions:
            return answered, None
        tell(f"log-probabilities of the samples under their own model and under {' and '.join(models.references)}")
        return answered, log_probs(cluster, suite, _wanted(models, completions), completions)


def _comparable(models: EvaluationSpec, answered: Mapping[str, Sequence[Answered]]) -> dict[str, Experience]:
    """What a KL is measured on, by model: samples in the tokens of what it is measured to."""
    return {
        name: part.experience
        for name, parts in answered.items()
        for part in parts
        if part.mode == "sampled" and models.references
        if not any(difference_of(models.model_refs[name].path, path) for path in models.references.values())
    }


def _wanted(models: EvaluationSpec, completions: Iterable[str]) -> dict[str, list[str]]:
    """Each model's samples under itself and under what it is compared with; once where paths are the same."""
    found: dict[str, list[str]] = {}
    for name in completions:
        for path in dict.fromkeys([models.model_refs[name].path, *models.references.values()]):
            found.setdefault(path, []).append(name)
    return found


def _rows(name: str, part: Answered, models: EvaluationSpec, ratios: LogProbs | None) -> list[Row]:
    told: dict[str, NDArray[np.float64]] = {}
    own = ratios.sums.get(models.model_refs[name].path, {}).get(name) if ratios is not None else None
    if ratios is not None and own is not None and part.mode == "sampled":
        told = {reference_policy: own - ratios.sums[path][name] for reference_policy, path in models.references.items()}
    return rows_of(name, part, told)


def run_judge(
    config: JudgeConfig, key: str | None, rows: Sequence[Row], seed: int, tell: Tell
) -> tuple[list[Row], Judgements]:
    """The rows, ours with the judge's outcomes. Raises JudgeFailed."""
    theirs = {(row.prompt_id, row.index): row for row in of(rows, model=AGAINST, mode=config.mode)}
    own = [row for row in of(rows, model=MODEL, mode=config.mode) if (row.prompt_id, row.index) in theirs]
    pairs = [
        Pair(prompt=row.prompt, ours=row.completion, theirs=theirs[row.prompt_id, row.index].completion) for row in own
    ]
    tell(f"{config.name} compares {len(pairs)} pairs, {'in both orders' if config.both_orders else 'in one order'}")
    found = Judge(config, key, seed=seed).judge(pairs)
    told = {id(row): outcome for row, outcome in zip(own, found.outcomes, strict=True) if outcome}
    return [replace(row, outcomes={config.name: told[id(row)]}) if id(row) in told else row for row in rows], found


# ------------------------------------------------------------------------------------------------ what is told


def _told(models: EvaluationSpec) -> dict[str, dict[str, Any]]:
    references = {name: ModelRef(path=path, weights=weights(path)) for name, path in models.references.items()}
    return {name: one.to_dict() for name, one in {**models.model_refs, **references}.items()}


def _prompts_told(
    suite: SuiteConfig, prompts: Mapping[str, Sequence[Prompt]], answered: Sequence[Answered]
) -> dict[str, dict[str, Any]]:
    dropped = {part.prompt_set: part.experience.num_dropped for part in answered}
    return {
        key: {**fingerprint(getattr(suite, key), rows), "dropped": dropped.get(key, 0)}  # type: ignore[call-overload]
        for key, rows in prompts.items()
    }


def _dropped(answered: Sequence[Answered]) -> list[str]:
    """A line for each set that lost prompts."""
    dropped = {part.prompt_set: part.experience.num_dropped for part in answered if part.experience.num_dropped}
    why = "longer than rollout.max_prompt_length, and left out"
    return [f"{count} of {key} are {why}" for key, count in dropped.items()]


def _cost(
    answered: Mapping[str, Sequence[Answered]], ratios: LogProbs | None, judgements: Judgements | None
) -> dict[str, float]:
    parts = [part for found in answered.values() for part in found]
    told = {
        "generated_tokens": float(sum(len(part.experience.completions.values) for part in parts)),
        "engine_seconds": sum(part.seconds for part in parts),
    }
    if ratios is not None:
        told |= {"scored_tokens": float(ratios.num_tokens), "scoring_seconds": ratios.seconds}
    if judgements is not None:
        counts = asdict(judgements)
        told |= {f"judge_{name}": float(counts[name]) for name in ("num_requests", "num_failed", "tokens")}
    return told


def _digest(config: SuiteConfig) -> str:
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
