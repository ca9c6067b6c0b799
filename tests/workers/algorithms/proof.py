"""Distance of each trained method from the optimum of its objective, on the world of `benchmarks/world.py`.

    python tests/workers/algorithms/proof.py           writes proof.json and docs/evidence/proof.md (`make proof`)
    python tests/workers/algorithms/proof.py dpo ppo   computes the rows of these methods again and keeps the others

A method with a known optimum adds one line to `ROWS`. Rows with settings that do not exist yet are left out.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]  # as pytest has it

from optima import (  # noqa: E402
    BETA_SPPO,
    EXPLORATION,
    Optimum,
    equilibrium,
    explored,
    in_deviations,
    per_token_reward,
    win_rate,
    win_rates_of_data,
    without_reference,
)
from pydantic import TypeAdapter, ValidationError  # noqa: E402
from test_closed_form_policy_gradient import COEFFICIENT  # noqa: E402
from torch import Tensor  # noqa: E402
from worlds import Covered, Game, Scored, SelfPlay  # noqa: E402

from benchmarks.world import (  # noqa: E402
    BETA,
    ONE_TOKEN,
    TWO_TOKENS,
    Trainer,
    World,
    hyperbolic,
    kl,
    tilted,
)
from workers.config import AlgorithmConfig  # noqa: E402

SEEDS = tuple(range(10))
VALUES, PAGE = HERE / "proof.json", HERE.parents[2] / "docs" / "evidence" / "proof.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Method with a known optimum.

    Example: `Row(settings={"type": "dpo", "beta": 0.5}, formula="π_ref exp(r/β)", optimum=tilted, steps=400)`.
    """

    settings: dict[str, Any]  # settings of the method; shown in the table
    formula: str  # formula of the optimum, up to normalisation
    optimum: Optimum
    steps: int
    lr: float = 0.1
    sampling: dict[str, Any] = field(default_factory=dict)  # sampling and training per step; not shown in the table
    loop: dict[str, Any] = field(default_factory=dict)  # further arguments of the `Trainer`; shown in the table
    completions: Sequence[Sequence[int]] = field(default_factory=lambda: TWO_TOKENS)
    world: type[World] = World
    trainer: type[Trainer] = Trainer
    labels: str = ""  # origin of the labels, if it is not the Bradley–Terry model; shown in the table

    @property
    def name(self) -> str:
        """Name in the table, for example `dpo beta=0.5`."""
        shown = self.settings | self.loop | ({"labels": self.labels} if self.labels else {})
        return " ".join([self.settings["type"], *(f"{k}={v}" for k, v in shown.items() if k != "type")])

    @property
    def is_known(self) -> bool:
        """Flag: our settings have the method and its arguments. Any other invalid setting is an error."""
        try:
            TypeAdapter(AlgorithmConfig).validate_python(self.settings | self.sampling)
        except ValidationError as error:
            if {e["type"] for e in error.errors()} <= {"union_tag_invalid", "extra_forbidden", "literal_error"}:
                return False
            raise
        return True

    def measure(self, seed: int) -> dict[str, float]:
        """Measure the KL to the optimum before and after training, in nats, for the prompt where it is largest."""
        world = self.world([list(c) for c in self.completions], seed=seed)
        optimum = self.optimum(world)
        trainer = self.trainer(world, steps=self.steps, lr=self.lr, **self.settings, **self.sampling, **self.loop)
        return {"before": kl(world.probabilities(world.reference), optimum), "after": kl(trainer.run(), optimum)}


TILTED = "π_ref exp(r/β)"
GROUPS = {"num_generations": 64, "prompts_per_step": 1}
EVERY_PAIR = {"duplicates": "keep", "truncated_chosen": True}
PAIRS = {"num_generations": 2, "prompts_per_step": 512, "batch_size": 1536, "pairs": EVERY_PAIR}
PPO = {"prompts_per_step": 256, "num_ppo_epochs": 2, "num_mini_batches": 2}


def _grpo(placement: str, scale_rewards: str, loss_type: str = "dapo") -> Row:
    settings = {"type": "grpo", "beta": BETA, "kl_placement": placement, "scale_rewards": scale_rewards}
    return Row(settings=settings | {"loss_type": loss_type}, formula=TILTED, optimum=tilted, steps=300, sampling=GROUPS)


