"""Best of n by the implicit reward of a model that was trained by DPO: β log π(y|x)/π_ref(y|x) (arXiv 2305.18290).

prompts ──► π samples n each ──► log π(y), log π_ref(y) by the scoring ranks ──► sorted, with what it cost

It needs no reward model. What it costs is n completions instead of one, and two forward passes over each of them.
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
from orchestrator.evaluation.answers import Answered, LogProbs, Tell, answer, cluster_for, log_probs
from orchestrator.evaluation.evaluate import refuse_another
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
SHOWN = 8  # prompts of the table


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Whose answers are ranked, and what they are measured from."""

    model: ModelRef
    reference: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """The completions of one prompt, best first.

    Example: `Ranked(prompt_id="test.jsonl:3", prompt="hcafb>", completions=({"completion": "abcfh", "index": 5,
    "implicit_reward": 0.31, "log_ratio": 3.1, "tokens": 6, "finish": "stop"}, …))`.
    """

    prompt_id: str
    prompt: Any
    completions: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """What was found. `cost`: tokens that were sampled and read, and the seconds that devices were busy with it."""

    model: Mapping[str, Any]
    reference: Mapping[str, Any]
    suite: Mapping[str, Any]
    beta: float
    figures: Mapping[str, Figure]  # of the implicit reward: best, mean; and of length: best_length, mean_length
    cost: Mapping[str, float]
    software: Mapping[str, str]
    dropped: int  # prompts that were too long
    ranked: tuple[Ranked, ...]


def candidates(model: str, reference: str | None) -> Candidates:
    """Raises BadInput when nobody knows the reference."""
    ours = model_ref(model)
    path = reference or ours.reference or ours.base
    if path is None:
        why = f"{model} is not the model of a run, which would know"
        raise BadInput(Problem(what="no reference", where="rlhf rank", why=why, fix="give --reference REF"))
    return Candidates(model=ours, reference=model_ref(path).path)


def settings(model: ModelRef, prompts: str, n: int, beta: float, overrides: Sequence[str]) -> SuiteConfig:
    """A suite of samples alone, as long as those of the run that made the model, where one did. Raises BadInput."""
    if not 0 < beta < float("inf"):
        why = "it scales the reward; at 0 all completions are equal"
        raise BadInput(Problem(what=f"--beta {beta:g}", where="command line", why=why, fix="give a number > 0"))
    given: dict[str, Any] = {"prompts": prompts, "greedy": False, "num_generations": n, "max_prompts": 2**31 - 1}
    if model.run is not None:
        rollout = RunDirectory(Path(model.path).parent).config().rollout
        given["rollout"] = rollout.model_dump(include={"max_prompt_length", "max_completion_length"})
    return suite_of(given, overrides)


def rank(
    suite: SuiteConfig,
    given: Candidates,
    beta: float,
    output: Path,
    tell: Tell,
    start_cluster: Callable[..., Cluster] = RayCluster,
) -> Ranking:
    """Ranks, and writes `output`.

    Raises:
        BadInput: before anything is started, with everything that is wrong.
        WorkerFailed, ClusterError: see there.
    """
    prompts = _look(suite, given, output)
    path, reference = given.model.path, given.reference
    with cluster_for(suite, output, tell, start_cluster) as cluster:
        tell(f"{given.model.name} answers {len(prompts)} prompts, {suite.num_generations} times each")
        (answered,) = answer(cluster, suite, path, {"prompts": prompts})
        tell("log-probabilities under the model and under its reference")
        wanted = {path: ["model"], reference: ["model"]}
        told = log_probs(cluster, suite, wanted, {"model": answered.experience})
    log_ratios = told.sums[path]["model"] - told.sums[reference]["model"]
    ranked = tuple(by_reward(answered, log_ratios, beta))
    found = Ranking(
        model=ModelRef(path=path, run=given.model.run, weights=weights(path)).to_dict(),
        reference=ModelRef(path=reference, weights=weights(reference)).to_dict(),
        suite=suite.model_dump(mode="json"),
        beta=beta,
        figures=summary(ranked, figures.BootstrapConfig(seed=suite.seed, confidence=suite.confidence)),
        cost=cost(suite, answered, told),
        software=software(),
        dropped=answered.experience.num_dropped,
        ranked=ranked,
    )
    disk.make_directory(output)
    lines = [json.dumps(asdict(one), ensure_ascii=False, allow_nan=False) + "\n" for one in ranked]
    disk.write_atomic(output / RANKED, "".join(lines))
    disk.write_atomic(output / SUMMARY, as_json(found) + "\n")
    return found


