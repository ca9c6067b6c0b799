"""Panels of a report: its curves, their order and their captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.report.run_record import RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A chart of curves over steps.

    Example: `Panel(title="Entropy", about="per token, nats", metrics=("entropy",))`.
    """

    title: str
    about: str
    metrics: tuple[str, ...]  # the first one that a run has is drawn
    together: bool = False  # draw all of `metrics`, with different dashes
    points: bool = False  # draw a marker for each value, for metrics that are measured occasionally
    unless_constant: bool = False  # leave the panel out if all values are equal
    of_a_reference: bool = False  # leave out runs whose reference is the sampling policy: the value is 0 up to noise
    by_update: bool = False  # over optimiser updates, for runs of few long steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line of a panel."""

    run: int  # index of the run in the report
    label: str
    dashed: bool
    steps: tuple[float, ...]
    values: tuple[float, ...]


PANELS = (
    Panel(
        title="Held-out reward",
        about="greedy answers to prompts that are never trained on",
        metrics=("eval/reward",),
        points=True,
    ),
    Panel(
        title="Held-out accuracy",
        about="share of held-out pairs ranked correctly",
        metrics=("eval/accuracy",),
        points=True,
    ),
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
        title="Training reward",
        about="mean over the batch; it may also rise by noise or reward hacking",
        metrics=("reward", "objective/scores"),
    ),
    Panel(
        title="KL to the reference",
        about="nats per completion; to the current reference if it is refreshed",
        metrics=("objective/kl", "kl"),
        of_a_reference=True,
    ),
    Panel(
        title="Drift",
        about="KL of new samples to the reference, measured before each refresh decision",
        metrics=("drift/kl",),
    ),
    Panel(
        title="Saturated completions",
        about="share beyond ±10 nats of the reference, where DPO has almost no gradient",
        metrics=("drift/saturated",),
        unless_constant=True,
    ),
    Panel(title="Length", about="tokens per completion", metrics=("completions/mean_length", "pairs/chosen_length")),
    Panel(
        title="Loss",
        about="of the policy; its level means little for PPO and GRPO",
        metrics=("loss", "loss/policy_avg"),
    ),
    Panel(
        title="Log-probability of chosen and rejected",
        about="if chosen falls as well, probability moves to other completions",
        metrics=("logps/chosen", "logps/rejected"),
        together=True,
    ),
    Panel(
        title="Implicit rewards of chosen and rejected",
        about="β times the log-ratio to the reference, nats",
        metrics=("rewards/chosen", "rewards/rejected"),
        together=True,
    ),
    Panel(title="Pair accuracy", about="on the training batch", metrics=("rewards/accuracies", "accuracy")),
    Panel(title="Entropy", about="of the next-token distribution, nats", metrics=("entropy",)),
    Panel(
        title="Groups without signal",
        about="share of groups with equal rewards, which have no gradient",
        metrics=("frac_reward_zero_std",),
    ),
    Panel(
        title="Truncated completions",
        about="share that reached the length limit",
        metrics=("completions/clipped_ratio",),
        unless_constant=True,
    ),
    Panel(title="Value loss", about="of the critic", metrics=("loss/value_avg",)),
    Panel(
        title="Explained variance",
        about="share of the returns' variance that the critic predicts: 1 is exact, 0 no better than a constant",
        metrics=("val/explained_variance",),
    ),
    Panel(
        title="Engine–learner mismatch",
        about="mean difference of their log-probabilities per token, nats",
        metrics=("sampling/logp_difference",),
    ),
    Panel(
        title="Staleness",
        about="versions between sampling and training",
        metrics=("staleness/mean",),
        unless_constant=True,
    ),
)


UPDATE_PANELS = (
    Panel(
        title="Loss by update", about="of each optimiser update", metrics=("loss", "loss/policy_avg"), by_update=True
    ),
    Panel(title="Gradient norm by update", about="before clipping", metrics=("grad_norm",), by_update=True),
    Panel(
        title="Pair accuracy by update",
        about="share of the update's pairs ranked correctly",
        metrics=("rewards/accuracies", "accuracy"),
        by_update=True,
    ),
)


def series_of(panel: Panel, records: Sequence[RunRecord]) -> list[Series]:
    """Return the lines of a panel. The list is empty if no run has the metric or the panel is to be left out."""
    series = list(_series(panel, records))
    constant = len({value for line in series for value in line.values}) <= 1
    return [] if panel.unless_constant and constant else series


def _series(panel: Panel, records: Sequence[RunRecord]) -> Iterator[Series]:
    for i, record in enumerate(records):
        if panel.of_a_reference and record.setting("reference.refresh") == "every_round":
            continue
        if panel.by_update and not record.has_long_steps:
            continue
        read = record.update_curve if panel.by_update else record.curve
        curves = [(metric, curve) for metric in panel.metrics if (curve := read(metric))]
        for j, (metric, curve) in enumerate(curves if panel.together else curves[:1]):
            last = metric.rpartition("/")[2]
            yield Series(
                run=i,
                label=f"{record.name}, {last}" if panel.together else record.name,
                dashed=j > 0,
                steps=tuple(step for step, _ in curve),
                values=tuple(value for _, value in curve),
            )


def scorer_panels(records: Sequence[RunRecord]) -> list[Panel]:
    """Return a panel for each scorer of runs that have several."""
    metrics: dict[str, None] = {}
    for record in records:
        for prefix in ("eval/rewards/", "rewards/"):
            names = [
                k for k in (record.rows[-1] if record.rows else ()) if k.startswith(prefix) and k.endswith("/mean")
            ]
            metrics |= dict.fromkeys(names if len(names) > 1 else ())
    return [
        Panel(
            title=metric.removesuffix("/mean").removeprefix("eval/").removeprefix("rewards/").replace("_", " "),
            about="score of one scorer"
            + (" on held-out prompts" if metric.startswith("eval/") else " on the training batch"),
            metrics=(metric,),
            points=metric.startswith("eval/"),
        )
        for metric in metrics
    ]
