"""The algorithms: one file and one record each. To add one, write its file and add its line."""

from workers.algorithms.base import Algorithm
from workers.algorithms.grpo import GRPO
from workers.algorithms.ppo import PPO
from workers.algorithms.preference import DPO
from workers.algorithms.reinforce import REINFORCE
from workers.algorithms.rloo import RLOO
from workers.algorithms.sft import SFT

ALGORITHMS: dict[str, Algorithm] = {
    "sft": SFT,
    "grpo": GRPO,
    "ppo": PPO,
    "dpo": DPO,
    "rloo": RLOO,
    "reinforce++": REINFORCE,
}
