"""Chunks of a step, scorers, evaluation, loading, time limits of the calls, and the price of a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped import CONFIGS

from orchestrator.cli.main import main
from orchestrator.config import RunConfig, load
from orchestrator.config.run import EvaluationConfig
from orchestrator.errors import BadInput
from orchestrator.plan.advice import apply_changes, as_overrides
from orchestrator.plan.calls import SAFETY, Call, calls_of, changes_to_end
from orchestrator.plan.chunks import chunk_sizes, prompts_per_chunk, streamed_s
from orchestrator.plan.constants import DEFAULT
from orchestrator.plan.evaluation import evaluation_time, num_evaluations
from orchestrator.plan.gpus import GPUS
from orchestrator.plan.loading import loading_s
from orchestrator.plan.plan import Plan, make_plan, shapes_of
from orchestrator.plan.price import price_run
from orchestrator.plan.refuse import refuse_what_cannot_fit
from orchestrator.plan.scorers import SCORERS, cpu_s
from orchestrator.plan.step import step_time
from orchestrator.plan.time import forward_flops
from orchestrator.plan.work import Lengths, rows_of, work_of
from workers.config import (
    CodeRewardConfig,
    MathRewardConfig,
    ModelRewardConfig,
    PairwiseRewardConfig,
    RefusalRewardConfig,
    RolloutConfig,
)

H100 = GPUS["H100"]
ITERATIVE = "8b/iterative_dpo.yaml"
BERT_BASE = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
}


def config_of(recipe: str, *overrides: str) -> RunConfig:
    return load(CONFIGS / recipe, overrides).stages[-1]


def without_evaluation(config: RunConfig) -> RunConfig:
    keys = ("eval_prompts", "eval_harmful", "eval_benign", "eval_dataset")
    return apply_changes(config, {**{f"data.{key}": None for key in keys}, "evaluation": EvaluationConfig()})


def planned(recipe: str, *overrides: str, gpus: int | None = None) -> Plan:
    loaded = load(CONFIGS / recipe, overrides)
    return make_plan(loaded.stages[-1], H100, before=loaded.before(loaded.stages[-1]), given=gpus)


def call(plan: Plan, phase: str, role: str) -> Call:
    return next(c for c in plan.calls if (c.phase, c.role) == (phase, role))


# ------------------------------------------------------------------------------------------------ chunks


def test_prompts_of_a_chunk() -> None:
    # 3 engines of 4,194,304 tokens, a group of 8 x (1024 + 3072): 128 groups per engine
    rollout = RolloutConfig(num_engines=3, max_prompt_length=1024, max_completion_length=3072)
    assert prompts_per_chunk(rollout, 8) == 384
    assert prompts_per_chunk(rollout.model_copy(update={"tokens_per_chunk": 1}), 8) == 1  # never less than a prompt
    plan = planned(ITERATIVE)
    assert plan.time.chunks == chunk_sizes(8192, 384) == (384,) * 21 + (128,)


def test_equal_phases_take_the_longest_and_one_chunk_more() -> None:
    assert streamed_s([5.0] * 20, [5.0] * 20) == pytest.approx(21 * 5)
    assert streamed_s([1.0] * 20, [5.0] * 20) == pytest.approx(1 + 20 * 5)  # filled, then the slower phase
    assert streamed_s([5.0] * 20, [1.0] * 20) == pytest.approx(20 * 5 + 1)  # drained
    assert streamed_s([1.0, 1.0], [1.0, 1.0], ready=10) == pytest.approx(12)


times = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(times)
def test_a_stream_is_between_its_longest_phase_and_the_sum(chunks: list[tuple[float, float]]) -> None:
    produced, consumed = ([c[i] for c in chunks] for i in (0, 1))
    took = streamed_s(produced, consumed)
    assert max(sum(produced), sum(consumed)) - 1e-6 <= took <= sum(produced) + sum(consumed) + 1e-6


def test_a_round_is_a_stream_of_chunks() -> None:
    """Check a round of iterative DPO: scoring is hidden behind generation, but for the last chunk."""
    time = planned(ITERATIVE, "algorithm.prompts_per_step=8064").time  # 21 full chunks
    assert time.chunks == (384,) * 21
    generate, reference, reward = (
        time.busy[phase][role] for phase, role in (("generate", "rollout"), ("score", "reference"), ("score", "reward"))
    )
    assert generate > reference > reward
    learn, publish = time.busy["learn"]["policy"], time.busy["publish"]["policy"]
    last = time.chunk["score"]["reference"]
    assert time.step_s == pytest.approx(generate + last + learn + publish)
    assert last == pytest.approx(reference / 21)
    assert time.step_s < generate + reference + learn + publish
    assert time.begins["score"]["reference"] + reference == pytest.approx(time.begins["learn"]["policy"])


def test_learners_score_after_the_rewards() -> None:
    """Check the critic of PPO, and a policy under whose adapters the reference is scored chunk by chunk."""
    ppo = planned("8b/ppo.yaml", "rollout.tokens_per_chunk=100000").time
    assert len(ppo.chunks) > 2
    generate, reward = ppo.busy["generate"]["rollout"], ppo.chunk["score"]["reward"]
    assert generate < ppo.begins["score"]["critic"] <= generate + reward  # that of the last chunk
    own = "algorithm.vllm_importance_sampling_correction="
    lora, corrected = (
        planned("8b/grpo_lora.yaml", "rollout.tokens_per_chunk=262144", own + value).time for value in ("false", "true")
    )
    assert lora.begins["score"]["policy"] < lora.busy["generate"]["rollout"]
    assert corrected.begins["score"]["policy"] >= corrected.busy["generate"]["rollout"]


def test_a_refresh_delays_the_reference() -> None:
    """Check a reference that reads the policy before it scores: the engines sample meanwhile."""
    slow_disk = replace(DEFAULT, disk_bytes_per_s=1e6)  # 16,060 s to write and as long to read
    config = config_of(ITERATIVE)
    shapes, work = shapes_of(config), work_of(config, Lengths())
    time = step_time(config, shapes, H100, work, slow_disk)
    refreshed = sum(time.busy["refresh"].values())
    # the drift is measured on the first chunk, which is scored again after the refresh
    first = time.chunk["score"]["reference"]
    assert refreshed == pytest.approx(2 * 2 * 8_030_261_248 / 1e6 + first)
    ready = time.chunk["generate"]["rollout"] + refreshed
    assert time.begins["learn"]["policy"] == pytest.approx(ready + time.busy["score"]["reference"])


def test_the_drift_is_measured_by_scores_that_are_used_again() -> None:
    never = "reference.refresh=never"
    assert "refresh" not in planned(ITERATIVE, never, "rollout.temperature=1.0").time.busy
    other = planned(ITERATIVE, never, "rollout.temperature=0.8").time
    assert other.busy["refresh"] == {"reference": other.chunk["score"]["reference"]}


def test_smaller_chunks_cost_engine_time() -> None:
    """Check that every chunk ends with its longest completions, which run nearly alone."""
    whole, chunked, tiny = (
        planned(ITERATIVE, f"rollout.tokens_per_chunk={tokens}").time for tokens in (2**40, 2**22, 2**18)
    )
    generate = [time.busy["generate"]["rollout"] for time in (whole, chunked, tiny)]
    assert len(whole.chunks) == 1
    assert generate[0] < generate[1] < 1.1 * generate[0]
    assert generate[2] > 1.5 * generate[0]
    assert chunked.step_s < whole.step_s  # but scoring is no longer added to it
    assert [time.busy["learn"] for time in (whole, chunked)] == [tiny.busy["learn"]] * 2


def test_rounds_that_differ_are_priced_one_by_one() -> None:
    """Check a run whose later rounds sample fewer prompts: calls and memory are those of the largest round."""
    schedule = "rounds.prompts_per_step=[8192, 4096]"
    plan, first, later = (
        planned(ITERATIVE, override)
        for override in (schedule, "algorithm.prompts_per_step=8192", "algorithm.prompts_per_step=4096")
    )
    assert plan.time == first.time
    assert plan.calls == first.calls
    assert plan.train_s == pytest.approx(first.time.step_s + 2 * later.time.step_s)
    assert plan.run_s == pytest.approx(plan.load_s + plan.train_s + (plan.evaluations_s or 0))  # type: ignore[operator]


def test_a_reference_that_is_another_model() -> None:
    small, own = (
        planned(ITERATIVE, "reference.refresh=never", *override)
        for override in (["reference.path=meta-llama/Llama-3.2-1B-Instruct"], [])
    )
    ratio = forward_flops(small.shapes["reference"], 2048) / forward_flops(own.shapes["policy"], 2048)
    scored = [plan.time.busy["score"]["reference"] for plan in (small, own)]
    assert scored[0] / scored[1] == pytest.approx(ratio)
    weights = [next(d for d in plan.demands if d.role == "reference").memory.part("weights") for plan in (small, own)]
    assert weights[0] / weights[1] == small.shapes["reference"].num_params / own.shapes["policy"].num_params
    assert small.load["reference"] < own.load["reference"] == own.load["policy"]


# ------------------------------------------------------------------------------------------------ scorers


def test_the_math_verifier_takes_16_ms_per_answer() -> None:
    one, four = (planned(ITERATIVE, f"reward_workers.num_workers={n}").time.busy["score"] for n in (1, 4))
    assert one["reward"] == pytest.approx(8192 * 8 * 16e-3)
    assert four["reward"] == pytest.approx(one["reward"] / 4)
    assert four["reference"] == one["reference"]


def test_cost_of_scorers() -> None:
    math_, code = MathRewardConfig(type="math"), CodeRewardConfig(type="code")
    # 10 prompts over 4 workers: the busiest has 3 groups of 8; scorers run one after another
    both = cpu_s([math_, code], prompts=10, group=8, workers=4, cpus=1)
    assert both == pytest.approx(24 * (16e-3 + SCORERS["code"].seconds))
    # programs run in parallel on a worker's cores, the verifier on one
    assert cpu_s([math_, code], prompts=10, group=8, workers=4, cpus=4) == pytest.approx(24 * (16e-3 + 0.2 / 4))
    assert cpu_s([ModelRewardConfig(type="model", path="x")], prompts=10, group=8, workers=1, cpus=1) == 0
    refusal, trained = RefusalRewardConfig(type="refusal"), RefusalRewardConfig(type="refusal", classifier="default")
    assert cpu_s([refusal], prompts=10, group=8, workers=1, cpus=1) == pytest.approx(80 * 0.03e-3)
    assert cpu_s([trained], prompts=10, group=8, workers=1, cpus=1) == pytest.approx(80 * 0.5e-3)


def test_cost_of_a_classifier(tmp_path: Path) -> None:
    """Check that it is held like a reward model, and reads no more than its longest text."""
    (tmp_path / "config.json").write_text(json.dumps(BERT_BASE))
    reward = f"{{type: classifier, path: {tmp_path}, label: toxic, premise_column: solution"
    long, half, short = (
        planned(ITERATIVE, f"reward=[{reward}, max_length: {n}, dtype: bfloat16}}]") for n in (4096, 512, 256)
    )
    seconds = [plan.time.busy["score"]["reward"] for plan in (long, half, short)]
    assert seconds[0] > seconds[1]
    assert seconds[1] == pytest.approx(2 * seconds[2], rel=0.1)
    weights = next(d for d in half.demands if d.role == "reward").memory.part("weights")
    # 12 layers of 4 x 768² + 2 x 768 x 3072 + 2 x 768, an embedding of 30522 x 768, a norm; 2 bytes each
    assert weights == pytest.approx(2 * (12 * (2_359_296 + 4_718_592 + 1_536) + 23_440_896 + 768))


def test_cost_of_comparisons() -> None:
    """Check that a pairwise reward reads two completions in both orders, all pairs of a group or some opponents."""
    for opponents, comparisons in ((None, 28), (4, 16), (2, 8)):
        pairwise = PairwiseRewardConfig(type="pairwise", path="x", opponents=opponents)
        seconds = cpu_s([pairwise], prompts=10, group=8, workers=1, cpus=1)
        assert seconds == pytest.approx(10 * 2 * comparisons * SCORERS["pairwise"].seconds)
    of_type = {
        name: planned(ITERATIVE, f"reward=[{{type: math}}, {{type: {name}, path: meta-llama/Llama-3.1-8B-Instruct}}]")
        for name in ("model", "pairwise", "pairwise, opponents: 2")
    }
    busy = {name: plan.time.busy["score"]["reward"] - 8192 * 8 * 16e-3 for name, plan in of_type.items()}
    texts = 8192 * 2 * 8 * SCORERS["pairwise"].seconds
    every, two = busy["pairwise"] - 3.5 * texts, busy["pairwise, opponents: 2"] - texts
    assert every == pytest.approx(3.5 * two)
    assert two == pytest.approx(4 * busy["model"], rel=0.1)  # attention over two answers takes longer than twice
    weights = {
        name: next(d for d in plan.demands if d.role == "reward").memory.part("weights")
        for name, plan in of_type.items()
    }
    assert weights["pairwise"] > weights["model"]  # it has an output layer


# ------------------------------------------------------------------------------------------------ evaluation


def evaluated(tmp_path: Path, *overrides: str, rows: int = 50) -> RunConfig:
    paths = {key: tmp_path / f"{key}.jsonl" for key in ("eval_prompts", "eval_harmful", "eval_benign")}
    for path in paths.values():
        path.write_text('{"prompt": "a"}\n' * rows)
    return config_of("8b/grpo.yaml", *(f"data.{key}={path}" for key, path in paths.items()), *overrides)


def test_evaluation_of_held_out_and_safety_prompts(tmp_path: Path) -> None:
    config = evaluated(tmp_path, "evaluation.num_samples=4", "evaluation.every=100")
    found = evaluation_time(config, shapes_of(config), H100, Lengths(), DEFAULT)
    assert found is not None
    assert [(part.key, part.prompts, part.group) for part in found.parts] == [
        ("eval_prompts", 50, 1),
        ("eval_prompts", 50, 4),
        ("eval_harmful", 50, 1),
        ("eval_benign", 50, 1),
    ]
    assert [set(part.score_s) for part in found.parts] == [{"reward"}, {"reward", "base"}, {"refusal"}, {"refusal"}]
    assert found.seconds >= sum(part.generate_s for part in found.parts)
    # before the first step, after 100, 200, 300, 400 and 500 steps
    assert num_evaluations(config, 500) == 6
    assert num_evaluations(apply_changes(config, {"evaluation.every": None}), 500) == 2
    assert num_evaluations(config, 501) == 7  # and after the last


def test_an_evaluation_is_cut_into_chunks(tmp_path: Path) -> None:
    config = evaluated(tmp_path, "rollout.tokens_per_chunk=40960", "rollout.num_engines=2")
    found = evaluation_time(config, shapes_of(config), H100, Lengths(), DEFAULT)
    assert found is not None
    # 2 x 40,960 tokens are 20 prompts of 1024 + 3072
    assert [part.prompts for part in found.parts if part.key == "eval_harmful"] == [20, 20, 10]


def test_the_number_of_rows_of_a_local_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n\n{}\n")
    assert rows_of(str(tmp_path / "a.jsonl")) == 2
    assert [rows_of(source) for source in (None, "trl-lib/Capybara", str(tmp_path / "b.jsonl"))] == [None] * 3
    config = config_of("8b/dpo.yaml", f"data.dataset={tmp_path / 'a.jsonl'}", "algorithm.batch_size=1")
    assert work_of(config, Lengths()).steps == 2
    assert work_of(config, Lengths(rows=5)).steps == 5


def test_held_out_pairs_are_scored_by_policy_and_reference(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n" * 100)
    config = config_of("8b/dpo.yaml", f"data.eval_dataset={tmp_path / 'pairs.jsonl'}")
    found = evaluation_time(config, shapes_of(config), H100, Lengths(prompt=100, response=200), DEFAULT)
    assert found is not None
    (part,) = found.parts
    assert (part.prompts, part.generate_s) == (100, 0)
    assert part.score_s["policy"] == pytest.approx(part.score_s["reference"] / 7)  # 7 ranks and 1
    assert evaluation_time(without_evaluation(config), shapes_of(config), H100, Lengths(), DEFAULT) is None


# ------------------------------------------------------------------------------------------------ loading


def test_loading_of_each_role() -> None:
    config = without_evaluation(config_of("8b/ppo.yaml"))
    loaded = loading_s(config, shapes_of(config), DEFAULT)
    reading = 2 * 8_030_261_248 / 1e9
    assert loaded["policy"] == loaded["critic"] == loaded["reference"] == pytest.approx(30 + reading)
    assert loaded["rollout"] == pytest.approx(30 + reading + 32 * 1.8)  # and its 32 layers are compiled
    assert loaded["reward"] == 30  # math: no model


def test_a_model_that_does_not_load_in_time_is_refused() -> None:
    plan = planned("70b/grpo.yaml", "cluster.start_timeout_s=300", gpus=64)
    # 141.1 GB at 1 GB/s and 30 s; an engine compiles 80 layers
    assert {c.role: round(c.seconds) for c in plan.late} == {"policy": 171, "rollout": 315}
    assert plan.ending == {"cluster.start_timeout_s": 700}
    assert (plan.has_room, plan.fits) == (True, False)
    assert planned("70b/grpo.yaml", *as_overrides(plan.ending), gpus=64).fits


# ------------------------------------------------------------------------------------------------ time limits


def test_a_call_is_a_chunk_or_an_update() -> None:
    plan = planned(ITERATIVE)
    assert call(plan, "generate", "rollout").seconds < plan.time.busy["generate"]["rollout"] / 20
    update = call(plan, "learn", "policy")
    assert (update.count, update.seconds) == (128, pytest.approx(plan.time.busy["learn"]["policy"] / 128))
    assert update.what == "an update, 128 rows"
    assert {role for phase, role in ((c.phase, c.role) for c in plan.calls) if phase == "refresh"} == {
        "policy",
        "reference",
    }
    # 96.4 GB from one node at 1 GB/s
    assert call(plan, "checkpoint", "policy").seconds == pytest.approx(12 * 8_030_261_248 / 1e9)


def test_a_round_in_one_call_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Check a round that is not cut: its phases take 7,200 s and 3,900 s, the limit is 1,800 s."""
    recipe, whole = str(CONFIGS / ITERATIVE), "rollout.tokens_per_chunk=1000000000"
    assert main(["plan", recipe, whole, "--gpus", "8xH100"]) == 3
    text = capsys.readouterr().out
    assert "DOES NOT END IN TIME" in text
    assert "generate: rollout needs" in text
    assert "2 times that exceeds cluster.progress_timeout_s = 1,800" in text
    fix = next(line for line in text.splitlines() if line.startswith("    fix: ")).removeprefix("    fix: ")
    assert fix.startswith("rollout.tokens_per_chunk=")
    assert main(["plan", recipe, fix, "--gpus", "8xH100"]) == 0
    text = capsys.readouterr().out
    assert " x 384 prompts" not in text  # the chunks of the fix, not the default's


