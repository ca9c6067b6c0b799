"""Methods that can be advised, and the recipe that each starts from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from orchestrator.errors import BadInput, Problem

LARGE_PARAMS = 30e9  # from this size on the recipes of configs/70b are used, not those of configs/8b
REWARD_MODEL = "PATH_OF_A_REWARD_MODEL"  # placeholder for the user to fill in
GIVEN_REWARD_MODEL = "meta-llama/Llama-3.1-8B-Instruct"  # model planned in place of the placeholder


class Method(StrEnum):
    grpo = "GRPO"
    iterative_dpo = "iterative DPO on checked answers"
    iterative_dpo_rm = "reward model, then iterative DPO"
    iterative_dpo_given = "iterative DPO on a reward model from elsewhere"
    ppo_rm = "reward model, then PPO"
    dpo = "offline DPO"
    kto = "KTO"
    sft = "SFT"
    distill = "on-policy distillation"


RECIPES: Mapping[Method, tuple[str, str]] = {
    # under configs/: for models of about 8B, and of about 70B
    Method.grpo: ("8b/grpo.yaml", "70b/grpo.yaml"),
    Method.iterative_dpo: ("8b/iterative_dpo.yaml", "70b/iterative_dpo.yaml"),
    Method.iterative_dpo_rm: ("8b/iterative_dpo_reward_model.yaml", "70b/iterative_dpo_reward_model.yaml"),
    Method.iterative_dpo_given: ("8b/iterative_dpo.yaml", "70b/iterative_dpo.yaml"),
    Method.ppo_rm: ("8b/rlhf_classic.yaml", "8b/rlhf_classic.yaml"),
    Method.dpo: ("8b/dpo.yaml", "70b/dpo.yaml"),
    Method.kto: ("8b/kto.yaml", "8b/kto.yaml"),
    Method.sft: ("8b/sft.yaml", "8b/sft.yaml"),
    Method.distill: ("8b/distill.yaml", "8b/distill.yaml"),
}


def recipe_of(method: Method, *, large: bool) -> Path:
    """Return the path of the recipe, under the current directory or beside the code.

    Raises:
        BadInput: if neither has it.
    """
    name = Path("configs") / RECIPES[method][large]
    for path in (name, Path(__file__).parents[2] / name):
        if path.is_file():
            return path
    raise BadInput(
        Problem(
            what=f"no {name}",
            where=str(Path.cwd()),
            why="the advice uses the project's recipes, which an installed package does not contain",
            fix="run it in a checkout of the project",
        )
    )
