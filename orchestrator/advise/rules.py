"""Rules that select a method and its settings from the facts about the data. docs/advise.md gives their sources.

facts ──► METHODS: the first rule that holds and whose method fits is the advice,  ──► SETTINGS: changes to the recipe
          the next one with another method is the runner-up
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.advise.facts import Facts
from orchestrator.advise.methods import Method
from orchestrator.audit.length import LONGER_CHOSEN

ENOUGH_PAIRS = 2000  # with fewer, a reward model is hardly better than chance (arXiv 2210.10760, section 3.5)
MANY_PAIRS = 50_000  # our choice: about the size of the data on which PPO was compared with DPO (arXiv 2406.09279)
USUAL_AGREEMENT = 0.726  # of InstructGPT's labellers (arXiv 2203.02155, section 3.4)
LONGER_BY = 1.1  # our choice: threshold of the median length ratio
OWN = 0.5  # our choice: share of the model's own completions from which the data count as on-policy
RECIPES_LENGTH = 2048  # data.max_length of the recipes
FEW_PAIRS = 5000  # our choice: with fewer, a run's effect is hardly larger than the noise of its evaluation
CONFLICTING = 0.01  # our choice: share of the comparisons that objectives decide in opposite ways
NEAR_TARGET = 0.9  # our choice: share of good labels of the model's own completions
LONGEST_ROWS = 8192  # our choice: longer rows are truncated, which `rlhf validate` reports


def is_on_policy(facts: Facts) -> bool:
    """Return True if the model wrote most of the completions; False if the data do not name their authors."""
    return (facts.own or 0.0) >= OWN


def is_noisy(facts: Facts) -> bool:
    """Return True if annotators agree significantly less than usual."""
    return facts.agreement is not None and facts.agreement.high < USUAL_AGREEMENT


def is_length_biased(facts: Facts) -> bool:
    """Return True if chosen completions are significantly more often longer, and by enough."""
    often = facts.longer_chosen is not None and facts.longer_chosen.low > LONGER_CHOSEN
    return often and (facts.length_ratio or 0.0) > LONGER_BY


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A method, and the condition on the facts under which it is advised.

    Example: `Rule(name="labels", method=Method.kto, when=lambda f: …, why="…", sources=("arXiv 2402.01306",))`.
    """

    name: str
    method: Method
    when: Callable[[Facts], bool]
    why: str
    sources: tuple[str, ...]