def _look(suite: SuiteConfig, given: Candidates, output: Path) -> Sequence[Prompt]:
    problems = Problems()
    prompts = suite_prompts(suite, problems)
    named = {"MODEL": given.model.path, "--reference": given.reference}
    check_models(named, prompts, suite.rollout.tensor_parallel_size, problems)
    check_comparable(given.model.path, given.reference, "--reference", problems)
    refuse_another(output, SUMMARY, problems)
    problems.raise_if_any()
    return prompts["prompts"]


# ------------------------------------------------------------------------------------------------ arithmetic


def by_reward(answered: Answered, log_ratios: NDArray[np.float64], beta: float) -> Iterator[Ranked]:
    """Each prompt's completions by β × log-ratio, the largest first; of equal ones the one that was sampled first."""
    experience = answered.experience
    for g, prompt in enumerate(experience.prompts):
        begin, end = (int(i) for i in experience.group_offsets[g : g + 2])
        order = begin + np.argsort(-log_ratios[begin:end], kind="stable")
        yield Ranked(
            prompt_id=prompt.id,
            prompt=prompt.text,
            completions=tuple(
                {
                    "completion": answered.texts[i],
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
    """What choosing does to the implicit reward and to the length, over prompts."""
    values: dict[str, list[float]] = {}
    for one in ranked:
        for key, name in (("implicit_reward", ""), ("tokens", "_length")):
            numbers = [completion[key] for completion in one.completions]
            values.setdefault(f"best{name}", []).append(float(numbers[0]))
            values.setdefault(f"mean{name}", []).append(float(np.mean(numbers)))
    return {name: figures.mean(some, bootstrap) for name, some in values.items()}


def cost(suite: SuiteConfig, answered: Answered, told: LogProbs) -> dict[str, float]:
    """`device_seconds`: an engine's over its GPUs (without one: its process), and those of the scoring ranks."""
    generated = float(len(answered.experience.completions.values))
    engines = answered.seconds * suite.rollout.tensor_parallel_size
    return {
        "generated_tokens": generated,
        "generated_tokens_per_prompt": generated / len(answered.experience.prompts),
        "scored_tokens": float(told.num_tokens),
        "engine_seconds": engines,
        "scoring_seconds": told.seconds,
        "device_seconds": engines + told.seconds,
    }


# ------------------------------------------------------------------------------------------------ telling


def as_json(found: Ranking) -> str:
    """Without the completions, which are in ranked.jsonl."""
    body = {"schema": SCHEMA, **{name: value for name, value in asdict(found).items() if name != "ranked"}}
    return redact(json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False))


def show(found: Ranking, stream: TextIO | None = None) -> None:
    console = Console(file=cast(TextIO, Forgiving(stream or sys.stdout)), highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, side in (("prompt", "left"), ("best of n", "left"), ("reward", "right"), ("mean", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for one in found.ranked[:SHOWN]:
        prompt = one.prompt if isinstance(one.prompt, str) else str(one.prompt[-1]["content"])
        rewards = [completion["implicit_reward"] for completion in one.completions]
        texts = (shorten(one_line(text), 40) for text in (prompt, one.completions[0]["completion"]))
        table.add_row(*texts, number(rewards[0]), number(float(np.mean(rewards))))
    console.print(table)
    if len(found.ranked) > SHOWN:
        console.print(f"… and {len(found.ranked) - SHOWN} more prompts")
    best, mean = found.figures["best"], found.figures["mean"]
    longer = found.figures["best_length"].value / found.figures["mean_length"].value
    console.print(
        f"implicit reward (beta {found.beta:g}): {number(best.value)} of the best, {number(mean.value)} on average; "
        f"the best are {longer:.2f} times as long as the average"
    )
    told = found.cost
    console.print(
        f"cost: {number(told['generated_tokens'])} tokens sampled, {number(told['scored_tokens'])} read, "
        f"{number(told['engine_seconds'])} s of engines and {number(told['scoring_seconds'])} s of scoring ranks"
    )
    if found.dropped:
        console.print(f"note: {found.dropped} prompts are longer than rollout.max_prompt_length, and left out")
