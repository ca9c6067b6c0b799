"""Figures of best of n, computed from scores and gold scores with numpy alone. The unit is the prompt.

scores ──► chance of each sample to be chosen ──► gold score of the chosen answer − mean over samples ──► interval
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.evaluation import figures, statistics
from orchestrator.evaluation.best_of import chances, sizes
from orchestrator.evaluation.figures import BootstrapConfig, Figure
from orchestrator.evaluation.rank_result import Gains, GoldSummary, Point, Selection, Verdict
from orchestrator.evaluation.statistics import Values

MIN_PROMPTS = 20  # over fewer prompts, the bootstrap's interval is too narrow for a verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of choosing among all N samples of every prompt by one score."""

    num_prompts: int
    num_samples: int  # N
    prompt_tokens: int  # of all prompts, each counted once
    generated_tokens: int
    num_passes: int  # forward passes over prompts and samples
    engine_seconds: float
    scoring_seconds: float  # busy seconds of scoring ranks and scorers
    judges: Mapping[str, float] = field(default_factory=dict)  # requests, tokens and dollars of judges; empty: none

    @property
    def scored_tokens(self) -> int:
        return self.num_passes * (self.prompt_tokens + self.generated_tokens)

    def of(self, n: int) -> tuple[float, float, float]:
        """Return the tokens generated, the tokens scored and the seconds of best of n, per prompt.

        Seconds are proportional to the number of samples.
        """
        share = n / self.num_samples
        generated = share * self.generated_tokens
        scored = self.num_passes * (self.prompt_tokens + generated)
        seconds = share * (self.engine_seconds + self.scoring_seconds)
        return generated / self.num_prompts, scored / self.num_prompts, seconds / self.num_prompts

    def to_dict(self) -> dict[str, float]:
        """Return the tokens and busy seconds.

        `engine_seconds` counts every GPU of an engine, or its process if it has none. `device_seconds` includes the
        scoring ranks and scorers. `judge_requests`, `judge_cost` and so on are there if a judge was asked.
        """
        return {
            "generated_tokens": float(self.generated_tokens),
            "generated_tokens_per_prompt": self.generated_tokens / self.num_prompts,
            "scored_tokens": float(self.scored_tokens),
            "engine_seconds": self.engine_seconds,
            "scoring_seconds": self.scoring_seconds,
            "device_seconds": self.engine_seconds + self.scoring_seconds,
            **{f"judge_{name}": number for name, number in self.judges.items()},
        }


def gold_summary(name: str, gold: Sequence[Values], bootstrap: BootstrapConfig) -> GoldSummary | None:
    """Summarise the gold scores of each prompt's samples [N]. None: no prompt has all of them."""
    kept = [g for g in gold if not np.isnan(g).any()]
    if not kept:
        return None
    return GoldSummary(
        name=name,
        mean=figures.mean([float(g.mean()) for g in kept], bootstrap),
        best={n: figures.mean([float(chances(g, n) @ g) for g in kept], bootstrap) for n in sizes(len(kept[0]))},
        num_ties=sum(len(np.unique(g)) == 1 for g in kept),
        num_left_out=len(gold) - len(kept),
    )


def selection(
    scores: Sequence[Values],
    lengths: Sequence[Values],
    best: Sequence[Values],
    cost: Cost,
    gains: Gains | None,
    bootstrap: BootstrapConfig,
) -> Selection:
    """Compare the answers that one score chooses with all of them.

    Args:
        scores: by prompt, [N]; NaN: no score.
        lengths: by prompt, [N], in tokens.
        best: by prompt, [N]: the chance of each sample to be chosen among all.
    """
    known = [s[~np.isnan(s)] for s in scores if not np.isnan(s).all()]
    return Selection(
        best=figures.mean([float(s.max()) for s in known], bootstrap) if known else None,
        mean=figures.mean([float(s.mean()) for s in known], bootstrap) if known else None,
        best_length=figures.mean([float(b @ t) for b, t in zip(best, lengths, strict=True)], bootstrap),
        mean_length=figures.mean([float(t.mean()) for t in lengths], bootstrap),
        num_ties=sum(len(np.unique(s)) == 1 for s in scores),  # NaNs are equal to one another
        num_abstained=sum(int(np.isnan(s).sum()) for s in scores),
        cost=cost.to_dict(),
        gains=gains,
    )


def gains_of(
    gold: Sequence[Values], chance: Callable[[int, int], Values], cost: Cost, bootstrap: BootstrapConfig
) -> Gains | None:
    """Compute the gold score of the answers that one score chooses. None: no prompt has all gold scores.

    Args:
        gold: by prompt, [N]. A prompt with a NaN is left out.
        chance: maps a prompt's index and n to the chance of each of its samples to be the best of n.
    """
    kept = [p for p, g in enumerate(gold) if not np.isnan(g).any()]
    if not kept:
        return None
    means = np.asarray([gold[p].mean() for p in kept])
    chosen = {n: np.asarray([chance(p, n) @ gold[p] for p in kept]) for n in sizes(cost.num_samples)}
    curve = tuple(_point(n, values, means, cost, bootstrap) for n, values in chosen.items())
    best = [(chance(p, cost.num_samples), gold[p]) for p in kept]
    return Gains(
        curve=curve,
        wins=figures.mean([float(b @ (g[:, None] > g).mean(1)) for b, g in best], bootstrap),
        losses=figures.mean([float(b @ (g[:, None] < g).mean(1)) for b, g in best], bootstrap),
        verdict=verdict(curve[-1].gain),
    )


def _point(n: int, chosen: Values, means: Values, cost: Cost, bootstrap: BootstrapConfig) -> Point:
    is_same = np.isclose(chosen, means, rtol=1e-9, atol=1e-12)  # but for rounding
    gain = paired(np.where(is_same, 0, chosen - means), bootstrap)
    generated, scored, seconds = cost.of(n)
    sample = cost.generated_tokens / cost.num_samples / cost.num_prompts
    sample_seconds = cost.engine_seconds / cost.num_samples / cost.num_prompts
    is_gain = gain.low is not None and gain.low > 0
    return Point(
        n=n,
        gold=figures.mean(chosen.tolist(), bootstrap),
        gain=gain,
        generated_tokens=generated,
        scored_tokens=scored,
        device_seconds=seconds,
        tokens_per_gain=(generated + scored - sample) / gain.value if is_gain else None,
        device_seconds_per_gain=(seconds - sample_seconds) / gain.value if is_gain else None,
    )


def paired(gains: Values, bootstrap: BootstrapConfig) -> Figure:
    """Average the gains of the prompts [P], with the bootstrap's interval. A single prompt has none."""
    if len(gains) < 2:
        return Figure(value=float(gains[0]), low=None, high=None, num_prompts=1, interval=None)
    found = statistics.mean(gains, seed=bootstrap.seed, confidence=bootstrap.confidence, num_draws=bootstrap.num_draws)
    return Figure(value=found.value, low=found.low, high=found.high, num_prompts=len(gains), interval="bootstrap")


def verdict(gain: Figure) -> Verdict:
    """Decide whether a gain is shown by its interval. Fewer than `MIN_PROMPTS` prompts show nothing."""
    if gain.low is None or gain.high is None or gain.num_prompts < MIN_PROMPTS:
        return "not_shown"
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "not_shown"