def test_the_margin_of_a_time_limit() -> None:
    seconds = max(c.seconds for c in planned(ITERATIVE).calls if c.key == "cluster.progress_timeout_s")
    enough = planned(ITERATIVE, f"cluster.progress_timeout_s={SAFETY * seconds + 1}")
    assert enough.fits
    short = planned(ITERATIVE, f"cluster.progress_timeout_s={SAFETY * seconds - 1}")
    assert not short.fits
    assert len(short.late) == 1


def test_an_update_that_cannot_be_cut_gets_a_longer_limit() -> None:
    plan = planned(ITERATIVE, "algorithm.batch_size=8192", "cluster.progress_timeout_s=900")
    assert [c.phase for c in plan.late] == ["learn"]
    assert list(plan.ending) == ["cluster.progress_timeout_s"]
    assert planned(ITERATIVE, "algorithm.batch_size=8192", *as_overrides(plan.ending)).fits
    assert plan.best.changes == plan.ending  # as `rlhf advise` would write it


def test_a_placement_ends_in_time() -> None:
    """Check a placement on few GPUs: what takes longer there gets the limit that it needs."""
    plan = planned(ITERATIVE, "cluster.progress_timeout_s=500", gpus=8)
    assert plan.placements
    for placement in plan.placements:
        after = apply_changes(plan.config, placement.changes)
        calls = calls_of(after, plan.shapes, H100, Lengths(), DEFAULT)
        assert all(c.ends for c in calls)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["8b/grpo.yaml", "8b/ppo.yaml", "8b/distill.yaml", "70b/dpo.yaml"]),
    st.integers(10, 3000),
    st.integers(10, 1000),
    st.integers(1000, 10_000_000),
)
def test_with_its_changes_every_call_ends(recipe: str, progress_s: int, start_s: int, tokens: int) -> None:
    limits = {
        "cluster.progress_timeout_s": progress_s,
        "cluster.start_timeout_s": start_s,
        "rollout.tokens_per_chunk": tokens,
    }
    config = config_of(recipe, *as_overrides(limits))
    shapes = shapes_of(config)
    calls = calls_of(config, shapes, H100, Lengths(), DEFAULT)
    changes = changes_to_end(config, shapes, H100, Lengths(), DEFAULT, calls)
    assert bool(changes) == (not all(c.ends for c in calls))
    after = config_of(recipe, *as_overrides({**limits, **changes}))
    assert all(c.ends for c in calls_of(after, shapes, H100, Lengths(), DEFAULT))