def _grpo_loss(group_size: int, *, corrected: bool = False) -> Row:
    beta = BETA * group_size / (group_size - 1)
    settings = {
        "type": "grpo",
        "beta": BETA,
        "kl_placement": "loss",
        "scale_rewards": "none",
        "num_generations": group_size,
    }
    formula = "π_ref exp(r/β′)" if corrected else "β′ π_ref/(λ − r)"
    return Row(
        settings=settings | ({"use_bias_correction_kl": True} if corrected else {}),
        formula=f"{formula}, β′ = β G/(G − 1), of one token",
        optimum=lambda world: tilted(world, beta) if corrected else hyperbolic(world, beta),
        steps=200,
        sampling={"prompts_per_step": 256 // group_size},
        completions=ONE_TOKEN,
    )


def _ppo_loss(estimator: str, formula: str, optimum: Callable[[World, float], Tensor]) -> Row:
    settings = {"type": "ppo", "kl_coef": COEFFICIENT, "kl_placement": "loss", "kl_estimator": estimator}
    return Row(
        settings=settings,
        formula=f"{formula}, β = `kl_coef` σ, of one token",
        optimum=in_deviations(optimum, COEFFICIENT),
        steps=300,
        lr=0.05,
        sampling={"prompts_per_step": 512, "num_ppo_epochs": 1},
        completions=ONE_TOKEN,
    )


def _rounds(formula: str, beta: float, refresh: str) -> Row:
    return Row(
        settings={"type": "dpo", "beta": beta, "reset_optimizer": True},
        formula=formula,
        optimum=tilted,
        steps=3,
        sampling=PAIRS | {"prompts_per_step": 65536},
        loop={"own_samples": True, "refresh": refresh},
    )


def _self_play(beta: float, rounds: int, formula: str, coefficient: float) -> Row:
    return Row(
        settings={"type": "dpo", "beta": beta, "reset_optimizer": True},
        formula=formula,
        optimum=lambda world: tilted(world, coefficient),
        steps=rounds,
        sampling=PAIRS | {"prompts_per_step": 65536},
        loop={"own_samples": True, "refresh": "every_round"},
        trainer=SelfPlay,
        labels="gold",
    )


def _dpo(formula: str, optimum: Optimum, steps: int = 400, **settings: Any) -> Row:
    shown = {"type": "dpo", "beta": BETA, **settings}
    return Row(settings=shown, formula=formula, optimum=optimum, steps=steps, sampling=PAIRS)


ROWS: Sequence[Row] = (
    Row(settings={"type": "ppo", "kl_coef": BETA}, formula=TILTED, optimum=tilted, steps=150, lr=0.05, sampling=PPO),
    _ppo_loss("k2", TILTED, tilted),
    _ppo_loss("k3", "β π_ref/(λ − r)", hyperbolic),
    _grpo("reward", "none"),
    _grpo("reward", "group"),
    _grpo("reward", "none", "grpo"),
    _grpo_loss(4),
    _grpo_loss(128),
    _grpo_loss(4, corrected=True),
    Row(
        settings={"type": "rloo", "beta": BETA},
        formula=TILTED,
        optimum=tilted,
        steps=300,
        sampling={"num_generations": 16, "prompts_per_step": 4},
    ),
    Row(
        settings={"type": "reinforce++", "beta": BETA},
        formula=TILTED,
        optimum=tilted,
        steps=1000,
        lr=0.02,
        sampling={"prompts_per_step": 512},  # its baseline leaves gradient noise at the optimum
    ),
    _dpo(TILTED, tilted),
    Row(
        settings={"type": "dpo", "beta": BETA},
        formula=TILTED,
        optimum=tilted,
        steps=400,
        sampling=PAIRS,
        loop={"own_samples": True},
    ),
    _rounds(f"{TILTED}, after 3 rounds", BETA, "never"),
    _rounds("π_ref exp(3r/β), after 3 rounds", 3 * BETA, "every_round"),
    _dpo("π_ref exp(|y| (r/β + c))", per_token_reward, steps=800, loss_type="sigmoid_norm"),
    _dpo("π_ref exp(|y| (p/β + c)), p = P(y beats a draw from the data)", win_rate, loss_type="ipo"),
    _dpo("exp(|y| (r/β + c))", without_reference, steps=800, loss_type="simpo", simpo_gamma=0.0),
    Row(
        settings={"type": "dpo", "beta": BETA, "soft_labels": "margin"},
        formula=TILTED,
        optimum=tilted,
        steps=600,
        sampling={"num_generations": 8, "prompts_per_step": 32, "batch_size": 96, "pairs": EVERY_PAIR},
        loop={"own_samples": True},
        world=Scored,
        labels="scores",
    ),
    Row(
        settings={"type": "dpo", "beta": BETA_SPPO, "loss_type": "sppo"},
        formula="π_ref exp((p − 1/2)/β + c π/μ), μ the data, p = P(y beats a draw from μ)",
        optimum=win_rates_of_data,
        steps=400,
        sampling=PAIRS,
    ),
    Row(
        settings={"type": "dpo", "beta": BETA_SPPO, "loss_type": "sppo"},
        formula="π_ref exp(p/β), p = P(y beats a draw from π): the regularised Nash equilibrium",
        optimum=equilibrium,
        steps=400,
        sampling=PAIRS,
        loop={"own_samples": True},
        world=Game,
        labels="intransitive",
    ),
    Row(
        settings={"type": "dpo", "beta": BETA, "exploration_alpha": EXPLORATION, "reset_optimizer": True},
        formula="minimum of the mean loss over draws from π_ref, after a round, of one token",
        optimum=explored,
        steps=1,
        sampling=PAIRS | {"prompts_per_step": 65536},
        loop={"own_samples": True, "refresh": "every_round"},
        completions=ONE_TOKEN,
        world=Covered,
    ),
    _self_play(1.0, 3, "π_ref exp(r): the data, after 3 rounds", 1.0),
    _self_play(2.0, 2, "π_ref exp(3r/4), after 2 rounds", 4 / 3),
)


# ------------------------------------------------------------------------------------------------ page

HEAD = """# Distance of each method from its closed-form optimum

The world can be enumerated: 3 prompts, completions of at most 2 tokens out of 4, a random reference that is far from
uniform, random rewards r, and a table of logits as the policy. Each method is trained in it with its own `prepare` and
`loss`, and compared with the optimum π* of its objective, which has a closed form. β = {beta}, {seeds} worlds.

DPO is trained on pairs labelled by the Bradley–Terry model of r. The pairs are those of a dataset or, with
`own_samples`, samples of the policy at the start of a step; `refresh` is the setting of the reference. With
`labels=scores` r itself is the score, and the greater one always wins: the best of 8 samples is paired with the worst.
With `labels=intransitive` preferences follow no reward: each pair of completions has a random probability. With
`labels=gold` the chosen completion is drawn from the data π_ref exp(r), the rejected one from the policy (SPIN). The
exploration bonus has an optimum only if π_ref is near the uniform distribution, as it is in that row.

σ is the standard deviation of the advantages at the optimum. λ and c are such that π* sums to 1. Where π* has no closed
form, the mean loss over the exact distribution of the pairs was minimised numerically.

The table gives KL(π‖π*) in nats, for the prompt where it is largest. *Before* is the KL of the reference, where
training starts, as the mean over worlds. The remaining KL after training is sampling noise.

`make proof` writes this page. `tests/workers/algorithms/test_proof.py` computes some of its values again.

| method and settings | π* (up to normalisation) | before | after, mean | after, max |
|---|---|--:|--:|--:|
"""


def page(values: dict[str, list[dict[str, float]]]) -> str:
    return HEAD.format(beta=BETA, seeds=len(SEEDS)) + "".join(
        _line(row, values[row.name]) for row in ROWS if row.name in values
    )


def _line(row: Row, values: list[dict[str, float]]) -> str:
    before, after = [v["before"] for v in values], [v["after"] for v in values]
    formula = row.formula.replace("|", "\\|")  # in a table
    return (
        f"| `{row.name}` | {formula} | {statistics.mean(before):.2f} "
        f"| {statistics.mean(after):.1e} | {max(after):.1e} |\n"
    )


def committed() -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = json.loads(VALUES.read_text())
    return found


def main() -> None:
    torch.set_num_threads(1)
    methods = sys.argv[1:]
    values = committed() if methods else {}
    for row in ROWS:
        if row.is_known and (not methods or row.settings["type"] in methods):
            values[row.name] = [row.measure(seed) for seed in SEEDS]
            print(_line(row, values[row.name]), end="", flush=True)
    ordered = {row.name: values[row.name] for row in ROWS if row.name in values}
    VALUES.write_text(json.dumps(ordered, indent=1) + "\n")
    PAGE.write_text(page(ordered))


if __name__ == "__main__":
    main()
