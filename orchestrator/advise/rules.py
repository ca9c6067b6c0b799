"""The rules, in the order in which they are asked: the first that holds, and whose method has room, is what to try
first; the next one with another method is the runner-up. docs/advise.md says where each comes from.

    facts of the data ──► METHODS: which methods, in what order ──► SETTINGS: what these data ask of their recipes
                                          └── those without room (the planner) are passed over
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.advise.facts import Facts
from orchestrator.advise.methods import Method

ENOUGH_PAIRS = 2000  # for a reward model: below, one is hardly better than chance (arXiv 2210.10760, section 3.5)
MANY_PAIRS = 50_000  # our choice: about the size of the data on which PPO was compared with DPO (arXiv 2406.09279)
USUAL_AGREEMENT = 0.726  # of InstructGPT's labellers (arXiv 2203.02155, section 3.4)
LONGER_CHOSEN = 0.6  # our choice: a larger share, and
LONGER_BY = 1.1  # a larger median ratio, are called a bias for length
OWN = 0.5  # our choice: from this share on the data are the model's own
RECIPES_LENGTH = 2048  # data.max_length of the recipes
LONGEST_ROWS = 8192  # our choice: what is longer than that is cut, as `rlhf validate` will tell


def written_by_itself(facts: Facts) -> bool:
    """Where nothing says who wrote the completions, other models did."""
    return (facts.own or 0.0) >= OWN


def noisy(facts: Facts) -> bool:
    """Whether annotators surely agree less than usual."""
    return facts.agreement is not None and facts.agreement.high < USUAL_AGREEMENT


def biased_to_length(facts: Facts) -> bool:
    surely = facts.longer_chosen is not None and facts.longer_chosen.low > LONGER_CHOSEN
    return surely and (facts.length_ratio or 0.0) > LONGER_BY


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Example: `Rule(name="labels", method=Method.kto, when=lambda f: …, why="…", sources=("arXiv 2402.01306",))`."""

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
        why="a checked answer is a reward without a model to exploit, and a group of samples takes the critic's place",
        sources=("arXiv 2402.03300", "arXiv 2411.15124", "arXiv 2501.12948"),
    ),
    Rule(
        name="checked answers in rounds",
        method=Method.iterative_dpo,
        when=lambda f: f.check is not None and f.prompts > 0,
        why="right against wrong answers are pairs of the model's own; rounds publish weights a few times only",
        sources=("arXiv 2404.19733",),
    ),
    Rule(
        name="pairs are the model's own",
        method=Method.dpo,
        when=lambda f: f.pairs > 0 and written_by_itself(f),
        why="the pairs show what this model says now, so learning from them directly loses little and costs least",
        sources=("arXiv 2305.18290", "arXiv 2404.14367"),
    ),
    Rule(
        name="pairs of others, enough for a reward model",
        method=Method.iterative_dpo_rm,
        when=lambda f: f.pairs >= ENOUGH_PAIRS and f.prompts > 0,
        why="pairs of other models do not say what this one does wrong: a reward model judges its own samples by them",
        sources=("arXiv 2404.14367", "arXiv 2405.08448", "arXiv 2405.07863", "arXiv 2210.10760"),
    ),
    Rule(
        name="pairs for a good reward model",
        method=Method.ppo_rm,
        when=lambda f: f.pairs >= MANY_PAIRS and f.prompts > 0,
        why="with a good reward model PPO has the better published record, at a multiple of the cost",
        sources=("arXiv 2406.09279", "arXiv 2404.10719"),
    ),
    Rule(
        name="more labels than pairs",
        method=Method.kto,
        when=lambda f: f.labels > 2 * f.pairs,
        why="single completions were called good or bad: KTO learns from these as they are",
        sources=("arXiv 2402.01306",),
    ),
    Rule(
        name="pairs",
        method=Method.dpo,
        when=lambda f: f.pairs > 0,
        why="pairs are enough, no reward model and no samples are needed: the cheapest there is",
        sources=("arXiv 2305.18290",),
    ),
    Rule(
        name="labels",
        method=Method.kto,
        when=lambda f: f.labels > 0,
        why="single completions were called good or bad: KTO learns from these as they are",
        sources=("arXiv 2402.01306",),
    ),
    Rule(
        name="demonstrations",
        method=Method.sft,
        when=lambda f: f.demonstrations > 0,
        why="there are answers and nothing that says which is better: imitate them, then collect preferences",
        sources=("arXiv 2203.02155",),
    ),
    Rule(
        name="prompts alone",
        method=Method.iterative_dpo_given,
        when=lambda f: f.prompts > 0,
        why="nothing in the data says what is good, so something else must: a reward model from elsewhere",
        sources=("arXiv 2405.07863",),
    ),
    Rule(
        name="prompts and a larger model",
        method=Method.distill,
        when=lambda f: f.prompts > 0,
        why="a better model of the same tokenizer can tell this one what to say where it goes",
        sources=("arXiv 2306.13649",),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A change to the recipe that the data ask for. `overrides`: what it writes, given the facts."""

    name: str
    methods: tuple[Method, ...]
    when: Callable[[Facts], bool]
    overrides: Callable[[Facts], tuple[str, ...]]
    why: str
    sources: tuple[str, ...]


def _smoothing(facts: Facts) -> str:
    return f"algorithm.label_smoothing={min(0.49, facts.flipped or 0.0):.2f}"


def _weights(facts: Facts) -> tuple[str, ...]:
    """Such that the good weigh as much as the bad: 2 for the good where there are half as many."""
    if facts.good < facts.bad:
        return (f"algorithm.desirable_weight={facts.bad / facts.good:.3g}",)
    return (f"algorithm.undesirable_weight={facts.good / facts.bad:.3g}",)


def long_rows(facts: Facts) -> bool:
    return facts.longest is not None and facts.longest > RECIPES_LENGTH


def _lengths(facts: Facts) -> tuple[str, ...]:
    """Rounded up to whole 1024 tokens."""
    assert facts.longest is not None
    return (f"data.max_length={min(LONGEST_ROWS, -(-facts.longest // 1024) * 1024)}",)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="chosen is longer",
        methods=(Method.dpo, Method.iterative_dpo_rm),
        when=biased_to_length,
        overrides=lambda f: ("algorithm.loss_type=sigmoid_norm", "algorithm.beta=5.0"),
        why="what is chosen is mostly the longer: log-ratios per token, or length is what is learned",
        sources=("arXiv 2403.19159", "arXiv 2411.15124"),
    ),
    Setting(
        name="annotators disagree",
        methods=(Method.dpo,),
        when=lambda f: noisy(f) and not biased_to_length(f),
        overrides=lambda f: ("algorithm.loss_type=robust", _smoothing(f)),
        why="labels are wrong more often than usual: a loss whose optimum flipped labels do not move",
        sources=("arXiv 2403.00409",),
    ),
    Setting(
        name="annotators disagree, and chosen is longer",
        methods=(Method.dpo,),
        when=lambda f: noisy(f) and biased_to_length(f),
        overrides=lambda f: (_smoothing(f),),
        why="labels are wrong more often than usual: the loss per token knows label smoothing",
        sources=("https://ericmitchell.ai/cdpo.pdf",),
    ),
    Setting(
        name="pairs of others",
        methods=(Method.dpo,),
        when=lambda f: not written_by_itself(f),
        overrides=lambda f: ("algorithm.sft_weight=1.0",),
        why="completions that the model itself would not write: hold up the chosen one while the margin grows",
        sources=("arXiv 2404.19733", "arXiv 2404.10719"),
    ),
    Setting(
        name="labels out of balance",
        methods=(Method.kto,),
        when=lambda f: f.good > 0 and f.bad > 0 and not 1 <= f.good / f.bad <= 4 / 3,
        overrides=_weights,
        why="good and bad should weigh between 1 : 1 and 4 : 3",
        sources=("arXiv 2402.01306",),
    ),
    Setting(
        name="long rows",
        methods=(Method.dpo, Method.kto, Method.sft),
        when=long_rows,
        overrides=_lengths,
        why="more than 1 % of the rows would lose their end",
        sources=("orchestrator/data/lengths.py",),
    ),
)
