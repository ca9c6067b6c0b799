"""Evaluation of a model on a suite, from the inputs to the figures.

suite, models ──► inputs checked ──► answers of each model ──► log-ratios ──► (cluster shut down) judge ──► figures
                                                                                     │
                          DIR/samples.jsonl is written before the judge is called ───┘   DIR/evaluation.json at the end
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator import disk
from orchestrator.cluster.base import Cluster
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problem, Problems
from orchestrator.evaluation import figures
from orchestrator.evaluation.answers import (
    AnswerSet,
    Log,
    LogProbs,
    answer_prompts,
    cluster_for,
    log_probs,
    to_rows,
    usage,
)
from orchestrator.evaluation.gangs import with_judges
from orchestrator.evaluation.models import ModelRef, model_ref, weights
from orchestrator.evaluation.result import EVALUATION, SAMPLES, Result, write_result
from orchestrator.evaluation.rows import Row, write_rows
from orchestrator.evaluation.suite import Suite, SuiteConfig
from orchestrator.evaluation.suite_files import (
    check_comparable,
    check_models,
    check_suite,
    difference_of,
    suite_preferences,
    suite_prompts,
)
from orchestrator.evaluation.verdicts import AGAINST, MODEL, verdicts
from orchestrator.preflight.model_directory import may_be_hub_id
from orchestrator.rundir.provenance import fingerprint, software
from workers.types import Example, Experience, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSpec:
    """Models of an evaluation: the evaluated one, and those it is compared with."""

    model: ModelRef
    against: ModelRef | None = None  # opponent in the win rates; None: no comparison
    base: str | None = None  # path of the initial model, for kl/base; None: not measured
    reference: str | None = None  # path of the newest reference, for kl/reference; None: not measured

    @property
    def model_refs(self) -> dict[str, ModelRef]:
        return {MODEL: self.model, **({AGAINST: self.against} if self.against else {})}

    @property
    def references(self) -> dict[str, str]:
        """Paths of the models that the KL is measured to, by their name in figures."""
        paths = {"base": self.base, "reference": self.reference}
        return {name: path for name, path in paths.items() if path is not None}


def spec(
    model: str, *, against: str | None = None, base: str | None = None, reference: str | None = None
) -> EvaluationSpec:
    """Build the spec from the arguments of the command line. `against` may be "base".

    Raises:
        BadInput: a run has no model, or `against` is "base" and the base is unknown.
    """
    ours = model_ref(model)
    base = base or ours.base
    if against == "base":
        if base is None:
            why, fix = f"{model} was not produced by a run", "give --base PATH, or --against PATH"
            raise BadInput(Problem(what="the base is unknown", where="--against base", why=why, fix=fix))
        theirs: ModelRef | None = ModelRef(path=base)
    else:
        theirs = model_ref(against) if against is not None else None
    return EvaluationSpec(model=ours, against=theirs, base=base, reference=reference or ours.reference)


def evaluate(
    suite: Suite,
    models: EvaluationSpec,
    output: Path,
    log: Log,
    start_cluster: Callable[..., Cluster] = RayCluster,
) -> Result:
    """Run an evaluation and write its result to the directory `output`.

    Raises:
        BadInput: the suite, a model or the output directory is wrong; raised with all problems before anything starts.
        JudgeFailed: the judge failed. The result without what it should have said is written first.
        WorkerFailed: a worker failed.
        ClusterError: the cluster could not be started or was lost.
    """
    started, config = time.monotonic(), suite.config
    models, remarks = _measurable(config, models)
    prompts, labelled, key = check_inputs(config, models, output)
    models = _with_weights(models)
    answers, logps = _measure(config, models, prompts, output, log, start_cluster)
    rows = [row for name, parts in answers.items() for part in parts for row in _rows(name, part, models, logps)]
    disk.make_directory(output)
    write_rows(output / SAMPLES, rows)
    judged = verdicts(config, key, rows, labelled, output, log)
    rows, failure = list(judged.rows), judged.failure
    write_rows(output / SAMPLES, rows)
    if failure is not None:
        remarks.append(f"the judge failed, so what it should have said is missing: {failure.problems[0].what}")
    bootstrap = figures.BootstrapConfig(seed=config.seed, confidence=config.confidence, num_draws=config.num_draws)
    result = Result(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        suite={"source": str(suite.source), "sha256": _digest(config), "config": config.model_dump(mode="json")},
        models=_models_dict(models),
        prompts=_prompts_dict(config, prompts, answers[MODEL]),
        figures={name: figures.figures(rows, name, bootstrap) for name in answers},
        differences=figures.differences(rows, MODEL, AGAINST, bootstrap),
        win_rates=figures.win_rates(rows, MODEL, AGAINST, bootstrap),
        agreement=judged.agreement,
        cost=_cost(answers, logps, judged.cost) | {"seconds": round(time.monotonic() - started, 3)},
        software=software(),
        remarks=(*remarks, *_dropped_remarks(answers[MODEL])),
    )
    write_result(output, result)
    if failure is not None:
        raise failure
    return result


# ------------------------------------------------------------------------------------------------ checks


def check_inputs(
    suite: SuiteConfig, models: EvaluationSpec, output: Path
) -> tuple[dict[str, Sequence[Prompt]], Sequence[Example], str | None]:
    """Check all inputs. Return the prompts by set, the labelled pairs, and the judge's key.

    Raises:
        BadInput: with the problems of all files.
    """
    problems = Problems()
    prompts, labelled = suite_prompts(suite, problems), suite_preferences(suite, problems)
    key = check_suite(suite, prompts, problems)
    paths = {"MODEL": models.model.path, **{f"--{name}": path for name, path in models.references.items()}}
    paths |= {"--against": models.against.path} if models.against else {}
    check_models(paths, prompts, suite.rollout.tensor_parallel_size, problems)
    for name, path in models.references.items():
        check_comparable(models.model.path, path, f"--{name}", problems)
    check_output(output, EVALUATION, problems)
    if problems:
        raise BadInput(list(dict.fromkeys(problems)))
    return prompts, labelled, key


def check_output(output: Path, name: str, problems: Problems) -> None:
    """Check that `output` can be written without overwriting a result."""
    if (output / name).exists() or (output.exists() and not output.is_dir()):
        fix = "give another directory as --output, or remove this one"
        what = "the directory has a result already" if output.is_dir() else "not a directory"
        problems.add(what, where=str(output), fix=fix)


def _measurable(suite: SuiteConfig, models: EvaluationSpec) -> tuple[EvaluationSpec, list[str]]:
    """Return the spec without the KL references that cannot be measured, and a remark for each omission."""
    remarks = []
    references = {**models.references} if suite.kl and suite.prompts is not None else {}
    for name, path in models.references.items():
        # A path recorded by the run may have been removed since. A missing path of the command line is an error.
        from_run = path == getattr(models.model, name)
        if name in references and from_run and not local(path).is_dir() and not may_be_hub_id(path):
            remarks.append(f"kl/{name} is not measured: the run's {name} no longer exists: {path}")
            del references[name]
    if suite.kl and suite.prompts is not None and not models.references:
        remarks.append("no KL is measured: the model's base is unknown; give --base PATH")
    if suite.judge is not None and models.against is None:
        what = "the judge is not used" if suite.preferences is None else "the judge compares no completions"
        remarks.append(f"{what}: there is no model to compare with; give --against")
    return replace(models, base=references.get("base"), reference=references.get("reference")), remarks


def _with_weights(models: EvaluationSpec) -> EvaluationSpec:
    ours, against = models.model, models.against
    return replace(
        models,
        model=replace(ours, weights=weights(ours.path)),
        against=replace(against, weights=weights(against.path)) if against else None,
    )


# ------------------------------------------------------------------------------------------------ measurement


def _measure(
    suite: SuiteConfig,
    models: EvaluationSpec,
    prompts: Mapping[str, Sequence[Prompt]],
    output: Path,
    log: Log,
    start_cluster: Callable[..., Cluster],
) -> tuple[dict[str, list[AnswerSet]], LogProbs | None]:
    with cluster_for(suite, output, log, start_cluster) as cluster:
        answers: dict[str, list[AnswerSet]] = {}
        for name, model in models.model_refs.items():
            log(f"{model.name}: generating answers to {', '.join(f'{len(p)} {key}' for key, p in prompts.items())}")
            used = [usage(chain(*answers.values()), i) for i in range(len(suite.reward))]
            answers[name] = answer_prompts(cluster, with_judges(suite, output, used), model.path, prompts)
        completions = _comparable(models, answers)
        if not completions:
            return answers, None
        log(f"computing log-probabilities of the samples under their model and {' and '.join(models.references)}")
        return answers, log_probs(cluster, suite, _wanted(models, completions), completions)


def _comparable(models: EvaluationSpec, answers: Mapping[str, Sequence[AnswerSet]]) -> dict[str, Experience]:
    """Return the sampled completions of each model that shares the tokenizer of the models its KL is measured to."""
    return {
        name: part.experience
        for name, parts in answers.items()
        for part in parts
        if part.mode == "sampled" and models.references
        if not any(difference_of(models.model_refs[name].path, path) for path in models.references.values())
    }


def _wanted(models: EvaluationSpec, completions: Iterable[str]) -> dict[str, list[str]]:
    """Return, by model path, whose samples it scores: every model scores its own, every reference scores all."""
    keys: dict[str, list[str]] = {}
    for name in completions:
        for path in dict.fromkeys([models.model_refs[name].path, *models.references.values()]):
            keys.setdefault(path, []).append(name)
    return keys


def _rows(name: str, part: AnswerSet, models: EvaluationSpec, logps: LogProbs | None) -> list[Row]:
    ratios: dict[str, NDArray[np.float64]] = {}
    own = logps.sums.get(models.model_refs[name].path, {}).get(name) if logps is not None else None
    if logps is not None and own is not None and part.mode == "sampled":
        ratios = {reference: own - logps.sums[path][name] for reference, path in models.references.items()}
    return to_rows(name, part, ratios)


# ------------------------------------------------------------------------------------------------ result


def _models_dict(models: EvaluationSpec) -> dict[str, dict[str, Any]]:
    references = {name: ModelRef(path=path, weights=weights(path)) for name, path in models.references.items()}
    return {name: model.to_dict() for name, model in {**models.model_refs, **references}.items()}


def _prompts_dict(
    suite: SuiteConfig, prompts: Mapping[str, Sequence[Prompt]], answers: Sequence[AnswerSet]
) -> dict[str, dict[str, Any]]:
    dropped = {part.prompt_set: part.experience.num_dropped for part in answers}
    return {
        key: {**fingerprint(getattr(suite, key), rows), "dropped": dropped.get(key, 0)}  # type: ignore[call-overload]
        for key, rows in prompts.items()
    }


def _dropped_remarks(answers: Sequence[AnswerSet]) -> list[str]:
    dropped = {part.prompt_set: part.experience.num_dropped for part in answers if part.experience.num_dropped}
    why = "longer than rollout.max_prompt_length"
    return [f"{key}: {count} prompts are left out because they are {why}" for key, count in dropped.items()]


def _cost(
    answers: Mapping[str, Sequence[AnswerSet]], logps: LogProbs | None, judge: Mapping[str, float]
) -> dict[str, float]:
    parts = [part for sets in answers.values() for part in sets]
    cost = {
        "generated_tokens": float(sum(len(part.experience.completions.values) for part in parts)),
        "engine_seconds": sum(part.seconds for part in parts),
    }
    if logps is not None:
        cost |= {"scored_tokens": float(logps.num_tokens), "scoring_seconds": logps.seconds}
    used = Counter[str]()
    for part in parts:
        used.update({} if part.scores is None else part.scores.usage)
    return {**cost, **judge, **{f"rewards/{name}": number for name, number in used.items()}}


def _digest(config: SuiteConfig) -> str:
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
