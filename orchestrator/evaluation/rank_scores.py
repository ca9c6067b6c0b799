"""Scores that `rlhf rank` orders answers by, and the gold score that measures the chosen ones.

--by policy, --by function=rewards.py:score, --gold math ──► `Score`s, and the scorers that the suite runs for them
log-probabilities, texts, scorers' results               ──► a number per answer and score
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from orchestrator.data.sources import local
from orchestrator.errors import Problems
from orchestrator.evaluation.best_of import votes
from orchestrator.evaluation.judge_file import read_judge
from orchestrator.evaluation.models import model_ref
from orchestrator.evaluation.statistics import Values
from workers.rewards.answers import final_statement, marked_answer, parse
from workers.types import Scores

if TYPE_CHECKING:
    from orchestrator.evaluation.answers import AnswerSet

Own: TypeAlias = Literal["policy", "policy_per_token", "implicit", "implicit_per_token", "majority"]
"""Scores that need no scorer: they are computed from log-probabilities, or from the answers alone."""
OWN: tuple[Own, ...] = get_args(Own)
Role: TypeAlias = Literal["policy", "reference"]
NAMED = {"reward_model": "PATH", "function": "FILE.py:NAME", "judge": "FILE.yaml"}
"""Scorers that are given with a value, as in reward_model=PATH."""
PLAIN = ("math", "code", "json_schema", "refusal")
SCORERS = (*PLAIN, *(f"{kind}={value}" for kind, value in NAMED.items()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A score of answers, as named on the command line.

    Example: `Score(name="function=rewards.py:score", kind="function", scorer=0)`.
    """

    name: str
    kind: str  # the name without its value
    scorer: int | None  # index of the scorer among the suite's; None: one of OWN

    @property
    def models(self) -> tuple[Role, ...]:
        """Models whose log-probabilities the score needs."""
        kind = self.kind.removesuffix("_per_token")
        return ("policy", "reference") if kind == "implicit" else ("policy",) if kind == "policy" else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Gold:
    """Score that chosen answers are measured by: the weighted sum of scorers, without those that abstain.

    Example: `Gold(name="math", scorers=(1,))`.
    """

    name: str
    scorers: tuple[int, ...]  # indices among the suite's scorers


class Scorers(list[dict[str, Any]]):
    """Settings of the scorers that the suite runs, as in `reward` of a recipe; equal ones are run once."""

    def index_of(self, settings: dict[str, Any]) -> int:
        """Return the index of a scorer, which is added if it is new."""
        if settings not in self:
            self.append(settings)
        return self.index(settings)


def read_score(text: str, option: str, scorers: Scorers, problems: Problems) -> Score | None:
    """Read the value of `--by` or `--gold`. None: it is wrong, and a problem has been added.

    Raises:
        BadInput: a run was given as the reward model and has no model, or the file of a judge is wrong.
    """
    kind, equals, value = text.partition("=")
    allowed = (*OWN, *SCORERS) if option == "--by" else SCORERS
    where = "command line"
    if kind not in (name.partition("=")[0] for name in allowed):
        what, fix = f"{option} {text}", f"give one of {', '.join(allowed)}"
        why = "a gold score comes from a scorer" if kind in OWN else "there is no such score"
        problems.add(what, where=where, why=why, fix=fix)
    elif (kind in NAMED) != bool(value) or (equals and not value):
        written = f"{kind}={NAMED[kind]}" if kind in NAMED else kind
        why = f"{kind} {'needs a' if kind in NAMED else 'takes no'} value"
        problems.add(f"{option} {text}", where=where, why=why, fix=f"write {option} {written}")
    elif kind in OWN:
        return Score(name=text, kind=kind, scorer=None)
    else:
        return Score(name=text, kind=kind, scorer=scorers.index_of(_settings(kind, value)))
    return None


def _settings(kind: str, value: str) -> dict[str, Any]:
    match kind:
        case "reward_model":
            return {"type": "model", "path": model_ref(value).path}
        case "function":
            return {"type": "function", "function": value}
        case "judge":
            return read_judge(local(value)).model_dump(mode="json")
    return {"type": kind}


# ------------------------------------------------------------------------------------------------ values


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Everything measured on the answers, from which scores are computed."""

    answers: AnswerSet
    logps: Mapping[Role, Values]  # log p(y) in nats [N], under the models that the scores need
    beta: float  # scale of the implicit reward

    def values(self, score: Score) -> Values:
        """Return a number per answer [N], NaN where a scorer abstained. The majority's is the share of votes."""
        if score.scorer is not None:
            return by_scorer(self.answers.scores, score.scorer)
        if score.kind == "majority":
            return np.concatenate([votes(group) / len(group) for group in self.final_answers()])
        values = self.logps["policy"]
        if score.kind.startswith("implicit"):
            values = self.beta * (values - self.logps["reference"])
        if score.kind.endswith("_per_token"):
            values = values / np.maximum(self.answers.experience.completions.lengths, 1)
        return values

    def gold(self, gold: Gold, weights: Sequence[float]) -> Values:
        """Return the gold score of each answer [N], NaN where all of its scorers abstained.

        Args:
            weights: weight of each of the suite's scorers.
        """
        parts = np.stack([weights[i] * by_scorer(self.answers.scores, i) for i in gold.scorers])
        gold_scores: Values = np.where(np.isnan(parts).all(0), np.nan, np.nansum(parts, 0))
        return gold_scores

    def final_answers(self) -> list[list[Hashable]]:
        """Return the answers that vote, by prompt."""
        texts, offsets = self.answers.texts, self.answers.experience.group_offsets.tolist()
        return [[final_answer(text) for text in texts[begin:end]] for begin, end in pairwise(offsets)]


def by_scorer(scores: Scores | None, index: int) -> Values:
    """Return the scores [N] of one of the suite's scorers, NaN where it abstained."""
    assert scores is not None
    return list(scores.by_scorer.values())[index].astype(np.float64)


def final_answer(text: str) -> Hashable:
    r"""Return the part of an answer that votes: the marked or announced result, normalised; else the whole text.

    >>> final_answer("So it is \\boxed{12}.") == final_answer("The answer is 12.")
    True
    """
    marked = marked_answer(text)
    statement, is_announced = final_statement(text)
    if marked is None and not is_announced:
        return text.strip()
    answer = parse(statement.split("\n")[0] if marked is None else marked)
    return answer.choice or answer.words or answer.latex
