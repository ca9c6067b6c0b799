"""Numbers, durations and curves as text, and the metrics that are shown first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from workers.stats import Metrics

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"


class Headline(NamedTuple):
    """A metric shown under a short label."""

    name: str
    label: str
    share: bool = False  # shown in per cent
    unless_zero: bool = False  # hidden while it is 0


HEADLINES: tuple[Headline, ...] = (
    # in order of importance; of several with one label, the first that the run has is shown
    Headline("eval/accuracy", "eval accuracy", share=True),
    Headline("eval/reward", "eval reward"),
    Headline("eval/refusal", "refusal", share=True),
    Headline("reward", "reward"),
    Headline("objective/scores", "reward"),
    Headline("rewards/accuracies", "pair accuracy", share=True),
    Headline("rewards/margins", "margin"),
    Headline("accuracy", "pair accuracy", share=True),
    Headline("margin", "margin"),
    Headline("rejection/kept", "kept", share=True),
    Headline("objective/kl", "kl"),
    Headline("kl", "kl"),
    Headline("drift/kl", "kl"),
    Headline("divergence", "divergence"),
    Headline("logps/chosen", "logp chosen"),
    Headline("mean_token_accuracy", "token accuracy", share=True),
    Headline("entropy", "entropy"),
    Headline("completions/mean_length", "length"),
    Headline("loss", "loss"),
    Headline("loss/policy_avg", "loss"),
    Headline("loss/value_avg", "value loss"),
    Headline("grad_norm", "grad norm"),
    Headline("frac_reward_zero_std", "same rewards", share=True, unless_zero=True),
    Headline("staleness/mean", "staleness", unless_zero=True),
    Headline("throughput/tokens_per_s", "tokens/s"),
)


def headlines(metrics: Metrics, at_most: int) -> list[Headline]:
    """Return the headlines among `metrics`, in order, one per label."""
    by_label: dict[str, Headline] = {}
    for headline in HEADLINES:
        if headline.name in metrics and not (headline.unless_zero and metrics[headline.name] == 0):
            by_label.setdefault(headline.label, headline)
    return list(by_label.values())[:at_most]


def number(value: float, *, share: bool = False) -> str:
    """Format a number with three or four significant digits.

    >>> [number(v) for v in (0.03125, 12.5, 1234567.0, 1e-6, 0.0)]
    ['0.0312', '12.5', '1.23e+06', '1e-06', '0']
    """
    if not math.isfinite(value):
        return str(value)
    if share:
        return f"{100 * value:.1f} %"
    size = abs(value)
    if size == 0 or (size < 1e4 and value == int(value)):
        return f"{value:.0f}"
    if size >= 1e5 or size < 1e-3:
        return f"{value:.3g}"
    return f"{value:.{max(0, min(4, 3 - math.floor(math.log10(size)) - (size >= 1)))}f}"


def duration(seconds: float) -> str:
    """Format a duration.

    >>> [duration(s) for s in (3.14, 65, 3725, 200000)]
    ['3.1 s', '1:05', '1:02:05', '2 d 7:33']
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Draw `values` in at most `width` characters. If there are more values, each character shows a mean.

    >>> sparkline([0, 1, 2, 3], 8)
    '▁▃▆█'
    """
    finite = [v for v in values if math.isfinite(v)]
    if not finite or width < 1:
        return ""
    columns = min(width, len(finite))
    edges = [round(i * len(finite) / columns) for i in range(columns + 1)]
    means = [_mean(finite[a:b]) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    bars = ASCII_BARS if ascii_only else BARS
    if high - low <= 1e-12 * max(abs(high), abs(low), 1e-300):
        return bars[len(bars) // 2 - 1] * columns
    return "".join(bars[round((v - low) / (high - low) * (len(bars) - 1))] for v in means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def one_line(text: str) -> str:
    """Show line ends as a symbol and replace other control characters, which a terminal would execute.

    >>> one_line("a\\nb\\x1b[2J")
    'a⏎b·[2J'
    """
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else " " if c == "\t" else "·" for c in text)


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def join_within(parts: Iterable[str], width: int, gap: str = "  ") -> str:
    """Join the leading parts that fit into a line of `width` characters."""
    line = ""
    for part in parts:
        longer = line + gap + part if line else part
        if len(longer) > width:
            break
        line = longer
    return line
