"""Arguments of `rlhf rank`: the model, the scores that rank its samples, and the gold score of the chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput, Problem, Problems
from orchestrator.evaluation.models import ModelRef, model_ref
from orchestrator.evaluation.rank_scores import Gold, Role, Score, Scorers, read_score
from orchestrator.evaluation.suite import SuiteConfig, suite_of
from orchestrator.evaluation.suite_files import check_suite, suite_prompts
from orchestrator.rundir.directory import RunDirectory

DEFAULT_BY = "policy"
GOLD_OF_RUN, NO_GOLD = "run", "none"
LOADING = {"rollout": {"max_prompt_length", "max_completion_length"}, "model": {"dtype", "chat_template_kwargs"}}
"""Settings that are taken from the run that produced the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSpec:
    """Model whose samples are ranked, the scores that rank them, and the gold score of the chosen ones."""

    suite: SuiteConfig
    model: ModelRef
    reference: str | None  # path of the reference of the implicit reward; None: no score needs it
    by: tuple[Score, ...]
    gold: Gold | None  # None: the chosen samples are not measured
    beta: float  # scale of the implicit reward
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> dict[Role, str]:
        """Paths of the models whose log-probabilities the scores need."""
        needed = {role for score in self.by for role in score.models}
        every: dict[Role, str | None] = {"policy": self.model.path, "reference": self.reference}
        return {role: path for role, path in every.items() if role in needed and path is not None}


def spec(
    model: str,
    prompts: str,
    *,
    by: Sequence[str] = (),
    gold: str | None = None,
    reference: str | None = None,
    n: int = 8,
    beta: float = 0.1,
    overrides: Sequence[str] = (),
) -> RankSpec:
    """Build the spec from the arguments of the command line.

    Without `gold`, the gold score is the reward of the run that produced the model, unless it asks a judge, or the
    prompts lack what it needs.

    Raises:
        BadInput: an argument is wrong.
    """
    ours, problems, scorers = model_ref(model), Problems(), Scorers()
    if not 0 < beta < float("inf"):
        why = "beta scales the implicit reward; at 0 all answers are equal"
        problems.add(f"--beta {beta:g}", where="command line", why=why, fix="give a number > 0")
    read = [read_score(text, "--by", scorers, problems) for text in dict.fromkeys(by or (DEFAULT_BY,))]
    scores = tuple(score for score in read if score is not None)
    given = None if gold in (None, GOLD_OF_RUN, NO_GOLD) else read_score(str(gold), "--gold", scorers, problems)
    found_gold = None if given is None or given.scorer is None else Gold(name=given.name, scorers=(given.scorer,))
    rewards = _run_rewards(ours) if gold in (None, GOLD_OF_RUN) else []
    if gold == GOLD_OF_RUN and not rewards:
        why, fix = f"{model} was not produced by a run with a reward", "give another gold score, such as --gold math"
        problems.add("--gold run", where="command line", why=why, fix=fix)
    path = _reference(model, ours, reference, problems) if any("reference" in s.models for s in scores) else None
    problems.raise_if_any()
    notes: tuple[str, ...] = ()
    if gold is None and any(reward["type"] == "judge" for reward in rewards):
        why = "it asks a judge, which may cost; give --gold run"
        rewards, notes = [], (f"the reward of {ours.name} is not used as the gold score: {why}",)
    values = _suite_values(ours, prompts, n)
    suite = None
    if rewards:
        suite, why = _with_gold_of_run(values, [*scorers, *rewards], overrides, is_required=gold is not None)
        found_gold = Gold(
            name=f"reward of {ours.name}", scorers=tuple(range(len(scorers), len(scorers) + len(rewards)))
        )
        if suite is None:
            found_gold, notes = None, (f"the reward of {ours.name} is not used as the gold score: {why}",)
    suite = suite or _suite(values, scorers, overrides)
    notes += _circular(suite, scores, found_gold)
    return RankSpec(suite=suite, model=ours, reference=path, by=scores, gold=found_gold, beta=beta, notes=notes)


def _reference(model: str, ours: ModelRef, given: str | None, problems: Problems) -> str | None:
    path = given or ours.reference or ours.base
    if path is None:
        why, fix = f"{model} was not produced by a run", "give --reference REF, or another --by"
        problems.add("the reference of the implicit reward is unknown", where="rlhf rank", why=why, fix=fix)
        return None
    return model_ref(path).path


def _run_rewards(model: ModelRef) -> list[dict[str, Any]]:
    if model.run is None:
        return []
    return [reward.model_dump(mode="json") for reward in RunDirectory(Path(model.path).parent).config().reward]


def _suite_values(model: ModelRef, prompts: str, n: int) -> dict[str, Any]:
    """Return the settings of a suite that only samples, with those of `LOADING` from the model's run, if any."""
    values: dict[str, Any] = {"prompts": prompts, "greedy": False, "kl": False, "num_generations": n}
    values["max_prompts"] = 2**31 - 1
    if model.run is not None:
        config = RunDirectory(Path(model.path).parent).config()
        values["rollout"] = config.rollout.model_dump(include=LOADING["rollout"])
        values["model"] = config.model.model_dump(include=LOADING["model"])
    return values


def _suite(values: dict[str, Any], scorers: Sequence[dict[str, Any]], overrides: Sequence[str]) -> SuiteConfig:
    suite = suite_of({**values, "reward": list(scorers)}, overrides)
    if len(suite.reward) != len(scorers):
        why, fix = "the scorers are those of --by and --gold", "change one setting, as in reward.0.dtype=float32"
        raise BadInput(Problem(what="another number of rewards", where="command line, reward", why=why, fix=fix))
    return suite


def _with_gold_of_run(
    values: dict[str, Any], scorers: Sequence[dict[str, Any]], overrides: Sequence[str], *, is_required: bool
) -> tuple[SuiteConfig | None, str]:
    """Return the suite with the run's reward, or None and why the reward cannot score these prompts.

    Raises:
        BadInput: the reward is required, and the suite is wrong.
    """
    problems = Problems()
    try:
        suite = _suite(values, scorers, overrides)
        check_suite(suite, suite_prompts(suite, problems), problems)
    except BadInput as error:
        if is_required:
            raise
        problems.extend(error.problems)
    if problems and not is_required:
        return None, ": ".join(part for part in (problems[0].what, problems[0].why) if part)
    return suite, ""


def _circular(suite: SuiteConfig, scores: Sequence[Score], gold: Gold | None) -> tuple[str, ...]:
    """Return a note for each score that is the gold score itself."""
    golds = [] if gold is None else [suite.reward[i].model_copy(update={"weight": 1.0}) for i in gold.scorers]
    return tuple(
        f"{score.name} is the gold score itself, so its gain is an upper bound"
        for score in scores
        if score.scorer is not None and [suite.reward[score.scorer].model_copy(update={"weight": 1.0})] == golds
    )
