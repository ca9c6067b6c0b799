"""Compare methods for 70B on 64 H100, with all roles time-sharing all GPUs. A table of docs/evidence/back_test.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.plan.constants import DEFAULT
from orchestrator.plan.gpus import GPUS
from orchestrator.plan.models import TABLE, ModelShape
from orchestrator.plan.time import Engine, generation_s, learning_s, scoring_s

H100, LLAMA_8B, LLAMA_70B = GPUS["H100"], TABLE["llama-3-8b"], TABLE["llama-3-70b"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A method of the worked example, with the seconds of each phase."""

    name: str
    generate: float
    learn: float
    score: float

    @property
    def step(self) -> float:
        return (
            self.generate
            + self.learn
            + self.score
            + (DEFAULT.switch_s + DEFAULT.colocated_publish_s if self.generate else 0.0)
        )


def worked_example() -> list[Example]:
    """Return the rows: 1024 completions per step, 512 prompt and 512 mean response tokens, at most 2048.

    The FLOP of a token are those at a context of 512, half of the sequence."""
    tokens, context = 1024 * 1024.0, 512.0

    def generate(group: int) -> float:
        return generation_s(
            Engine(shape=LLAMA_70B, gpu=H100, tensor_parallel=8, utilization=0.85),
            sequences=128,
            prompt=512.0,
            response=512.0,
            longest=2048,
            group=group,
            constants=DEFAULT,
        )

    def learn(shape: ModelShape, share: float = 1.0) -> float:
        return learning_s(shape, H100, tokens=share * tokens, context=context, gpus=64, constants=DEFAULT)

    def score(shape: ModelShape, share: float = 1.0) -> float:
        return scoring_s(shape, H100, tokens=share * tokens, context=context, gpus=64, constants=DEFAULT)

    large, small = LLAMA_70B, LLAMA_8B
    rows = (
        # PPO scores with four models: old policy, reference, critic, reward model.
        ("PPO, 70B critic and reward model", generate(1), 2 * learn(large), 4 * score(large)),
        (
            "PPO, 8B critic and reward model",
            generate(1),
            learn(large) + learn(small),
            2 * score(large) + 2 * score(small),
        ),
        ("GRPO of 16, reference and old log-probabilities", generate(16), learn(large), 2 * score(large)),
        ("GRPO of 16, the engine's log-probabilities, no reference", generate(16), learn(large), 0.0),
        ("Online DPO of 2, 8B reward model", generate(2), learn(large), score(large) + score(small)),
        ("Offline DPO, reference each step", 0.0, learn(large), score(large)),
        ("Offline DPO, reference cached over 3 epochs", 0.0, learn(large), score(large) / 3),
        (
            "Offline DPO, cached reference, prompts computed once per pair",
            0.0,
            learn(large, 0.75),
            score(large, 0.75) / 3,
        ),
    )
    return [
        Example(name=name, generate=generating, learn=learning, score=scoring)
        for name, generating, learning, scoring in rows
    ]


def example_table() -> Iterator[str]:
    yield "| 70B on 64 H100, 1024 completions | generate s | train s | score s | step s | GPU-h per 1000 | $ |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for row in worked_example():
        hours = row.step * 64 / 3600 * 1000 / 1024
        yield (
            f"| {row.name} | {row.generate:.1f} | {row.learn:.1f} | {row.score:.1f} | **{row.step:.1f}** | "
            f"{hours:.2f} | {hours * H100.price:.1f} |"
        )