def test_a_run_is_refused_only_without_a_margin() -> None:
    """Check what `rlhf run` refuses: calls whose planned time alone exceeds the limit."""
    longest = max(c.seconds for c in planned(ITERATIVE).calls if c.key == "cluster.progress_timeout_s")
    refuse_what_cannot_fit([config_of(ITERATIVE, f"cluster.progress_timeout_s={longest + 1}")], H100)
    with pytest.raises(BadInput, match=r"generate of rollout does not end within cluster.progress_timeout_s"):
        refuse_what_cannot_fit([config_of(ITERATIVE, f"cluster.progress_timeout_s={longest - 1}")], H100)


# ------------------------------------------------------------------------------------------------ price


def test_the_price_of_a_run(tmp_path: Path) -> None:
    config = evaluated(tmp_path, "evaluation.num_samples=4", "evaluation.every=100")
    price = price_run(config, H100, price=2.0)
    assert (price.fits, price.steps) == (True, 500)
    assert price.gpus == {"policy": 4, "rollout": 4, "base": 1}
    plan = price.plan
    assert plan.evaluation is not None
    assert price.train_s == pytest.approx(500 * plan.time.step_s)
    assert price.evaluate_s == pytest.approx(6 * plan.evaluation.seconds)
    assert price.load_s == max(plan.load.values())
    assert price.seconds == pytest.approx(price.train_s + price.evaluate_s + price.load_s)
    method, loading, measuring = price.method_gpu_seconds, price.loading_gpu_seconds, price.measuring_gpu_seconds
    assert method is not None
    assert measuring is not None
    # the initial model serves evaluation alone: it is on no method's bill
    assert method == {"policy": pytest.approx(4 * price.train_s), "rollout": pytest.approx(4 * price.train_s)}
    assert measuring["base"] == pytest.approx(price.seconds)
    assert measuring["policy"] == pytest.approx(4 * price.evaluate_s)
    assert price.gpu_seconds == pytest.approx(sum([*method.values(), *loading.values(), *measuring.values()]))
    assert price.dollars == pytest.approx(9 * price.seconds / 3600 * 2.0)
    assert price.method_dollars == pytest.approx(8 * price.train_s / 3600 * 2.0)


