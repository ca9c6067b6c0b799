"""The algorithms: one file and one record each. To add one, write its file and add its line."""

from workers.algorithms.base import Algorithm
from workers.algorithms.distill import DISTILL
from workers.algorithms.grpo import GRPO
from workers.algorithms.kto import KTO
from workers.algorithms.ppo import PPO
from workers.algorithms.preference import DPO
from workers.algorithms.reinforce import REINFORCE
from workers.algorithms.rejection import REJECTION_SAMPLING
from workers.algorithms.reward_model import REWARD_MODEL
from workers.algorithms.rloo import RLOO
from workers.algorithms.sft import SFT

ALGORITHMS: dict[str, Algorithm] = {
    "sft": SFT,
    "grpo": GRPO,
    "ppo": PPO,
    "dpo": DPO,
    "kto": KTO,
    "reward_model": REWARD_MODEL,
    "rejection_sampling": REJECTION_SAMPLING,
    "distill": DISTILL,
    "rloo": RLOO,
    "reinforce++": REINFORCE,
}
