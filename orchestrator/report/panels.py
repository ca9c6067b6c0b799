"""Which curves a report shows, in what order, and what each of them means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.report.run_record import RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture of curves over steps. `metrics`: of these the first that a run has; or with `together` all of them,
    drawn one beside the other in different dashes.

    Example: `Panel(title="Entropy", about="of the next token, nats", metrics=("entropy",))`.
    """

    title: str
    about: str
    metrics: tuple[str, ...]
    together: bool = False
    points: bool = False  # measured now and then: each point is drawn
    unless_constant: bool = False  # not worth a picture then
    of_a_reference: bool = False  # not of runs whose reference is the policy that samples: there it is 0, and noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a panel: `run` is the index of its story."""

    run: int
    label: str
    dashed: bool
    steps: tuple[float, ...]
    values: tuple[float, ...]


PANELS = (
    Panel(
        title="Held-out reward",
        about="greedy answers to prompts that are never learned from",
        metrics=("eval/reward",),
        points=True,
    ),
    Panel(title="Held-out accuracy", about="of telling pairs apart", metrics=("eval/accuracy",), points=True),
    Panel(
        title="Held-out reward, sampled",
        about="answers at temperature 1",
        metrics=("eval/sampled_reward",),
        points=True,
    ),
    Panel(
        title="Held-out KL to the base",
        about="nats per completion, sampled answers",
        metrics=("eval/kl",),
        points=True,
    ),
    Panel(
        title="Reward of the batch",
        about="of what is learned from; it rises by luck and by cheating, too",
        metrics=("reward", "objective/scores"),
    ),
    Panel(
        title="KL to the reference",
        about="nats per completion; of a reference that moves, to the current one",
        metrics=("objective/kl", "kl"),
        of_a_reference=True,
    ),
    Panel(title="Drift", about="KL of new samples, when the reference was asked about", metrics=("drift/kl",)),
    Panel(
        title="Saturated completions",
        about="share beyond ±10 nats of the reference: DPO learns little from them",
        metrics=("drift/saturated",),
        unless_constant=True,
    ),
    Panel(title="Length", about="tokens per completion", metrics=("completions/mean_length", "pairs/chosen_length")),
    Panel(
        title="Loss",
        about="of the policy; for PPO and GRPO its level says little",
        metrics=("loss", "loss/policy_avg"),
    ),
    Panel(
        title="Log-probability of chosen and rejected",
        about="when chosen falls, too, the model forgets both",
        metrics=("logps/chosen", "logps/rejected"),
        together=True,
    ),
    Panel(
        title="Implicit rewards of chosen and rejected",
        about="β times the distance from the reference, nats",
        metrics=("rewards/chosen", "rewards/rejected"),
        together=True,
    ),
    Panel(title="Accuracy on pairs", about="of the batch", metrics=("rewards/accuracies", "accuracy")),
    Panel(title="Entropy", about="of the next token, nats", metrics=("entropy",)),
    Panel(
        title="Groups without signal",
        about="share whose rewards are all equal: nothing is learned from them",
        metrics=("frac_reward_zero_std",),
    ),
    Panel(
        title="Answers cut off",
        about="share that met the length limit",
        metrics=("completions/clipped_ratio",),
        unless_constant=True,
    ),
    Panel(title="Value loss", about="of the critic", metrics=("loss/value_avg",)),
    Panel(
        title="Engine and learner apart",
        about="mean difference of their log-probabilities of one token",
        metrics=("sampling/logp_difference",),
    ),
    Panel(
        title="Staleness",
        about="versions between sampling and learning",
        metrics=("staleness/mean",),
        unless_constant=True,
    ),
)


def series_of(panel: Panel, stories: Sequence[RunRecord]) -> list[Series]:
    """The lines of a panel; empty: no run has measured it, or there is nothing to see."""
    found = list(_series(panel, stories))
    constant = len({value for line in found for value in line.values}) <= 1
    return [] if panel.unless_constant and constant else found


def _series(panel: Panel, stories: Sequence[RunRecord]) -> Iterator[Series]:
    for i, record in enumerate(stories):
        if panel.of_a_reference and record.setting("reference.refresh") == "every_round":
            continue
        curves = [(metric, curve) for metric in panel.metrics if (curve := record.curve(metric))]
        for j, (metric, curve) in enumerate(curves if panel.together else curves[:1]):
            last = metric.rpartition("/")[2]
            yield Series(
                run=i,
                label=f"{record.name}, {last}" if panel.together else record.name,
                dashed=j > 0,
                steps=tuple(step for step, _ in curve),
                values=tuple(value for _, value in curve),
            )


def scorer_panels(stories: Sequence[RunRecord]) -> list[Panel]:
    """A panel for each scorer where runs have several: what a sum hides, its parts show."""
    found: dict[str, None] = {}
    for record in stories:
        for prefix in ("eval/rewards/", "rewards/"):
            names = [
                k for k in (record.rows[-1] if record.rows else ()) if k.startswith(prefix) and k.endswith("/mean")
            ]
            found |= dict.fromkeys(names if len(names) > 1 else ())
    return [
        Panel(
            title=metric.removesuffix("/mean").removeprefix("eval/").removeprefix("rewards/").replace("_", " "),
            about="one scorer" + (", held-out prompts" if metric.startswith("eval/") else ", of the batch"),
            metrics=(metric,),
            points=metric.startswith("eval/"),
        )
        for metric in found
    ]
