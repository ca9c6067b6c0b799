"""Check that the code in CONTRIBUTING's section "A new algorithm" is all that a new method needs.

The packages are copied, the three edits of the section are made in the copy, and a process that imports the copy
validates, plans and trains a recipe with the new method.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("orchestrator", "workers")
BLOCK = re.compile(r"^ *```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
RECIPE = """
name: weighted
model: {{path: {model}, dtype: float32}}
data: {{prompts: ./prompts.jsonl}}
reward: [{{type: function, function: "./reward.py:reward"}}]
rollout: {{max_prompt_length: 16, max_completion_length: 16}}
algorithm: {{type: rwr, temperature: 0.5, prompts_per_step: 2, num_generations: 2, max_steps: 3}}
"""


def code_blocks() -> tuple[str, str]:
    """Return the implementation and the settings class in the section."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## A new algorithm\n")[2].partition("\n## ")[0]
    implementation, settings = (textwrap.dedent(block) for block in BLOCK.findall(section))
    return implementation, settings


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copy of the packages with the new method."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    implementation, settings = code_blocks()
    (tmp_path / "workers/algorithms/rwr.py").write_text(implementation)
    with (tmp_path / "workers/config/policy_gradient.py").open("a") as file:
        file.write(f"\n\n{settings}")
    register = tmp_path / "workers/config/algorithms.py"
    text = register.read_text()
    imported = "from workers.config.policy_gradient import "
    last = "    GenerateConfig,\n)\n"
    assert (text.count(imported), text.count(last)) == (1, 1)
    register.write_text(
        text.replace(imported, f"{imported}RwrConfig, ").replace(last, "    GenerateConfig,\n    RwrConfig,\n)\n")
    )
    return tmp_path


def test_three_edits_add_a_method(tree: Path, qwen2: Path) -> None:
    edited = [
        str(path.relative_to(tree))
        for path in sorted(tree.rglob("*.py"))
        if not (original := ROOT / path.relative_to(tree)).exists() or original.read_text() != path.read_text()
    ]
    assert edited == ["workers/algorithms/rwr.py", "workers/config/algorithms.py", "workers/config/policy_gradient.py"]
    (tree / "recipe.yaml").write_text(RECIPE.format(model=qwen2))
    (tree / "prompts.jsonl").write_text('{"prompt": "ab>"}\n{"prompt": "ba>"}\n')
    (tree / "reward.py").write_text("def reward(completions, **_): return [1.0] * len(completions)")
    paths = (tree, ROOT, ROOT / "tests", ROOT / "tests/workers")  # the root for `configs`, which is not copied
    process = subprocess.run(
        [sys.executable, __file__, "recipe.yaml"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert Path(result["module"]).is_relative_to(tree)
    assert (result["type"], result["temperature"]) == ("rwr", 0.5)
    # 2 prompts with 2 completions each, one update per step, no reference and no critic.
    assert result["work"] == {"sequences": 4, "updates": 1, "steps": 3}
    assert result["on GPUs"] == ["policy", "rollout"]
    assert result["gangs"] == ["policy", "rollout", "reward"]
    # Rewards 1 0 and 0.5 0.5: weights exp((r − 1)/½) = 1, e⁻² and e⁻¹, e⁻¹ on 2, 1, 1 and 2 of 6 tokens.
    assert result["weights"] == pytest.approx([1, 1, math.exp(-2), math.exp(-1), math.exp(-1), math.exp(-1)])
    # On policy log π = log π_old = −1 everywhere, so L is the mean weight.
    assert result["loss"] == pytest.approx((2 + math.exp(-2) + 3 * math.exp(-1)) / 6)
    assert result["step"]["grad_norm"] > 0
    assert result["step"]["num_updates"] == 1
    assert result["moved"] > 0


def run(recipe: str) -> dict[str, Any]:
    """Validate, plan and train a recipe with the new method, in the process that imports the copy."""
    import numpy as np
    import torch
    from fakes import experience
    from torch_engine import learner_of

    from orchestrator.cli.main import main
    from orchestrator.config import load
    from orchestrator.pipeline.roles import gang_plans
    from orchestrator.plan.gpus import GPUS
    from orchestrator.plan.plan import make_plan
    from workers.algorithms import ALGORITHMS
    from workers.algorithms.base import MicroBatch, totals_of
    from workers.types import ScoredBatch, Scores

    assert main(["validate", recipe]) == 0
    (config,) = load(recipe).stages
    plan = make_plan(config, GPUS["H100"])
    method: Any = config.algorithm

    record = ALGORITHMS[method.type]
    given = experience([([3, 4], [[5, 6], [7]]), ([8], [[9], [10, 1]])], logprobs=[-1.0] * 6)
    rewards = np.array([1.0, 0.0, 0.5, 0.5], np.float32)
    scored = ScoredBatch(experience=given, rewards=rewards, reference_logprobs=None, values=None, seed=0)
    batch, _ = record.prepare(scored, method)
    rows = np.arange(batch.num_rows)
    loss, _ = record.loss(torch.full((6,), -1.0), MicroBatch.of(batch, rows, totals_of(batch, rows)), method)
    assert batch.advantages is not None

    learner, engine = learner_of(Path(config.model.path or ""), method.model_dump())
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    stats = learner.step(0, [given], [Scores(rewards=rewards, by_scorer={})], None, None)
    pairs = zip(before, engine.module.parameters(), strict=True)
    return {
        "module": sys.modules[type(method).__module__].__file__,
        "type": method.type,
        "temperature": method.temperature,
        "work": {name: getattr(plan.work, name) for name in ("sequences", "updates", "steps")},
        "on GPUs": [demand.role for demand in plan.demands],
        "gangs": [gang.role for gang in gang_plans(config, cuda=False, max_steps=3)],
        "weights": batch.advantages.tolist(),
        "loss": loss.item(),
        "step": stats.facts,
        "moved": max((after - parameter).abs().max().item() for parameter, after in pairs),
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
