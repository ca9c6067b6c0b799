"""Plans of recipes: the gangs that a run would start, suggested changes, placements, refusals, and output."""

from __future__ import annotations

import inspect
import io
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_dir import RecipeDir
from shipped import CONFIGS, QUICKSTART

from orchestrator.cli.main import main
from orchestrator.config import RunConfig, load
from orchestrator.errors import BadInput
from orchestrator.pipeline import roles
from orchestrator.pipeline.roles import gang_plans
from orchestrator.plan.advice import apply_changes, as_overrides
from orchestrator.plan.as_json import as_json
from orchestrator.plan.checkpoints import bytes_per_parameter, checkpoint_bytes, disk_bytes
from orchestrator.plan.constants import DEFAULT
from orchestrator.plan.evaluation import num_evaluations
from orchestrator.plan.gangs import demands, headless
from orchestrator.plan.gpus import GPUS, LARGEST
from orchestrator.plan.models import TABLE
from orchestrator.plan.placement import fewest_gpus, fits_on
from orchestrator.plan.plan import Plan, make_plan, shapes_of
from orchestrator.plan.refuse import refuse_on_every_gpu, refuse_what_cannot_fit
from orchestrator.plan.roles import ByRole
from orchestrator.plan.scorers import SCORERS
from orchestrator.plan.show import show_comparison, show_plan
from orchestrator.plan.step import step_time
from orchestrator.plan.work import Lengths, work_of
from workers.config import RewardConfig

MEANT_FOR_GPUS = sorted(
    path for size in ("8b", "70b") for path in (CONFIGS / size).glob("*.yaml") if not path.stem.startswith("compare")
)
COMPARED = sorted(path for size in ("8b", "70b") for path in (CONFIGS / size / "compare").glob("*.yaml"))
H100 = GPUS["H100"]
Golden = Callable[[str, str], None]
LLAMA_405B = "model.path=meta-llama/Llama-3.1-405B-Instruct"


def planned(recipe: str, *overrides: str, gpus: int | None = None, gpu: str = "H100", **more: object) -> Plan:
    loaded = load(CONFIGS / recipe, overrides)
    stage = loaded.stages[-1]
    return make_plan(stage, GPUS[gpu], before=loaded.before(stage), given=gpus, **more)  # type: ignore[arg-type]


def shown(plan: Plan) -> str:
    stream = io.StringIO()
    show_plan(plan, stream)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------ gangs


def test_the_tables_of_roles_have_every_role_that_can_start() -> None:
    """A role that is missing in `ByRole` would be a KeyError; one that is missing in a table is a type error."""
    source = inspect.getsource(roles)
    named = set(re.findall(r'(?:_learner|_reward|scoring_plan|plan_of)\(\s*"(\w+)"|role="(\w+)"', source))
    assert {name for pair in named for name in pair if name} == {field.name for field in fields(ByRole)}


def test_every_type_of_reward_has_a_cost() -> None:
    """A type that is missing in the planner's table would be a KeyError."""
    union, _ = get_args(RewardConfig)
    assert {get_args(config.model_fields["type"].annotation)[0] for config in get_args(union)} == set(SCORERS)


def test_a_method_without_a_reference_has_a_base_gang_for_held_out_samples() -> None:
    overrides = ["evaluation.num_samples=4", "data.eval_prompts=held-out.jsonl"]
    config = load(CONFIGS / "8b" / "grpo.yaml", overrides).stages[-1]
    assert "base" in {d.role for d in demands(config, shapes_of(config), H100, work_of(config, Lengths()))}


@pytest.mark.parametrize("path", QUICKSTART, ids=lambda path: path.stem)
def test_it_plans_every_gang_of_the_quickstart(path: Path) -> None:
    """Plan the quickstart recipe of every method as if it were for GPUs and an 8B model."""
    shapes = defaultdict(lambda: TABLE["llama-3-8b"])
    for config in load(path).stages:
        work = work_of(config, Lengths())
        time = step_time(config, shapes, H100, work, DEFAULT)
        assert 0 < time.step_s < 3600
        assert {role for busy in time.busy.values() for role in busy} <= {
            plan.role for plan in gang_plans(config, cuda=True, max_steps=1)
        }


