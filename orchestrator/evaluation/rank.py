"""Best-of-n by the implicit reward of a DPO model, β log π(y|x)/π_ref(y|x) (arXiv 2305.18290).

prompts ──► π samples n each ──► log π(y), log π_ref(y) by the scoring ranks ──► sorted completions, and their cost

No reward model is needed. The cost is n completions instead of one, and two forward passes over each of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from orchestrator import disk
from orchestrator.cluster.base import Cluster
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.errors import BadInput, Problem, Problems, redact
from orchestrator.evaluation import figures
from orchestrator.evaluation.answers import AnswerSet, Log, LogProbs, answer_prompts, cluster_for, log_probs
from orchestrator.evaluation.evaluate import check_output
from orchestrator.evaluation.figures import Figure
from orchestrator.evaluation.models import ModelRef, model_ref, weights
from orchestrator.evaluation.suite import SuiteConfig, suite_of
from orchestrator.evaluation.suite_files import check_comparable, check_models, suite_prompts
from orchestrator.monitor.figures import number, one_line, shorten
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.provenance import software
from orchestrator.terminal import Forgiving
from workers.types import Finish, Prompt

SCHEMA = 1
RANKED, SUMMARY = "ranked.jsonl", "rank.json"
SHOWN = 8  # prompts in the table


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Model whose completions are ranked, and the reference of its implicit reward."""

    model: ModelRef
    reference: str  # path


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """Completions of one prompt, best first.

    Example: `Ranked(prompt_id="test.jsonl:3", prompt="hcafb>", completions=({"completion": "abcfh", "index": 5,
    "implicit_reward": 0.31, "log_ratio": 3.1, "tokens": 6, "finish": "stop"}, …))`.
    """

    prompt_id: str
    prompt: Any
    completions: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Result of a ranking."""

    model: Mapping[str, Any]
    reference: Mapping[str, Any]
    suite: Mapping[str, Any]
    beta: float
    figures: Mapping[str, Figure]  # best, mean: implicit reward; best_length, mean_length: tokens
    cost: Mapping[str, float]  # tokens sampled and read, and busy seconds of devices
    software: Mapping[str, str]
    dropped: int  # number of prompts that were too long
    ranked: tuple[Ranked, ...]


def candidates(model: str, reference: str | None) -> Candidates:
    """Resolve the model and its reference.

    Raises:
        BadInput: the reference is unknown.
    """
    ours = model_ref(model)
    path = reference or ours.reference or ours.base
    if path is None:
        why = f"{model} was not produced by a run"
        raise BadInput(Problem(what="the reference is unknown", where="rlhf rank", why=why, fix="give --reference REF"))
    return Candidates(model=ours, reference=model_ref(path).path)


def settings(model: ModelRef, prompts: str, n: int, beta: float, overrides: Sequence[str]) -> SuiteConfig:
    """Build a suite that only samples, with the lengths of the run that produced the model, if any.

    Raises:
        BadInput: `beta` or an override is wrong.
    """
    if not 0 < beta < float("inf"):
        why = "beta scales the reward; at 0 all completions are equal"
        raise BadInput(Problem(what=f"--beta {beta:g}", where="command line", why=why, fix="give a number > 0"))
    values: dict[str, Any] = {"prompts": prompts, "greedy": False, "num_generations": n, "max_prompts": 2**31 - 1}
    if model.run is not None:
        rollout = RunDirectory(Path(model.path).parent).config().rollout
        values["rollout"] = rollout.model_dump(include={"max_prompt_length", "max_completion_length"})
    return suite_of(values, overrides)


def rank(
    suite: SuiteConfig,
    given: Candidates,
    beta: float,
    output: Path,
    log: Log,
    start_cluster: Callable[..., Cluster] = RayCluster,
) -> Ranking:
    """Rank the completions and write the result to the directory `output`.

    Raises:
        BadInput: an argument is wrong; raised with all problems before anything starts.
        WorkerFailed: a worker failed.
        ClusterError: the cluster could not be started or was lost.
    """
    prompts = _check_inputs(suite, given, output)
    path, reference = given.model.path, given.reference
    with cluster_for(suite, output, log, start_cluster) as cluster:
        log(f"{given.model.name}: sampling {suite.num_generations} answers to each of {len(prompts)} prompts")
        (answers,) = answer_prompts(cluster, suite, path, {"prompts": prompts})
        log("computing log-probabilities under the model and its reference")
        wanted = {path: ["model"], reference: ["model"]}
        logps = log_probs(cluster, suite, wanted, {"model": answers.experience})
    log_ratios = logps.sums[path]["model"] - logps.sums[reference]["model"]
    ranked = tuple(by_reward(answers, log_ratios, beta))
    ranking = Ranking(
        model=ModelRef(path=path, run=given.model.run, weights=weights(path)).to_dict(),
        reference=ModelRef(path=reference, weights=weights(reference)).to_dict(),
        suite=suite.model_dump(mode="json"),
        beta=beta,
        figures=summary(ranked, figures.BootstrapConfig(seed=suite.seed, confidence=suite.confidence)),
        cost=cost(suite, answers, logps),
        software=software(),
        dropped=answers.experience.num_dropped,
        ranked=ranked,
    )
    disk.make_directory(output)
    lines = [json.dumps(asdict(prompt), ensure_ascii=False, allow_nan=False) + "\n" for prompt in ranked]
    disk.write_atomic(output / RANKED, "".join(lines))
    disk.write_atomic(output / SUMMARY, as_json(ranking) + "\n")
    return ranking


def _check_inputs(suite: SuiteConfig, given: Candidates, output: Path) -> Sequence[Prompt]:
    problems = Problems()
    prompts = suite_prompts(suite, problems)
    paths = {"MODEL": given.model.path, "--reference": given.reference}
    check_models(paths, prompts, suite.rollout.tensor_parallel_size, problems)
    check_comparable(given.model.path, given.reference, "--reference", problems)
    check_output(output, SUMMARY, problems)
    problems.raise_if_any()
    return prompts["prompts"]


# ------------------------------------------------------------------------------------------------ arithmetic


def by_reward(answers: AnswerSet, log_ratios: NDArray[np.float64], beta: float) -> Iterator[Ranked]:
    """Sort the completions of each prompt by β × log-ratio, largest first. Ties keep the order of sampling."""
    experience = answers.experience
    for g, prompt in enumerate(experience.prompts):
        begin, end = (int(i) for i in experience.group_offsets[g : g + 2])
        order = begin + np.argsort(-log_ratios[begin:end], kind="stable")
        yield Ranked(
            prompt_id=prompt.id,
            prompt=prompt.text,
            completions=tuple(
                {
                    "completion": answers.texts[i],
                    "index": int(i) - begin,
                    "implicit_reward": beta * float(log_ratios[i]),
                    "log_ratio": float(log_ratios[i]),
                    "tokens": len(experience.completions[int(i)]),
                    "finish": Finish(int(experience.finish[i])).name,
                }
                for i in order.tolist()
            ),
        )


def summary(ranked: Sequence[Ranked], bootstrap: figures.BootstrapConfig) -> dict[str, Figure]:
    """Compare the best completion with the mean over completions, in implicit reward and length, over prompts."""
    values: dict[str, list[float]] = {}
    for prompt in ranked:
        for key, name in (("implicit_reward", ""), ("tokens", "_length")):
            numbers = [completion[key] for completion in prompt.completions]
            values.setdefault(f"best{name}", []).append(float(numbers[0]))
            values.setdefault(f"mean{name}", []).append(float(np.mean(numbers)))
    return {name: figures.mean(numbers, bootstrap) for name, numbers in values.items()}


def cost(suite: SuiteConfig, answers: AnswerSet, logps: LogProbs) -> dict[str, float]:
    """Return the tokens and busy seconds of a ranking.

    `engine_seconds` counts every GPU of an engine, or its process if it has none. `device_seconds` includes the scoring
    ranks.
    """
    generated = float(len(answers.experience.completions.values))
    engines = answers.seconds * suite.rollout.tensor_parallel_size
    return {
        "generated_tokens": generated,
        "generated_tokens_per_prompt": generated / len(answers.experience.prompts),
        "scored_tokens": float(logps.num_tokens),
        "engine_seconds": engines,
        "scoring_seconds": logps.seconds,
        "device_seconds": engines + logps.seconds,
    }


# ------------------------------------------------------------------------------------------------ output


def as_json(ranking: Ranking) -> str:
    """Serialise the ranking without its completions, which are in ranked.jsonl."""
    body = {"schema": SCHEMA, **{name: value for name, value in asdict(ranking).items() if name != "ranked"}}
    return redact(json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False))


def show(ranking: Ranking, stream: TextIO | None = None) -> None:
    """Print the ranking to standard output, or to `stream`."""
    console = Console(file=cast(TextIO, Forgiving(stream or sys.stdout)), highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, side in (("prompt", "left"), ("best of n", "left"), ("reward", "right"), ("mean", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for ranked in ranking.ranked[:SHOWN]:
        prompt = ranked.prompt if isinstance(ranked.prompt, str) else str(ranked.prompt[-1]["content"])
        rewards = [completion["implicit_reward"] for completion in ranked.completions]
        texts = (shorten(one_line(text), 40) for text in (prompt, ranked.completions[0]["completion"]))
        table.add_row(*texts, number(rewards[0]), number(float(np.mean(rewards))))
    console.print(table)
    if len(ranking.ranked) > SHOWN:
        console.print(f"… and {len(ranking.ranked) - SHOWN} more prompts")
    best, mean = ranking.figures["best"], ranking.figures["mean"]
    length_ratio = ranking.figures["best_length"].value / ranking.figures["mean_length"].value
    console.print(
        f"implicit reward (beta {ranking.beta:g}): {number(best.value)} for the best completion, {number(mean.value)} "
        f"on average; the best completions are {length_ratio:.2f} times as long as the average"
    )
    spent = ranking.cost
    console.print(
        f"cost: {number(spent['generated_tokens'])} tokens sampled, {number(spent['scored_tokens'])} tokens scored, "
        f"{number(spent['engine_seconds'])} s of engines, {number(spent['scoring_seconds'])} s of scoring ranks"
    )
    if ranking.dropped:
        console.print(f"note: {ranking.dropped} prompts are left out: they are longer than rollout.max_prompt_length")
