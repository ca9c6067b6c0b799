"""Best of n: a model's samples ordered by a score, and what the chosen ones gain in a gold score.

prompts ──► π samples n each, scorers score them ──► log π(y), log π_ref(y) by the scoring ranks, if a score needs them
                                                          │
   ranked.jsonl: samples of each prompt, best first  ◄────┴────►  rank.json: gold score of the best of 1, 2, 4 … n
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.cluster.base import Cluster
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.errors import Problems
from orchestrator.evaluation.answers import AnswerSet, Log, LogProbs, answer_prompts, cluster_for, log_probs
from orchestrator.evaluation.best_of import chances, majority_chances
from orchestrator.evaluation.evaluate import check_output
from orchestrator.evaluation.figures import BootstrapConfig
from orchestrator.evaluation.gangs import with_judges
from orchestrator.evaluation.models import ModelRef, weights
from orchestrator.evaluation.rank_figures import Cost, gains_of, gold_summary, selection
from orchestrator.evaluation.rank_result import SUMMARY, Ranked, Ranking, Selection, write_ranking
from orchestrator.evaluation.rank_scores import Measured, Score
from orchestrator.evaluation.rank_spec import RankSpec
from orchestrator.evaluation.rows import number_or_none
from orchestrator.evaluation.statistics import Values
from orchestrator.evaluation.suite_files import check_comparable, check_models, check_suite, suite_prompts
from orchestrator.rundir.provenance import software
from workers.types import Finish, Prompt


def rank(spec: RankSpec, output: Path, log: Log, start_cluster: Callable[..., Cluster] = RayCluster) -> Ranking:
    """Rank the samples and write the result to the directory `output`.

    Raises:
        BadInput: an argument is wrong; raised with all problems before anything starts.
        WorkerFailed: a worker failed.
        ClusterError: the cluster could not be started or was lost.
    """
    prompts, suite = _check_inputs(spec, output), spec.suite
    with cluster_for(suite, output, log, start_cluster) as cluster:
        log(f"{spec.model.name}: sampling {suite.num_generations} answers to each of {len(prompts)} prompts")
        judged = with_judges(suite, output, [{}] * len(suite.reward))
        (answers,) = answer_prompts(cluster, judged, spec.model.path, {"prompts": prompts})
        logps = None
        if spec.paths:
            log(f"computing log-probabilities under the {' and the '.join(spec.paths)}")
            wanted = {path: ["model"] for path in spec.paths.values()}
            logps = log_probs(cluster, suite, wanted, {"model": answers.experience})
    ranking = _ranking(spec, answers, logps)
    write_ranking(output, ranking)
    return ranking


def _check_inputs(spec: RankSpec, output: Path) -> Sequence[Prompt]:
    problems, ours = Problems(), spec.model.path
    prompts = suite_prompts(spec.suite, problems)
    check_suite(spec.suite, prompts, problems)
    paths = {"MODEL": ours} | ({} if spec.reference is None else {"--reference": spec.reference})
    check_models(paths, prompts, spec.suite.rollout.tensor_parallel_size, problems)
    if spec.reference is not None:
        check_comparable(ours, spec.reference, "--reference", problems)
    check_output(output, SUMMARY, problems)
    problems.raise_if_any()
    return prompts["prompts"]


# ------------------------------------------------------------------------------------------------ arithmetic


def _ranking(spec: RankSpec, answers: AnswerSet, logps: LogProbs | None) -> Ranking:
    suite, ours = spec.suite, spec.model
    log_p = {role: logps.sums[path]["model"] for role, path in spec.paths.items()} if logps is not None else {}
    measured = Measured(answers=answers, logps=log_p, beta=spec.beta)
    values = {score.name: measured.values(score) for score in spec.by}
    gold = None if spec.gold is None else measured.gold(spec.gold, [reward.weight for reward in suite.reward])
    bootstrap = BootstrapConfig(seed=suite.seed, confidence=suite.confidence, num_draws=suite.num_draws)
    golds = None if gold is None else _by_prompt(gold, answers)
    reference = spec.reference
    return Ranking(
        model=ModelRef(path=ours.path, run=ours.run, weights=weights(ours.path)).to_dict(),
        reference=None if reference is None else ModelRef(path=reference, weights=weights(reference)).to_dict(),
        suite=suite.model_dump(mode="json"),
        beta=spec.beta,
        by={score.name: _selection(spec, score, measured, golds, logps, bootstrap) for score in spec.by},
        gold=gold_summary(spec.gold.name, golds, bootstrap) if spec.gold is not None and golds is not None else None,
        cost=_cost(spec, spec.by, answers, logps).to_dict(),
        software=software(),
        dropped=answers.experience.num_dropped,
        notes=(*spec.notes, *_paid_for_gold(spec, answers)),
        ranked=tuple(ranked(answers, values, gold)),
    )


def _selection(
    spec: RankSpec,
    score: Score,
    measured: Measured,
    gold: Sequence[Values] | None,
    logps: LogProbs | None,
    bootstrap: BootstrapConfig,
) -> Selection:
    answers = measured.answers
    scores = _by_prompt(measured.values(score), answers)
    chance = partial(_chance, scores)
    if score.kind == "majority":
        chance = partial(_majority_chance, measured.final_answers())
    cost = _cost(spec, [score], answers, logps)
    return selection(
        scores,
        lengths=_by_prompt(answers.experience.completions.lengths.astype(np.float64), answers),
        best=[chance(p, cost.num_samples) for p in range(cost.num_prompts)],
        cost=cost,
        gains=None if gold is None else gains_of(gold, chance, cost, bootstrap),
        bootstrap=bootstrap,
    )


def _chance(scores: Sequence[Values], prompt: int, n: int) -> Values:
    return chances(scores[prompt], n)


def _majority_chance(answers: Sequence[Sequence[Any]], prompt: int, n: int) -> Values:
    return majority_chances(answers[prompt], n)


def _by_prompt(values: NDArray[Any], answers: AnswerSet) -> list[Values]:
    return np.split(values, answers.experience.group_offsets[1:-1])


def _cost(spec: RankSpec, scores: Sequence[Score], answers: AnswerSet, logps: LogProbs | None) -> Cost:
    """Return the cost of ranking by some of the scores.

    All scorers run together, so the seconds of one are those of all. A reward model's pass is counted in the tokens of
    the policy.
    """
    experience, suite = answers.experience, spec.suite
    paths = dict.fromkeys(spec.paths[role] for score in scores for role in score.models)
    seconds = sum(logps.seconds_by_model[path] for path in paths) if logps is not None else 0.0
    if answers.scores is not None and any(score.scorer is not None for score in scores):
        seconds += answers.scores.seconds
    return Cost(
        num_prompts=len(experience.prompts),
        num_samples=suite.num_generations,
        prompt_tokens=int(experience.prompt_tokens.lengths.sum()),
        generated_tokens=len(experience.completions.values),
        num_passes=len(paths) + sum(score.kind == "reward_model" for score in scores),
        engine_seconds=answers.seconds * suite.rollout.tensor_parallel_size,
        scoring_seconds=seconds,
        judges=_paid({score.scorer for score in scores if score.scorer is not None}, answers),
    )


def _paid(scorers: Collection[int], answers: AnswerSet) -> Mapping[str, float]:
    """Return what judges among the scorers have used together."""
    total: Counter[str] = Counter()
    for scorer in scorers:
        total.update(answers.usage(scorer))
    return dict(total)


def _paid_for_gold(spec: RankSpec, answers: AnswerSet) -> tuple[str, ...]:
    """Return a note on what a judge as the gold score has used, which the cost of no score contains."""
    if spec.gold is None or not (used := _paid(spec.gold.scorers, answers)):
        return ()
    return (f"the gold score took {used['requests']:,.0f} requests to its judge, {used['cost']:.2f} dollars",)


def ranked(answers: AnswerSet, values: Mapping[str, Values], gold: Values | None) -> Iterator[Ranked]:
    """Sort the completions of each prompt by the first score, largest first.

    Ties keep the order of sampling. Completions without a score come last.

    Args:
        values: each [N], by score; NaN: the scorer abstained.
        gold: [N]; None: no gold score.
    """
    experience, first = answers.experience, next(iter(values.values()))
    for g, prompt in enumerate(experience.prompts):
        begin, end = (int(i) for i in experience.group_offsets[g : g + 2])
        order = begin + np.argsort(-first[begin:end], kind="stable")
        yield Ranked(
            prompt_id=prompt.id,
            prompt=prompt.text,
            completions=tuple(
                {
                    "completion": answers.texts[i],
                    "index": i - begin,
                    "scores": {name: number_or_none(numbers[i]) for name, numbers in values.items()},
                    "gold": None if gold is None else number_or_none(gold[i]),
                    "tokens": len(experience.completions[i]),
                    "finish": Finish(int(experience.finish[i])).name,
                }
                for i in order.tolist()
            ),
        )