def test_engines_that_only_evaluate_are_not_on_the_bill(tmp_path: Path) -> None:
    """Check offline DPO with held-out prompts."""
    (tmp_path / "held-out.jsonl").write_text('{"prompt": "a"}\n' * 10)
    prompts = (f"data.eval_prompts={tmp_path / 'held-out.jsonl'}", "data.eval_dataset=null")
    price = price_run(config_of("8b/dpo.yaml", *prompts, "reward=[{type: math}]", "algorithm.max_steps=200"), H100)
    assert price.gpus == {"policy": 7, "reference": 1, "rollout": 1}
    assert price.method_gpu_seconds is not None
    assert price.method_gpu_seconds.keys() == {"policy", "reference"}
    assert price.measuring_gpu_seconds is not None
    assert price.measuring_gpu_seconds["rollout"] == price.seconds


def test_a_budget_ends_a_run_early() -> None:
    price = price_run(config_of("8b/grpo.yaml", "max_device_seconds=80000"), H100)
    assert price.train_s == pytest.approx(80_000 / price.num_gpus)
    assert math.isclose(price_run(config_of("8b/grpo.yaml"), H100).train_s or 0, 500 * price.plan.time.step_s)


def test_a_dataset_of_unknown_size_has_no_price() -> None:
    config = without_evaluation(config_of("8b/sft.yaml"))
    unknown = price_run(config, H100)
    assert (unknown.steps, unknown.seconds, unknown.gpu_seconds, unknown.dollars) == (None, None, None, None)
    known = price_run(config, H100, lengths=Lengths(rows=12_800))
    assert known.train_s == pytest.approx(200 * known.plan.time.step_s)  # two epochs of 100 steps
