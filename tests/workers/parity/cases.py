"""Cases of the comparison with TRL: the settings of both sides, and random batches.

This module needs numpy only, because both environments import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

VOCABULARY, PAD, EOS = 64, 0, 1
MAX_COMPLETION_LENGTH = 12
SEEDS = (0, 1)  # one batch of each case per seed

Kind: TypeAlias = Literal["demonstrations", "pairs", "even_pairs", "labelled", "groups"]
Rows: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Settings to compare with TRL.

    Example: `Case(ours={"type": "dpo"}, trainer="dpo", trl={"beta": 0.1}, rows="pairs")`.
    """

    ours: dict[str, Any]  # `algorithm` of our recipe
    trainer: str | None = None  # TRL's trainer; None: TRL has nothing to compare with, and `note` says why
    trl: dict[str, Any] = field(default_factory=dict)  # arguments of the trainer's config
    rows: Kind = "demonstrations"
    note: str = ""

    @property
    def name(self) -> str:
        """Name in the table, for example `dpo loss_type=ipo beta=0.1`."""
        settings = [f"{key}={value}" for key, value in self.ours.items() if key != "type"]
        return " ".join([self.ours["type"], *settings])


def _dpo(trl: dict[str, Any] | None = None, rows: Kind = "pairs", note: str = "", **ours: Any) -> Case:
    shared = {key: value for key, value in ours.items() if key not in ("loss_type", "sft_weight")}
    names = {"loss_type": [ours.get("loss_type", "sigmoid")]}
    return Case(ours={"type": "dpo", **ours}, trainer="dpo", trl=shared | names | (trl or {}), rows=rows, note=note)


def _grpo(trl: dict[str, Any] | None = None, note: str = "", **ours: Any) -> Case:
    shared = {"use_bias_correction_kl": False} | {key: value for key, value in ours.items() if key != "fixed_length"}
    if ours.get("beta") and not shared["use_bias_correction_kl"]:
        note = "TRL with use_bias_correction_kl=False; its default, True, has another gradient and optimum"
    return Case(ours={"type": "grpo", **ours}, trainer="grpo", trl=shared | (trl or {}), rows="groups", note=note)


def _alone(note: str, **ours: Any) -> Case:
    return Case(ours=ours, note=note)


CASES: Sequence[Case] = (
    Case(ours={"type": "sft"}, trainer="sft"),
    _grpo(beta=0.0),
    _grpo(beta=0.1),
    _grpo(beta=0.1, scale_rewards="batch", loss_type="grpo"),
    _grpo(beta=0.1, scale_rewards="none", loss_type="dr_grpo", fixed_length=MAX_COMPLETION_LENGTH),
    _grpo(beta=0.1, use_bias_correction_kl=True),
    _grpo(epsilon=0.1, epsilon_high=0.3),
    _grpo(mask_truncated_completions=True),
    _grpo(delta=1.5),
    _grpo(importance_sampling_level="sequence", loss_type="grpo", epsilon=0.003, epsilon_high=0.004),
    _grpo(loss_type="cispo", epsilon_high=5.0),
    _alone("TRL's GRPO has the KL in the loss only; see rloo", type="grpo", beta=0.1, kl_placement="reward"),
    Case(ours={"type": "rloo", "beta": 0.1}, trainer="rloo", trl={"beta": 0.1}, rows="groups"),
    Case(
        ours={"type": "rloo", "beta": 0.0, "normalize_advantages": True},
        trainer="rloo",
        trl={"beta": 0.0, "normalize_advantages": True},
        rows="groups",
    ),
    _alone("TRL has none", type="reinforce++"),
    _alone("TRL has none since 1.11", type="ppo"),
    _dpo(beta=0.1),
    _dpo(beta=0.5),
    _alone("TRL's sigmoid loss has no label_smoothing", type="dpo", label_smoothing=0.1),
    _alone("TRL has no soft labels", type="dpo", soft_labels="margin"),
    _alone(
        "TRL has no XPO since 1.14; its bonus is on one completion of a pair, ours on both",
        type="dpo",
        exploration_alpha=1e-5,
    ),
    _dpo(
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        rows="even_pairs",
        note="chosen completions of equal length: TRL averages the NLL over tokens, we over completions",
        sft_weight=0.5,
    ),
    _dpo(loss_type="robust", label_smoothing=0.1),
    _dpo(loss_type="ipo", beta=0.1),
    _dpo(loss_type="hinge", beta=0.1),
    _dpo(loss_type="sigmoid_norm", beta=2.0),
    _dpo({"loss_type": ["sppo_hard"]}, loss_type="sppo", beta=0.1),
    _dpo(ld_alpha=0.5),
    Case(
        ours={"type": "dpo", "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5},
        trainer="cpo",
        trl={"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
        rows="pairs",
    ),
    Case(
        ours={"type": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5},
        trainer="kto",
        trl={"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5, "loss_type": "kto"},
        rows="labelled",
    ),
    Case(ours={"type": "reward_model"}, trainer="reward", rows="pairs"),
    Case(
        ours={"type": "reward_model", "center_rewards_coefficient": 0.01},
        trainer="reward",
        trl={"center_rewards_coefficient": 0.01},
        rows="pairs",
    ),
)


def draw(kind: Kind, seed: int) -> Rows:
    """Draw ragged rows of tokens: prompts of 1 to 6 tokens, completions of 1 to MAX_COMPLETION_LENGTH."""
    rng = np.random.Generator(np.random.Philox(seed))

    def tokens(least: int, most: int) -> list[int]:
        return [int(t) for t in rng.integers(EOS + 1, VOCABULARY, rng.integers(least, most + 1))]

    def completion(length: int | None = None) -> list[int]:
        most = MAX_COMPLETION_LENGTH - 1
        return [*(tokens(0, most) if length is None else tokens(length, length)), EOS]

    match kind:
        case "demonstrations":
            return [{"prompt": tokens(1, 6), "completion": completion()} for _ in range(8)]
        case "pairs" | "even_pairs":
            length = 7 if kind == "even_pairs" else None
            return [{"prompt": tokens(1, 6), "chosen": completion(length), "rejected": completion()} for _ in range(8)]
        case "labelled":
            return [
                {"prompt": tokens(1, 6), "completion": completion(), "label": bool(i % 3)} for i in rng.permutation(9)
            ]
        case "groups":
            return [_group(rng, tokens, completion) for _ in range(4)]


def _group(rng: np.random.Generator, tokens: Any, completion: Any) -> dict[str, Any]:
    """Draw a prompt with 4 completions, one of them without an end of sequence."""
    cut = tokens(MAX_COMPLETION_LENGTH, MAX_COMPLETION_LENGTH)
    rewards = [float(np.float32(r)) for r in rng.normal(size=4)]
    return {"prompt": tokens(1, 6), "completions": [completion(), completion(), completion(), cut], "rewards": rewards}
