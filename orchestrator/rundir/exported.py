"""Round of iterative DPO whose model a run has written, as exit.json records it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedRound:
    """Round whose model a run exports.

    Example: `ExportedRound(round=2, rounds=3, by="eval/reward", value=0.996, low=0.98, high=1.0, unsure=(3,))`: round 2
    of 3 has the highest reward, and is not certainly better than round 3.
    """

    round: int
    rounds: int  # number of rounds done
    by: str | None = None  # figure that the round has the highest of; None: it is the last round
    value: float | None = None  # that figure
    low: float | None = None  # bounds of its 95 % interval over prompts; None: the answers are not stored
    high: float | None = None
    unsure: tuple[int, ...] = ()  # other rounds that it is not certainly better than

    @classmethod
    def of(cls, body: object) -> Self | None:
        """Return what `to_dict` has written; None if `body` is anything else."""
        try:
            return cls(**{**body, "unsure": tuple(body.get("unsure", ()))}) if isinstance(body, dict) else None
        except TypeError:
            return None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        text = f"round {self.round} of {self.rounds}"
        if self.by is None or self.value is None:
            return f"{text}, the last"
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        text += f", the best by {self.by} {self.value:.3g}{interval}"
        return text + f"; not certainly better than round {' and '.join(map(str, self.unsure))}" * bool(self.unsure)