@pytest.mark.parametrize("path", [*MEANT_FOR_GPUS, *COMPARED], ids=lambda path: str(path.relative_to(CONFIGS)))
def test_our_recipes_fit_the_cluster_they_are_meant_for(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory, number of GPUs, and every call within its time limit."""
    stated = re.search(r"Meant for (\d+) GPUs of 80 GB", path.read_text("utf-8").replace("\n# ", " "))
    assert stated is not None
    assert main(["plan", str(path), "--gpus", f"{stated[1]}xH100"]) == 0, capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ work


def test_work_of_a_step() -> None:
    grpo = work_of(load(CONFIGS / "8b/grpo.yaml").stages[-1], Lengths(prompt=200, response=800))
    config = load(CONFIGS / "8b/grpo.yaml").stages[-1]
    groups, group = config.algorithm.prompts_per_step, config.algorithm.num_generations  # type: ignore[union-attr]
    assert grpo.sequences == groups * group
    # 16 x 800 tokens and their prompt fit into a micro-batch of 16384; at 8192 nine fit at a time: two prompts
    assert grpo.learned_tokens == grpo.scored_tokens(16384) == groups * (200 + group * 800)
    assert grpo.scored_tokens(8192) == groups * (2 * 200 + group * 800)
    smaller = work_of(apply_changes(config, {"policy.tokens_per_micro_batch": 8192}), Lengths(prompt=200, response=800))
    assert smaller.learned_tokens == groups * (2 * 200 + group * 800)
    assert grpo.longest_row == config.rollout.max_prompt_length + config.rollout.max_completion_length
    ppo = work_of(load(CONFIGS / "70b/ppo.yaml").stages[-1], Lengths(prompt=200, response=800))
    assert (ppo.learned_tokens, ppo.updates) == (320 * 1000, 2)  # a completion per row, two mini-batches
    # 8192 prompts with 8 completions each make 2 pairs: a prompt and two completions each
    iterative = work_of(load(CONFIGS / "70b/iterative_dpo.yaml").stages[-1], Lengths(prompt=100, response=500))
    assert iterative.learned_tokens == 16384 * (100 + 2 * 500)
    assert iterative.scored_tokens(16384) == 8192 * (100 + 8 * 500)
    assert iterative.longest_row == 1024 + 2 * 3072  # a pair is never split
    assert (iterative.updates, iterative.steps) == (128, 3)
    # 128 pairs per step; 1000 rows make 8 steps, rounded up
    dpo = work_of(load(CONFIGS / "70b/dpo.yaml").stages[-1], Lengths(prompt=100, response=500, rows=1000))
    assert (dpo.learned_tokens, dpo.steps, dpo.epochs) == (128 * 1100, 8, 2)
    kto = work_of(load(CONFIGS / "8b/kto.yaml").stages[-1], Lengths(prompt=100, response=500))
    assert kto.scored_tokens(16384) / kto.learned_tokens == 1100 / 600  # a mismatched completion is scored with each


def test_pairs_that_are_mixed_in_are_scored_by_the_reference_and_learned() -> None:
    alone = load(CONFIGS / "70b/iterative_dpo.yaml").stages[-1]
    mixed = {"rounds.mix.earlier_rounds": 1.0, "rounds.mix.dataset": 0.5, "data.dataset": "org/pairs"}
    config = apply_changes(alone, mixed)
    before, work = (work_of(c, Lengths(prompt=100, response=500)) for c in (alone, config))
    assert work.mixed == 8192 + 4096
    assert work.learned_tokens == before.learned_tokens + (8192 + 4096) * 1100
    assert work.updates == before.updates + (8192 + 4096) // 128
    few = apply_changes(alone, mixed | {"rounds.mix.earlier_rounds": 9.0})
    assert work_of(few, Lengths(rows=100)).mixed == 16384 + 100, "no more than the round before made, and all rows"
    two = apply_changes(few, {"rounds.mix.last": None})
    assert work_of(two, Lengths(rows=100)).mixed == 2 * 16384 + 100
    times = [make_plan(c, H100).time for c in (alone, config)]
    assert times[1].busy["generate"] == times[0].busy["generate"]
    assert times[1].busy["score"].get("reward") == times[0].busy["score"].get("reward")
    # 12288 pairs of 2 completions beside 8192 groups of 8, with a prompt for each row.
    more = times[1].busy["score"]["reference"] / times[0].busy["score"]["reference"]
    assert 1.3 < more < 1.5
    assert times[1].step_s > times[0].step_s


# ------------------------------------------------------------------------------------------------ time


def test_sequential_and_overlapping_phases() -> None:
    config = load(CONFIGS / "70b/ppo.yaml").stages[-1]
    shapes, work = shapes_of(config), work_of(config, Lengths())

    def step(staleness: int) -> tuple[float, dict[str, dict[str, float]]]:
        later = config.model_copy(update={"max_staleness": staleness})
        time = step_time(later, shapes, H100, work, DEFAULT)
        return time.step_s, {phase: dict(roles) for phase, roles in time.busy.items()}

    synchronous, busy = step(0)
    assert synchronous == pytest.approx(
        busy["generate"]["rollout"]
        + max(busy["score"].values())
        + max(busy["learn"].values())
        + busy["publish"]["policy"]
    )
    ahead, same = step(1)
    assert same == busy
    critic = busy["score"]["critic"] + busy["learn"]["critic"]
    busiest = max(busy["generate"]["rollout"], busy["score"]["reference"], critic, busy["learn"]["policy"])
    assert ahead == pytest.approx(busiest + busy["publish"]["policy"])


def test_a_cached_reference_costs_one_pass() -> None:
    one_epoch, four_epochs = (
        planned("70b/dpo.yaml", f"algorithm.num_train_epochs={epochs}", lengths=Lengths(rows=12800))
        for epochs in (1, 4)
    )
    assert one_epoch.time.busy["score"]["reference"] == pytest.approx(4 * four_epochs.time.busy["score"]["reference"])
    assert one_epoch.time.busy["learn"] == four_epochs.time.busy["learn"]


def test_only_adapters_are_published() -> None:
    whole, adapters = planned("8b/grpo.yaml"), planned("8b/grpo_lora.yaml")
    # 8.03e9 x 2 bytes at 11.5 GB/s; 32 x 32 layers x 81,920 adapter parameters x 2 bytes, written and read at 1 GB/s
    assert whole.time.busy["publish"]["policy"] == pytest.approx(0.9 + 16.06e9 / 11.5e9, rel=1e-3)
    assert adapters.time.busy["publish"]["policy"] == pytest.approx(0.9 + 2 * 2 * 32 * 32 * 81_920 / 1e9)
    assert "reference" not in {d.role for d in adapters.demands}  # the base is the reference: the policy scores as well
    assert adapters.time.busy["score"]["policy"] > 0


def test_cost() -> None:
    plan = planned("70b/grpo.yaml", price=2.0)
    assert plan.gpu_hours_per_1000() == pytest.approx(plan.time.step_s * 64 / 3600 * 1000 / 1024)
    assert plan.evaluation is not None
    evaluations = num_evaluations(plan.config, 500) * plan.evaluation.seconds
    assert plan.run_s == pytest.approx(plan.load_s + 500 * plan.time.step_s + evaluations)
    assert plan.total_gpu_hours == pytest.approx(plan.run_s * 64 / 3600)  # type: ignore[operator]
    assert planned("8b/sft.yaml").total_gpu_hours is None  # its rows are on the hub


# ------------------------------------------------------------------------------------------------ what would fit


@pytest.mark.parametrize(
    ("recipe", "overrides", "role"),
    [
        ("70b/dpo.yaml", ("policy.gradient_checkpointing=false",), "policy"),
        ("70b/dpo.yaml", ("policy.zero_stage=2",), "policy"),
        ("70b/dpo.yaml", ("reference.zero_stage=0",), "reference"),
        ("70b/grpo.yaml", ("rollout.tensor_parallel_size=1",), "rollout"),
        ("70b/grpo.yaml", ("policy.tokens_per_micro_batch=65536",), "policy"),
        ("70b/grpo.yaml", ("rollout.max_completion_length=60000", "policy.tokens_per_micro_batch=65536"), "policy"),
        ("8b/sft.yaml", ("policy.num_ranks=1",), "policy"),
    ],
)
def test_the_nearest_change_is_a_recipe_that_fits(recipe: str, overrides: tuple[str, ...], role: str) -> None:
    plan = planned(recipe, *overrides)
    shortage = next(s for s in plan.shortages if s.role == role)
    assert shortage.short_bytes > 0
    assert shortage.changes
    others = [o for o in overrides if o.partition("=")[0] not in shortage.changes]
    after = planned(recipe, *others, *as_overrides(shortage.changes))  # as a user would write it
    assert role not in {s.role for s in after.shortages}


def test_larger_groups_need_no_more_memory() -> None:
    """Check that a group longer than a micro-batch is split: memory depends on the budget, not on the group.

    Each part repeats the prompt, so a smaller budget takes more tokens."""
    few, many = (planned("70b/grpo.yaml", f"algorithm.num_generations={count}") for count in (16, 64))
    assert [d.memory for d in few.demands] == [d.memory for d in many.demands]
    assert few.fits
    assert many.fits
    in_two = planned("70b/grpo.yaml", "policy.tokens_per_micro_batch=4096")
    assert in_two.demands[0].memory.total < few.demands[0].memory.total
    assert in_two.work.learned_tokens > few.work.learned_tokens


def test_the_first_stage_that_fits() -> None:
    """Check that the lowest ZeRO stage that fits is suggested.

    Stages 0 to 2 hold the 141 GB of a 70B model's weights on every rank, so only stage 3 fits."""
    for stage in (0, 1, 2):
        plan = planned("70b/dpo.yaml", f"policy.zero_stage={stage}")
        assert plan.shortages[0].changes == {"policy.zero_stage": 3}
    # 8B on 8 ranks of 80 GB: stages 0 and 1 take 8 x 8.03 + 12 = 76 GB, stage 2 16 + 16 = 32 GB and more, which fits
    plan = planned("8b/sft.yaml", "policy.zero_stage=0")
    assert plan.shortages[0].changes == {"policy.zero_stage": 2}


def test_placements_are_recipes_that_fit() -> None:
    plan = planned("70b/ppo.yaml", gpus=64)
    assert (plan.fits, plan.missing_gpus) == (False, 64)
    assert plan.placements
    steps = [p.time.step_s for p in plan.placements]
    assert steps == pytest.approx(sorted(steps), rel=1e-3)
    for placement in plan.placements[:3]:
        after = planned("70b/ppo.yaml", *as_overrides(placement.changes), gpus=64)
        assert after.fits
        assert after.asked == placement.num_gpus <= 64
        assert after.time.step_s == pytest.approx(placement.time.step_s)


@pytest.mark.parametrize("path", MEANT_FOR_GPUS, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("gpu", ["A100-80", "H200", "MI300X"])
def test_every_best_placement_is_a_legal_recipe(path: Path, gpu: str) -> None:
    name = f"{path.parent.name}/{path.name}"
    plan = planned(name, gpus=80, gpu=gpu)
    after = planned(name, *as_overrides(plan.best.changes), gpus=80, gpu=gpu)
    assert after.fits
    assert after.time.step_s == pytest.approx(plan.best.time.step_s)


def test_405b_on_512_gpus() -> None:
    offline = planned("70b/dpo.yaml", LLAMA_405B, gpus=512)
    assert not offline.fits  # 48 ranks hold 135 GB of states each
    assert offline.best.num_gpus <= 512
    assert offline.placements
    # An engine does not span nodes, and 812 GB of weights are more than 8 x 80 GB: no number of H100 helps, H200 do
    h100 = planned("70b/ppo.yaml", LLAMA_405B, gpus=512)
    assert (h100.placements, h100.fewest) == ((), None)
    assert "no number of H100" in shown(h100)
    h200 = planned("70b/ppo.yaml", LLAMA_405B, gpus=512, gpu="H200")
    assert h200.placements
    assert {d.role: d.gpus for d in h200.best.demands}["rollout"] == 8


def test_8b_on_one_gpu() -> None:
    full = planned("8b/sft.yaml", gpus=1)
    # 18 x 8.03 = 145 GB of states: all but the weights are in host memory, gradients twice
    assert full.best.changes["policy.offload_optimizer"] is True
    assert full.best.num_gpus == 1
    assert full.best.demands[0].memory.host_bytes == pytest.approx(20 * 8.030e9, rel=1e-3)
    lora = planned("8b/sft.yaml", "model.lora={r: 16}", "policy.num_ranks=1", gpus=1)
    assert lora.fits
    grpo = planned("8b/grpo_lora.yaml", gpus=1)  # engine and learner have a GPU each
    assert (grpo.placements, grpo.fewest) == ((), 2)
    assert "the minimum with unchanged sequence lengths: 2 H100" in shown(grpo)


def test_an_engine_wider_than_a_node_is_not_placed() -> None:
    plan = planned("70b/grpo.yaml", "rollout.tensor_parallel_size=16")
    assert [s.role for s in plan.shortages] == ["rollout"]
    assert "more GPUs per actor than a node has (8)" in shown(plan)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    recipe=st.sampled_from(["8b/grpo.yaml", "8b/dpo.yaml", "8b/ppo.yaml", "70b/dpo.yaml"]),
    gpus=st.integers(1, 96),
    more=st.integers(0, 64),
)
def test_more_gpus_never_fit_less(recipe: str, gpus: int, more: int) -> None:
    few, many = (planned(recipe, gpus=n) for n in (gpus, gpus + more))
    assert bool(few.placements) <= bool(many.placements)
    assert few.fits <= many.fits
    for plan in (few, many):
        assert all(p.num_gpus <= (plan.given or 0) for p in plan.placements)
        assert all(d.fits for p in plan.placements for d in p.demands)


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_what_no_number_of_ranks_makes_fit_is_found_at_once(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that splits are not enumerated in vain, and that the check skips no split that fits."""
    tokens = {f"{r}.tokens_per_micro_batch": 131_072 for r in ("policy", "critic", "reference")}
    config = load(CONFIGS / "70b/ppo.yaml").stages[-1]
    long = apply_changes(config, {**tokens, f"{role}.gradient_checkpointing": False})
    shapes = shapes_of(config)
    found = {n: fits_on(config, shapes, H100, Lengths(), n) for n in (1, 8, 32, 64)}
    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.plan.placement._learners_can_fit", lambda *arguments: True)
        assert {n: fits_on(config, shapes, H100, Lengths(), n) for n in found} == found
    assert not all(found.values())
    assert any(found.values())
    longer = apply_changes(long, {"rollout.max_completion_length": 100_000})
    monkeypatch.setattr(
        "orchestrator.plan.placement._splits", lambda *arguments: pytest.fail("the splits are enumerated")
    )
    assert fewest_gpus(longer, shapes, H100, Lengths()) is None


# ------------------------------------------------------------------------------------------------ refused before a run


def test_a_role_that_does_not_fit_is_refused(golden: Golden) -> None:
    config = load(CONFIGS / "70b/dpo.yaml", ["policy.zero_stage=2"]).stages
    with pytest.raises(BadInput) as refused:
        refuse_what_cannot_fit(config, H100)
    text = str(refused.value)
    # 2N + 16N/48 = 164.6 GB of states, and 80 GB
    assert "dpo-70b: policy does not fit: policy lacks" in text
    assert "165 GB states" in text
    assert "fix: policy.zero_stage=3" in text
    golden("b20-no-room", text)
    refuse_what_cannot_fit(load(CONFIGS / "70b/dpo.yaml").stages, H100)


def test_heads_that_do_not_divide_evenly(golden: Golden) -> None:
    config = load(CONFIGS / "70b/grpo.yaml", ["rollout.tensor_parallel_size=6"]).stages
    with pytest.raises(BadInput, match="64 attention heads cannot be divided evenly among 6 GPUs") as refused:
        refuse_what_cannot_fit(config, H100)
    golden("b19-heads-in-a-plan", str(refused.value))


def test_typical_lengths_decide_what_is_refused() -> None:
    """Check that a recipe which runs out of memory only at maximum lengths does not fit, but is not refused.

    Pairs of 2 x 8192 tokens on average fit into an H100, pairs of 2 x 16384 do not."""
    overrides = ("rollout.max_completion_length=16384", "rollout.max_prompt_length=4096")
    overrides = (*overrides, "policy.tokens_per_micro_batch=20480")
    assert not planned("70b/iterative_dpo.yaml", *overrides, gpu="H100").fits
    config = load(CONFIGS / "70b/iterative_dpo.yaml", overrides).stages[-1]
    shapes, work = shapes_of(config), work_of(config, Lengths())
    rows = [demands(config, shapes, H100, work, typical=t)[0].memory.part("activations") for t in (False, True)]
    # 4096 + 2 x 16384 tokens; 2048 + 2 x 8192 on average, where the budget of 20480 is more
    assert rows[0] / rows[1] == pytest.approx((4096 + 2 * 16384) / 20480)


def test_only_runs_on_gpus_are_refused() -> None:
    heavy = ("policy.zero_stage=0", LLAMA_405B)
    refuse_on_every_gpu(load(CONFIGS / "70b/dpo.yaml", heavy).stages)  # device auto: it may be a CPU
    with pytest.raises(BadInput, match=LARGEST.name):
        refuse_on_every_gpu(load(CONFIGS / "70b/dpo.yaml", [*heavy, "cluster.device=cuda"]).stages)


def test_validate_refuses_what_fits_nowhere(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8}
    body = {"model_type": "llama", **config, "intermediate_size": 53248, "vocab_size": 128256}
    (recipe_dir.path / "model" / "config.json").write_text(json.dumps(body))
    recipe = recipe_dir.recipe({"cluster": "{device: cuda}"})
    assert main(["validate", recipe]) == 2
    errors = capsys.readouterr().err
    assert "policy does not fit" in errors
    assert "rollout does not fit" in errors
    # The job is refused before it is sent: no server listens at this address
    assert main(["submit", recipe, "--cluster", "http://127.0.0.1:1"]) == 2
    assert "policy does not fit" in capsys.readouterr().err
    assert main(["validate", recipe_dir.recipe()]) == 0  # on an unknown device


# ------------------------------------------------------------------------------------------------ output


def test_output_fits_into_80_columns_and_has_no_escapes_without_a_terminal() -> None:
    fitting = shown(planned("70b/ppo.yaml", gpus=128))
    text = shown(planned("70b/ppo.yaml", gpus=64))
    assert "\x1b" not in text
    assert max(len(line) for line in fitting.split("Assumptions")[0].splitlines()) <= 80
    assert "A step:" in fitting
    bars = text.split("Assumptions")[0]
    assert max(len(line) for line in bars.splitlines()) <= 80, [x for x in bars.splitlines() if len(x) > 80]
    assert "DOES NOT FIT" in text
    assert "the last 64 are not available" in text
    assert "Nothing here was measured" in text


def test_a_terminal_without_blocks_gets_plain_characters() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    show_plan(planned("8b/dpo.yaml"), stream)
    stream.seek(0)
    text = stream.read()
    assert "####" in text
    assert "?" not in text.split("Assumptions")[0]


def test_the_base_of_an_evaluation_is_drawn_like_any_role() -> None:
    sampled = ("evaluation.num_samples=4", "data.eval_prompts=held-out.jsonl")
    assert "B base" in shown(planned("70b/iterative_dpo.yaml", *sampled))


def test_comparison_of_recipes() -> None:
    stream = io.StringIO()
    plans = [planned(f"70b/{name}.yaml", gpus=64) for name in ("ppo", "grpo", "iterative_dpo", "dpo")]
    show_comparison(plans, stream)
    text = stream.getvalue()
    assert [line.split()[0] for line in text.splitlines()[2:6]] == [
        "ppo-70b",
        "grpo-70b",
        "iterative-dpo-70b",
        "dpo-70b",
    ]
    assert text.splitlines()[2].split()[1:4] == ["128", "NO", "64"]


def test_json() -> None:
    plan = planned("70b/grpo.yaml", gpus=64)
    body = json.loads(json.dumps(as_json(plan), allow_nan=False))
    assert (body["fits"], body["gpus_asked"], body["step_s"]) == (True, 64, plan.time.step_s)
    assert {r["role"]: r["members"] * r["gpus_per_member"] for r in body["roles"]} == {"policy": 32, "rollout": 32}
    assert sum(body["roles"][0]["parts"].values()) == pytest.approx(body["roles"][0]["bytes_per_gpu"])
    never = as_json(planned("70b/ppo.yaml", LLAMA_405B))
    assert never["step_s"] is None  # infinity is not valid JSON
    json.dumps(never, allow_nan=False)


def test_the_command_imports_nothing_heavy() -> None:
    script = (
        "import sys; from orchestrator.cli.main import main\n"
        "code = main(['plan', 'configs/70b/ppo.yaml', '--gpus', '64xH100'])\n"
        "heavy = {'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=CONFIGS.parent, capture_output=True, text=True, check=True
    )
    assert done.stderr == "3 []\n"  # the recipe needs 128


def test_times_and_costs_are_of_the_given_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    """Check a recipe for 128 GPUs on 64: no step time of the 128, and placements on 64 or fewer."""
    recipe = str(CONFIGS / "70b/ppo.yaml")
    assert main(["plan", recipe, "--gpus", "64xH100"]) == 3
    text = capsys.readouterr().out
    assert text.count("DOES NOT FIT") == 1
    assert "A step:" not in text
    assert "the run:" not in text
    assert "Placements that fit into 64 GPUs" in text
    assert main(["plan", recipe, "--gpus", "64xH100", "--json"]) == 3
    body = json.loads(capsys.readouterr().out)
    assert (body["fits"], body["step_s"], body["dollars"], body["phases_s"]) == (False, None, None, None)
    assert body["placements"][0]["gpus"] <= 64
    assert main(["plan", recipe, "--gpus", "128xH100"]) == 0
    assert "A step:" in capsys.readouterr().out
    assert main(["plan", recipe, "--gpus", "64xH100", "--compare"]) == 0  # in another placement
    capsys.readouterr()
    assert main(["plan", recipe, "--gpus", "2xH100", "--compare"]) == 3
    assert "$" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(
    ("zero_stage", "weight_bytes", "expected"),
    [(3, 2, 12), (3, 4, 12), (2, 2, 14), (1, 4, 16), (0, 2, 14), (0, 4, 12)],  # weights + 4 master + 4 + 4 moments
)
def test_bytes_of_a_parameter_in_a_checkpoint(zero_stage: int, weight_bytes: int, expected: int) -> None:
    assert bytes_per_parameter(zero_stage=zero_stage, weight_bytes=weight_bytes) == expected


def test_disk_space_of_checkpoints() -> None:
    """Check the sizes for Llama 3 8B: 8,030,261,248 parameters of 12 bytes are 96.4 GB, and three exist at the peak."""
    plan = planned("8b/dpo.yaml", "checkpoint.every=null")
    assert checkpoint_bytes(plan.config, plan.shapes) == 12 * 8_030_261_248
    assert disk_bytes(plan.config, plan.shapes) == 3 * 12 * 8_030_261_248
    rounds = plan.config.rounds.model_copy(update={"policy": "base"})  # the initial state is kept as well
    from_base = plan.config.model_copy(update={"rounds": rounds})
    assert disk_bytes(from_base, plan.shapes) == 4 * 12 * 8_030_261_248
    text = shown(plan)
    assert "a checkpoint: 96.4 GB, every 10 min, or less often to spend at most 5% of the time" in text
    assert "peak: 289 GB (checkpoint.keep 2, and one being written)" in text
    best = planned("8b/iterative_dpo.yaml", "checkpoint.keep=2")
    assert best.config.best_round_by is not None
    assert disk_bytes(best.config, best.shapes) == 3 * (12 + 2) * 8_030_261_248, "a model beside each checkpoint"
    assert "one being written, each with its best round's model)" in shown(best)
    lora = planned("70b/dpo_lora.yaml")
    assert checkpoint_bytes(lora.config, lora.shapes) < 0.02 * 12 * lora.shapes["policy"].num_params  # only adapters


def test_a_critic_is_in_the_checkpoint_too() -> None:
    plan = planned("8b/ppo.yaml")
    policy, critic = plan.shapes["policy"].num_params, headless(plan.shapes["critic"]).num_params
    assert checkpoint_bytes(plan.config, plan.shapes) == 12 * (policy + critic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "no recipe"),
        (["plan", "configs/8b/dpo.yaml", "--gpus", "64 of them"], "write 64xH100"),
        (["plan", "configs/8b/dpo.yaml", "--gpus", "8xT4"], "unknown GPU `T4`"),
        (["plan", "configs/8b/dpo.yaml", "configs/8b/sft.yaml"], "add --compare"),
        (["plan", "configs/8b/dpo.yaml", "model.path=someone/unknown"], "unknown model `someone/unknown`"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_later_stage_has_the_shape_of_the_model_it_starts_from() -> None:
    plan = planned("8b/rlhf_classic.yaml")
    assert plan.shapes["reward.0"].num_params == plan.shapes["policy"].num_params
    assert {d.role for d in plan.demands} == {"policy", "critic", "reference", "rollout", "reward"}


def test_changes_reach_into_lists() -> None:

    config: RunConfig = load(CONFIGS / "8b/rlhf_classic.yaml").stages[-1]
    after = apply_changes(config, {"reward.0.tokens_per_micro_batch": 4096, "policy.num_ranks": 3})
    assert (after.reward[0].tokens_per_micro_batch, after.policy.num_ranks) == (4096, 3)  # type: ignore[union-attr]
    assert after.model_copy(update={"reward": config.reward, "policy": config.policy}) == config


def test_step_time_scales_with_the_training_efficiency() -> None:
    config = load(CONFIGS / "8b/sft.yaml").stages[-1]
    shapes, work = shapes_of(config), work_of(config, Lengths())
    slow = step_time(config, shapes, H100, work, replace(DEFAULT, train_mfu=0.05)).step_s
    assert slow == pytest.approx(7 * step_time(config, shapes, H100, work, DEFAULT).step_s)