METHODS: tuple[Rule, ...] = (
    Rule(
        name="answers can be checked",
        method=Method.grpo,
        when=lambda f: f.check is not None and f.prompts > 0,
        why="a checked answer is a reward without a reward model to exploit, and group statistics replace the critic",
        sources=("arXiv 2402.03300", "arXiv 2411.15124", "arXiv 2501.12948"),
    ),
    Rule(
        name="checked answers in rounds",
        method=Method.iterative_dpo,
        when=lambda f: f.check is not None and f.prompts > 0,
        why="correct and incorrect samples form on-policy pairs; weights are published only once per round",
        sources=("arXiv 2404.19733",),
    ),
    Rule(
        name="pairs are the model's own",
        method=Method.dpo,
        when=lambda f: f.pairs > 0 and is_on_policy(f),
        why="the pairs are on-policy, so training on them directly loses little and costs least",
        sources=("arXiv 2305.18290", "arXiv 2404.14367"),
    ),
    Rule(
        name="pairs of others, enough for a reward model",
        method=Method.iterative_dpo_rm,
        when=lambda f: f.pairs >= ENOUGH_PAIRS and f.prompts > 0,
        why="pairs of other models do not show this model's errors; a reward model trained on them scores its samples",
        sources=("arXiv 2404.14367", "arXiv 2405.08448", "arXiv 2405.07863", "arXiv 2210.10760"),
    ),
    Rule(
        name="pairs for a good reward model",
        method=Method.ppo_rm,
        when=lambda f: f.pairs >= MANY_PAIRS and f.prompts > 0,
        why="with a good reward model PPO outperforms DPO in published comparisons, at several times the cost",
        sources=("arXiv 2406.09279", "arXiv 2404.10719"),
    ),
    Rule(
        name="more labels than pairs",
        method=Method.kto,
        when=lambda f: f.labels > 2 * f.pairs,
        why="completions are labelled good or bad one by one: KTO trains on such labels directly",
        sources=("arXiv 2402.01306",),
    ),
    Rule(
        name="pairs",
        method=Method.dpo,
        when=lambda f: f.pairs > 0,
        why="offline DPO needs pairs alone, no reward model and no sampling: the cheapest method",
        sources=("arXiv 2305.18290",),
    ),
    Rule(
        name="labels",
        method=Method.kto,
        when=lambda f: f.labels > 0,
        why="completions are labelled good or bad one by one: KTO trains on such labels directly",
        sources=("arXiv 2402.01306",),
    ),
    Rule(
        name="demonstrations",
        method=Method.sft,
        when=lambda f: f.demonstrations > 0,
        why="there are answers but no preferences: fine-tune on the answers, then collect preferences",
        sources=("arXiv 2203.02155",),
    ),
    Rule(
        name="prompts alone",
        method=Method.iterative_dpo_given,
        when=lambda f: f.prompts > 0,
        why="the data contain no preferences, so an existing reward model has to provide them",
        sources=("arXiv 2405.07863",),
    ),
    Rule(
        name="prompts and a larger model",
        method=Method.distill,
        when=lambda f: f.prompts > 0,
        why="a larger model with the same tokenizer can supervise this model's own samples",
        sources=("arXiv 2306.13649",),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A change to the recipes of some methods, and the condition on the facts under which it is made."""

    name: str
    methods: tuple[Method, ...]
    when: Callable[[Facts], bool]
    overrides: Callable[[Facts], tuple[str, ...]]
    why: str
    sources: tuple[str, ...]


def _smoothing(facts: Facts) -> str:
    return f"algorithm.label_smoothing={min(0.49, facts.flipped or 0.0):.2f}"


def _weights(facts: Facts) -> tuple[str, ...]:
    """Balance the total weights of good and bad labels: 2 for the good ones if there are half as many."""
    if facts.good < facts.bad:
        return (f"algorithm.desirable_weight={facts.bad / facts.good:.3g}",)
    return (f"algorithm.undesirable_weight={facts.good / facts.bad:.3g}",)


def long_rows(facts: Facts) -> bool:
    return facts.longest is not None and facts.longest > RECIPES_LENGTH


def _lengths(facts: Facts) -> tuple[str, ...]:
    """Round the longest row up to a multiple of 1024 tokens, at most `LONGEST_ROWS`."""
    assert facts.longest is not None
    return (f"data.max_length={min(LONGEST_ROWS, -(-facts.longest // 1024) * 1024)}",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caution:
    """A condition on the facts under which no method helps before something is done about the data."""

    name: str
    when: Callable[[Facts], bool]
    what: Callable[[Facts], str]
    sources: tuple[str, ...]


CAUTIONS: tuple[Caution, ...] = (
    Caution(
        name="objectives conflict",
        when=lambda f: f.conflicts > 0 and f.conflicts >= CONFLICTING * f.pairs,
        what=lambda f: (
            f"two objectives decide {f.conflicts:,} comparisons in opposite ways: train one objective, or one "
            "reward model for each and weigh them in `reward` (rlhf audit lists the rows)"
        ),
        sources=("arXiv 2310.12773", "arXiv 2307.09288"),
    ),
    Caution(
        name="few pairs",
        when=lambda f: 0 < f.pairs < FEW_PAIRS,
        what=lambda f: (
            f"{f.pairs:,} distinct pairs are fewer than {FEW_PAIRS:,}: expect a small effect, hold out some of "
            "them (data.eval_dataset) and compare with a run on half of them before any larger one"
        ),
        sources=("arXiv 2210.10760",),
    ),
    Caution(
        name="near the target",
        when=lambda f: f.own_good is not None and f.own_good >= NEAR_TARGET,
        what=lambda f: (
            f"{f.own_good or 0:.0%} of this model's own completions are labelled good: little is left to learn; "
            "measure first (rlhf evaluate), or collect prompts that it fails"
        ),
        sources=("arXiv 2503.14476",),
    ),
)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="chosen is longer",
        methods=(Method.dpo, Method.iterative_dpo_rm),
        when=is_length_biased,
        overrides=lambda f: ("algorithm.loss_type=sigmoid_norm", "algorithm.beta=5.0"),
        why="chosen completions are mostly longer: a length-normalised loss keeps the model from learning length",
        sources=("arXiv 2403.19159", "arXiv 2411.15124"),
    ),
    Setting(
        name="annotators disagree",
        methods=(Method.dpo,),
        when=lambda f: is_noisy(f) and not is_length_biased(f),
        overrides=lambda f: ("algorithm.loss_type=robust", _smoothing(f)),
        why="labels are noisier than usual: flipped labels do not move the optimum of the robust loss",
        sources=("arXiv 2403.00409",),
    ),
    Setting(
        name="annotators disagree, and chosen is longer",
        methods=(Method.dpo,),
        when=lambda f: is_noisy(f) and is_length_biased(f),
        overrides=lambda f: (_smoothing(f),),
        why="labels are noisier than usual: the length-normalised loss supports label smoothing",
        sources=("https://ericmitchell.ai/cdpo.pdf",),
    ),
    Setting(
        name="pairs of others",
        methods=(Method.dpo,),
        when=lambda f: not is_on_policy(f),
        overrides=lambda f: ("algorithm.sft_weight=1.0",),
        why="the pairs are off-policy: an SFT term keeps the chosen completion likely while the margin grows",
        sources=("arXiv 2404.19733", "arXiv 2404.10719"),
    ),
    Setting(
        name="labels out of balance",
        methods=(Method.kto,),
        when=lambda f: f.good > 0 and f.bad > 0 and not 1 <= f.good / f.bad <= 4 / 3,
        overrides=_weights,
        why="the total weights of good and bad labels should have a ratio between 1 : 1 and 4 : 3",
        sources=("arXiv 2402.01306",),
    ),
    Setting(
        name="long rows",
        methods=(Method.dpo, Method.kto, Method.sft),
        when=long_rows,
        overrides=_lengths,
        why="more than 1 % of the rows would be truncated",
        sources=("orchestrator/data/lengths.py",),
    ),
)
