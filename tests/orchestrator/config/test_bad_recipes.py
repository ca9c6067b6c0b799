"""Golden error text and exit code 2 for every class of bad recipe. bad_input.py lists the classes by B number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
from recipe_dir import OFFLINE_DPO, RecipeDir

from orchestrator.cli.main import main

GRPO = "type: grpo, prompts_per_step: 4, num_generations: 2, max_steps: 10"
ROUNDS = "{type: dpo, prompts_per_step: 4, num_generations: 2, max_steps: 3}"
NO_GROUPS = "{type: dpo, prompts_per_step: 4, max_steps: 1, pairs: {keep_groups: false}}"
VOTES = "{type: dpo, prompts_per_step: 4, max_steps: 2, exploration_alpha: 0.1, soft_labels: votes}"
DISTILL = "type: distill, prompts_per_step: 4, max_steps: 10"
TEACHER = {"teacher": "{model: {path: ./model}}", "reward": None}
ITERATIVE = {"algorithm": "{type: dpo, prompts_per_step: 4, max_steps: 3}"}


class Case(NamedTuple):
    name: str
    changes: Mapping[str, str | None] = {}
    overrides: tuple[str, ...] = ()
    text: str | bytes | None = None  # the whole recipe


CASES = (
    Case("b01-misspelt-key", {"algorithm": f"{{{GRPO}, learing_rate: 1.0e-4}}"}),
    Case("b01-peers-spelling", {"algorithm": f"{{{GRPO}, clip_eps: 0.2, lr: 1.0e-6}}", "rollout_batch_size": "64"}),
    Case("b02-wrong-level", {"algorithm": f"{{{GRPO}, temperature: 0.7}}", "zero_stage": "3"}),
    Case("b02-other-algorithms-key", {"algorithm": f"{{{GRPO}, label_smoothing: 0.1}}"}),
    Case("b03-duplicate-key", {"seed": "1\nseed: 2"}),
    Case("b04-exponent-as-text", {"algorithm": f"{{{GRPO}, learning_rate: 1e-6}}"}),
    Case(
        "b04-numbers-that-yaml-reads-otherwise",
        {
            "algorithm": "{type: grpo, prompts_per_step: 0x10, num_generations: 1_0, max_steps: 010}",
            "seed": "1:30",
            "max_staleness": "08",
            "checkpoint": "{every: 99999999999999999999, keep: 0b11}",
            "rollout": "{max_prompt_length: +0_7, temperature: 1:30.5, top_p: 1_0.5, max_num_seqs: None}",
        },
    ),
    Case("b04-numbers-on-the-command-line", overrides=("algorithm.max_steps=010", "seed=0x1F")),
    Case("b04-numbers-as-text", {"name": "123", "data": "{prompts: ./prompts.jsonl, split: 2024}"}),
    Case(
        "b05-anything-goes",
        {"model": "{path: ./model, chat_template_kwargs: {thinking: off, budget: 1e3, at: 1:30, level: 010, id: 08}}"},
    ),
    Case("b05-no-as-name", {"name": "no"}),
    Case("b05-off-as-choice", {"reference": "{refresh: off}"}),
    Case("b06-beta-negative", {"algorithm": f"{{{GRPO}, beta: -0.1}}"}),
    Case("b06-beta-zero", {**OFFLINE_DPO, "algorithm": "{type: dpo, beta: 0}"}),
    Case("b06-beta-nan", {**OFFLINE_DPO, "algorithm": "{type: dpo, beta: .nan}"}),
    Case("b06-beta-infinite", {**OFFLINE_DPO, "algorithm": "{type: dpo, beta: .inf}"}),
    Case("b06-ld-alpha-above-one", {**OFFLINE_DPO, "algorithm": "{type: dpo, ld_alpha: 1.5}"}),
    Case("b07-learning-rate-zero", overrides=("algorithm.learning_rate=0",)),
    Case("b07-learning-rate-large", overrides=("algorithm.learning_rate=2",)),
    Case("b08-group-of-one", {"algorithm": "{type: grpo, num_generations: 1, max_steps: 10}"}),
    Case("b09-batch-does-not-divide", {"algorithm": f"{{{GRPO}, num_mini_batches: 3}}"}),
    Case(
        "b09-ppo-batch-does-not-divide",
        {"algorithm": "{type: ppo, prompts_per_step: 5, num_generations: 3, num_mini_batches: 4, max_steps: 2}"},
    ),
    Case(
        "b09-rloo-batch-does-not-divide",
        {"algorithm": "{type: rloo, prompts_per_step: 4, num_mini_batches: 3, max_steps: 10}"},
    ),
    Case("b09-more-engines-than-prompts", {"rollout": "{num_engines: 5}"}),
    Case("b10-clip-and-shares", {"algorithm": "{type: ppo, max_steps: 2, cliprange: 0, gamma: 1.5, lam: -1}"}),
    Case("b11-lengths", {"policy": "{tokens_per_micro_batch: 1000}"}),
    Case("b11-overlong-length", {"algorithm": f"{{{GRPO}, overlong_buffer: 128, overlong_length: 1024}}"}),
    Case("overlong-buffer-alone", {"algorithm": f"{{{GRPO}, overlong_buffer: 128}}"}),
    Case("cispo-without-its-bound", {"algorithm": f"{{{GRPO}, loss_type: cispo}}"}),
    Case("baseline-of-one", {"algorithm": "{type: reinforce++, num_generations: 1, baseline: group, max_steps: 10}"}),
    Case("estimator-in-the-wrong-place", {"algorithm": "{type: ppo, kl_estimator: k3, max_steps: 10}"}),
    Case("adaptive-kl-from-zero", {"algorithm": "{type: ppo, kl_coef: 0, adaptive_kl: {}, max_steps: 10}"}),
    Case("dynamic-and-stale", {"algorithm": f"{{{GRPO}, dynamic_sampling: true}}", "max_staleness": "1"}),
    Case("b17-reference-of-another-model", {"reference": "{model: ./other}", "ref_model": "./other"}),
    Case("reference-path-without-reference", {"reference": "{path: ./other}"}),
    Case("average-of-another-model", {"algorithm": ROUNDS, "reference": "{path: ./other, refresh: ema}"}),
    Case("average-without-ema", {"algorithm": ROUNDS, "reference": "{ema_alpha: 0.5, refresh: every_round}"}),
    Case("rounds-without-rounds", {"rounds": "{temperature: [0.8, 1.3]}"}),
    Case(
        "rounds-wrong-values",
        {"algorithm": ROUNDS, "rounds": "{temperature: [0.8, 0], beta: {first: 0.1, lat: 0.2}, num_iterations: 2}"},
    ),
    Case(
        "rounds-too-many-values",
        {"algorithm": ROUNDS, "rounds": "{temperature: [1, 1, 1, 1], prompts_per_step: [1]}"},
        ("rollout.num_engines=2",),
    ),
    Case("rounds-of-one-file", {"algorithm": ROUNDS, "rounds": "{prompts: cycle_files}"}),
    Case(
        "rounds-of-fewer-files",
        {"algorithm": ROUNDS, "rounds": "{prompts: files}", "data": "{prompts: [./prompts.jsonl, ./demos.jsonl]}"},
    ),
    Case("rounds-not-disjoint", {"algorithm": ROUNDS, "rounds": "{prompts: disjoint}"}),
    Case("mix-without-rounds", {"rounds": "{mix: {earlier_rounds: 1}}"}),
    Case("mix-of-a-dataset-without-one", {"algorithm": ROUNDS, "rounds": "{mix: {dataset: 0.5, last: 2}}"}),
    Case("mix-without-stored-groups", {"algorithm": NO_GROUPS, "rounds": "{mix: {earlier_rounds: 1}}"}),
    Case("mix-of-other-losses", {"algorithm": VOTES, "rounds": "{mix: {earlier_rounds: 1}}"}),
    Case("mix-without-weight", {"algorithm": ROUNDS, "data": "{prompts: ./prompts.jsonl, dataset: ./pairs.jsonl}"}),
    Case("two-files-of-one-name", {"data": "{prompts: [./prompts.jsonl, ./more/prompts.jsonl]}"}),
    Case("b21-bad-name", {"name": "../x"}),
    Case("b24-nothing-saved", {"checkpoint": "{every: 0}"}),
    Case("b24-saved-too-late", {"checkpoint": "{every: 11}"}),
    Case("b24-nothing-to-go-back-to", {"alarms": "{kl_budget: {action: roll_back}}"}),
    Case("updates-of-no-round", {"checkpoint": "{every_updates: 2}"}),
    Case("b25-seed", {"seed": "-1"}),
    Case("b26-unknown-algorithm", {"algorithm": "{type: gpro}"}),
    Case("b26-method-of-another-name", {"algorithm": "{type: online_dpo}"}),
    Case("b26-method-with-dashes", {"algorithm": "{type: Iterative-DPO}"}),
    Case("b26-no-algorithm-type", {"algorithm": "{beta: 0.1}"}),
    Case("b54-limits-of-a-function", {"reward": "[{type: function, function: 'a.py:f', timeout_s: 0, memory_mib: 1}]"}),
    Case("b26-unknown-reward", {"reward": "[{type: maths}, {}]"}),
    Case("b28-secret-value", {"name": "hf_abcdefghijklmnopqrstuvwxyz012345"}),
    Case("b28-secret-key", {"wandb": "{api_key: 0123456789abcdef0123}"}, ("cluster.auth_token=tops3cret",)),
    Case("b29-critic-with-grpo", {"critic": "{num_ranks: 2}"}),
    Case(
        "prompts-for-a-reward-model",
        {
            "data": "{dataset: ./pairs.jsonl, eval_prompts: ./heldout.jsonl}",
            "algorithm": "{type: reward_model, batch_size: 4}",
            "reward": None,
        },
    ),
    Case("preferences-to-evaluate-a-policy", {"data": "{prompts: ./prompts.jsonl, eval_dataset: ./pairs.jsonl}"}),
    Case(
        "evaluation-of-a-reward-model-on-nothing",
        {
            "data": "{dataset: ./pairs.jsonl}",
            "algorithm": "{type: reward_model, batch_size: 4}",
            "evaluation": "{every: 1}",
            "reward": None,
        },
    ),
    Case(
        "more-kept-than-sampled",
        {"algorithm": "{type: rejection_sampling, num_generations: 4, keep_best: 5, max_steps: 10}"},
    ),
    Case("b30-list", text="- a\n- b\n"),
    Case("b30-empty", text="# nothing\n"),
    Case("b30-binary", text=b"\x7fELF\x02\x01\x01\x00\xff\xfe"),
    Case("b30-large", text="a: " + "x" * 300_000),
    Case("b30-alias-bomb", text="a: &a0 [x]\n" + "".join(f"a{i}: &a{i + 1} [{f'*a{i}, ' * 9}]\n" for i in range(8))),
    Case("b30-deep", text="a: " + "[" * 500),
    Case("b30-broken-yaml", text="model: {path: x\ndata: y\n"),
    Case("b30-tab", text="model:\n\tpath: x\n"),
    Case("b30-merge-key-and-tag", text="base: &b {a: 1}\nmodel: {<<: *b, path: !!python/name:os.system ''}\n"),
    Case("missing-sections", {"model": None, "algorithm": None}),
    Case("several-at-once", {"seed": "x", "algorithm": "{type: grpo, num_generations: 1, bta: 0.1}", "lr": "1"}),
    Case("both-data-sources", {"data": "{prompts: ./prompts.jsonl, dataset: ./pairs.jsonl}"}),
    Case("no-data-source", {"data": "{}"}),
    Case("dataset-with-grpo", {"data": "{dataset: ./pairs.jsonl}"}),
    Case("prompts-with-sft", {"algorithm": "{type: sft}"}),
    Case("prompts-without-reward", {"reward": None}),
    Case("no-end", {"algorithm": "{type: grpo, prompts_per_step: 4}"}),
    Case("reshaped-sampling", {"rollout": "{top_p: 0.9, top_k: 40}"}),
    Case("stale-dataset", {**OFFLINE_DPO, "max_staleness": "1"}),
    Case("too-stale", {"max_staleness": "9"}),
    Case("refresh-without-rounds", {"reference": "{refresh: every_round}"}),
    Case("evaluation-of-nothing", {"evaluation": "{every: 5}"}),
    Case("evaluation-of-dpo-on-nothing", {**OFFLINE_DPO, "evaluation": "{every: 5}"}),
    Case("samples-of-nothing", {"evaluation": "{num_samples: 4}"}),
    Case("budget-of-nothing", {"max_device_seconds": "0"}),
    Case("wandb-not-reported-to", {"wandb": "{project: x}"}),
    Case("offload-without-zero", {"policy": "{zero_stage: 0, offload_optimizer: true}"}),
    Case("smoothing-without-place", {**OFFLINE_DPO, "algorithm": "{type: dpo, loss_type: ipo, label_smoothing: 0.1}"}),
    Case("pairs-of-a-dataset", {**OFFLINE_DPO, "algorithm": "{type: dpo, pairs: {max_pairs: 9, gold: add}}"}),
    Case("pairs-old-keys", {"algorithm": "{type: dpo, pair_selection: all, pairs_per_prompt: 2, min_margin: 1.0}"}),
    Case(
        "pairs-without-effect",
        {"algorithm": "{type: dpo, soft_labels: margin, pairs: {quantile: 0.1, min_margin: 1.0, gold: chosen}}"},
    ),
    Case("nash-md", {"algorithm": "{type: nash-md, max_steps: 3}"}),
    Case("sppo-hard", {**OFFLINE_DPO, "algorithm": "{type: dpo, loss_type: sppo_hard}"}),
    Case(
        "votes-of-one-reward",
        {"algorithm": "{type: dpo, max_steps: 3, soft_labels: votes, pairs: {min_agreement: 0.6}}"},
    ),
    Case(
        "win-rates-of-a-function",
        {"algorithm": "{type: dpo, max_steps: 3, soft_labels: win_rate}"},
    ),
    Case(
        "worst-case-of-one-reward",
        {"reward_combine": "min", "reward_normalize": "group", "algorithm": "{type: ppo, max_steps: 3}"},
    ),
    Case(
        "normalised-and-limited",
        {"reward_normalize": "group", "algorithm": "{type: rejection_sampling, max_steps: 3, min_reward: 1.0}"},
    ),
    Case("normalised-rewards-of-a-dataset", {**OFFLINE_DPO, "reward_normalize": "group"}),
    Case(
        "judge-with-a-budget-of-an-evaluation",
        {"reward": "[{type: judge, url: 'http://a.b/v1', model: m, price: [1, 1], max_requests: 9, max_cost: 5}]"},
    ),
    Case(
        "judge-whose-key-is-sent-in-the-clear",
        {"reward": "[{type: judge, url: 'http://judge.example/v1', model: m, api_key_env: A, api_key_file: ./b}]"},
    ),
    Case(
        "pairwise-reward-alone",
        {
            "reward": "[{type: pairwise, path: ./judge, opponents: 3}]",
            "data": "{prompts: ./prompts.jsonl, eval_prompts: ./heldout.jsonl}",
        },
    ),
    Case(
        "pairwise-reward-of-the-best-round",
        {
            "reward": "[{type: pairwise, path: ./judge}, {type: math, weight: 0.0}]",
            "algorithm": "{type: dpo, max_steps: 3}",
            "data": "{prompts: ./prompts.jsonl, eval_prompts: ./heldout.jsonl}",
            "evaluation": "{every: 1}",
        },
    ),
    Case(
        "pairwise-reward-of-one-completion",
        {
            "reward": "[{type: pairwise, path: ./judge}]",
            "algorithm": "{type: ppo, max_steps: 3}",
            "data": "{prompts: ./prompts.jsonl, eval_prompts: ./heldout.jsonl}",
        },
    ),
    Case(
        "soft-labels-without-effect",
        {**OFFLINE_DPO, "algorithm": "{type: dpo, soft_labels: votes, label_temperature: 2.0, dpop_lambda: 5.0}"},
    ),
    Case(
        "generation-that-trains",
        {
            "algorithm": "{type: generate, rows: ratings, filters: {min_score: 0.5}, per_prompt: 4}",
            "reward": "[]",
            "policy": "{num_ranks: 2}",
            "evaluation": "{every: 5}",
            "model": "{path: ./model, lora: {}}",
            "data": "{prompts: [{path: ./prompts.jsonl, weight: 1.0}]}",
        },
    ),
    Case("generation-with-a-learning-rate", {"algorithm": "{type: generate, learning_rate: 1.0e-5}"}),
    Case("generation-by-a-bad-pattern", {"algorithm": "{type: generate, filters: {pattern: '(['}}"}),
    Case(
        "sources-with-wrong-keys",
        {**OFFLINE_DPO, "data": "{dataset: [{path: ./pairs.jsonl, weigth: 0.7, max_rows: 0, objective: a/b}, 3]}"},
    ),
    Case(
        "weights-of-some-sources",
        {
            **OFFLINE_DPO,
            "data": "{dataset: [{path: ./pairs.jsonl, weight: 0.7}, ./demos.jsonl, ./x/demos.jsonl], "
            "eval_dataset: [{path: ./pairs.jsonl, weight: 1.0}]}",
            "evaluation": "{every: 2}",
        },
    ),
    Case(
        "objectives-without-a-source",
        {
            **OFFLINE_DPO,
            "algorithm": "{type: reward_model, objectives: [help, safe], max_steps: 2}",
            "data": "{dataset: [{path: ./pairs.jsonl, objective: help}], eval_dataset: [./held.jsonl]}",
            "evaluation": "{every: 2}",
        },
    ),
    Case("objectives-named-twice", {"algorithm": "{type: reward_model, objectives: [help, help]}"}),
    Case(
        "weights-of-prompts-that-are-chosen-otherwise",
        {
            "algorithm": ROUNDS,
            "data": "{prompts: [{path: ./prompts.jsonl, weight: 0.7}], dataset: [{path: ./pairs.jsonl, weight: 1.0}]}",
            "rounds": "{prompts: fixed, prompts_per_step: [4], mix: {dataset: 0.5}}",
        },
    ),
    Case(
        "weights-with-dynamic-sampling",
        {
            "algorithm": f"{{{GRPO}, dynamic_sampling: true}}",
            "data": "{prompts: [{path: ./prompts.jsonl, weight: 1.0}]}",
        },
    ),
    Case("export-without-rounds", {"export": "{round: best}"}),
    Case("export-best-without-evaluation", {"algorithm": "{type: dpo, max_steps: 3}", "export": "{round: best}"}),
    Case(
        "export-by-of-the-last-round",
        {
            "algorithm": "{type: dpo, max_steps: 3}",
            "data": "{prompts: ./prompts.jsonl, eval_prompts: ./heldout.jsonl}",
            "export": "{by: eval/reward}",
        },
    ),
    Case(
        "export-by-samples-without-samples",
        {
            "algorithm": "{type: dpo, max_steps: 3}",
            "data": "{prompts: ./prompts.jsonl, eval_prompts: ./heldout.jsonl}",
            "evaluation": "{every: 1}",
            "export": "{by: eval/sampled_reward}",
        },
    ),
    Case("exploration-offline", {**OFFLINE_DPO, "algorithm": "{type: dpo, exploration_alpha: 1.0e-5}"}),
    Case(
        "exploration-of-other-samples",
        {
            "algorithm": "{type: dpo, max_steps: 3, exploration_alpha: 1.0e-5, pairs: {gold: add}}",
            "rollout": "{temperature: 0.7, top_p: 0.9}",
        },
    ),
    Case("simpo-gamma-without-simpo", {**OFFLINE_DPO, "algorithm": "{type: dpo, simpo_gamma: 1.0, dpop_lambda: 5.0}"}),
    Case(
        "simpo-with-reference",
        {**OFFLINE_DPO, "algorithm": "{type: dpo, loss_type: simpo, ld_alpha: 0.5}", "reference": "{num_ranks: 2}"},
    ),
    Case("unknown-loss", {**OFFLINE_DPO, "algorithm": "{type: dpo, loss_type: exo}"}),
    Case("kto-of-prompts", {"algorithm": "{type: kto}"}),
    Case("kto-of-one-row", {**OFFLINE_DPO, "algorithm": "{type: kto, batch_size: 1, desirable_weight: 0}"}),
    Case("lora-ranges", {"model": "{path: ./model, lora: {r: 0, lora_alpha: -1, lora_dropout: 1.0, rank: 4}}"}),
    Case("lora-no-targets", {"model": "{path: ./model, lora: {target_modules: []}}"}),
    Case("lora-targets-misspelt", {"model": "{path: ./model, lora: {target_modules: all_linear}}"}),
    Case("lora-dropout-dpo", {**OFFLINE_DPO, "model": "{path: ./model, lora: {lora_dropout: 0.1}}"}),
    Case("lora-dropout-on-policy", {"model": "{path: ./model, lora: {lora_dropout: 0.1}}"}),
    Case("wrong-types", {"reward": "{type: math}", "evaluation": "3", "model": "[./model]", "report_to": "[wandbb]"}),
    Case("two-origins-of-the-model", {"model": "{path: ./model, from_stage: base}"}),
    Case("unknown-stage", {"model": "{from_stage: base}"}),
    Case("distill-without-teacher", {"algorithm": f"{{{DISTILL}}}"}),
    Case("teacher-with-grpo", {"teacher": TEACHER["teacher"]}),
    Case("distill-beta", {**TEACHER, "algorithm": f"{{{DISTILL}, beta: 1.5}}"}),
    Case("distill-policy-gradient-beta", {**TEACHER, "algorithm": f"{{{DISTILL}, objective: policy_gradient}}"}),
    Case(
        "distill-policy-gradient-sampling",
        {
            **TEACHER,
            "algorithm": f"{{{DISTILL}, objective: policy_gradient, beta: 1.0}}",
            "rollout": "{temperature: 0.7, top_k: 20}",
        },
    ),
    Case(
        "distill-policy-gradient-dataset",
        {
            **TEACHER,
            "data": "{dataset: ./demos.jsonl}",
            "algorithm": "{type: distill, batch_size: 4, objective: policy_gradient, beta: 1.0}",
        },
    ),
    Case(
        "distill-sampled-by-the-teacher",
        {
            **TEACHER,
            "algorithm": f"{{{DISTILL}, sampler: teacher, objective: policy_gradient, beta: 1.0}}",
            "data": "{prompts: ./prompts.jsonl, eval_prompts: ./prompts.jsonl}",
            "reward": "[{type: math}]",
        },
    ),
    Case(
        "distill-a-dataset-sampled-by-the-teacher",
        {
            **TEACHER,
            "algorithm": "{type: distill, batch_size: 4, sampler: teacher}",
            "data": "{dataset: ./demos.jsonl}",
        },
    ),
    Case(
        "refusals-of-what-answers-nothing",
        {
            "algorithm": "{type: reward_model, batch_size: 4}",
            "data": "{dataset: ./pairs.jsonl, eval_harmful: ./prompts.jsonl}",
            "reward": None,
        },
    ),
    Case(
        "held-out-pairs-without-a-reference",
        {
            "algorithm": "{type: dpo, loss_type: simpo, batch_size: 4}",
            "data": "{dataset: ./pairs.jsonl, eval_dataset: ./pairs.jsonl}",
            "reward": None,
        },
    ),
    Case("refusal-pattern", {"evaluation": "{refusal: {type: refusal, patterns: ['(', '']}}"}),
    Case("distill-mini-batches", {**TEACHER, "algorithm": f"{{{DISTILL}, num_mini_batches: 3}}"}),
    Case(
        "distill-evaluated-by-nothing",
        {
            **TEACHER,
            "algorithm": f"{{{DISTILL}}}",
            "data": "{prompts: ./prompts.jsonl, eval_prompts: ./prompts.jsonl}",
        },
    ),
    Case("teacher-of-unknown-stage", {"algorithm": f"{{{DISTILL}}}", "teacher": "{model: {from_stage: base}}"}),
    Case("bad-address", {"cluster": "{address: 'http://head:8265'}"}),
    Case(
        "overrides",
        overrides=("foo", "stages.base.seed=1", "reward.4.weight=2", "name.x=1", "=3", "seed=[", "a..b=1"),
    ),
    Case("b58-override-given-twice", overrides=("seed=1", "rollout.top_k=0", "seed=2")),
    Case("b58-overrides-that-overlap", overrides=("algorithm={max_steps: 3, beta: 0.1}", "algorithm.max_steps=4")),
    Case("b39-override-that-is-not-utf8", {"name": '"a\\ud800b"'}, overrides=("name=\udcff",)),
    Case("overrides-with-dashes", overrides=("--seed=3",)),
    Case("overrides-with-dashes-of-a-peer", overrides=("--learning-rate", "1e-6")),
    Case("stages-not-a-list", text="stages: {recipe: a.yaml}\n"),
    Case("stages-with-more", text="seed: 3\nstages:\n- recipe: nowhere.yaml\n"),
    Case("stages-recipe-not-alone", text="stages:\n- {recipe: a.yaml, seed: 1}\n"),
    Case("stages-in-a-circle", text="stages:\n- recipe: recipe.yaml\n"),
    Case("stages-of-one-name", text="stages:\n- recipe: good.yaml\n- recipe: good.yaml\n"),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(
    case: Case, recipe_dir: RecipeDir, golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_dir.recipe(name="good.yaml")
    recipe_dir.recipe(case.changes)
    if case.text is not None:
        (recipe_dir.path / "recipe.yaml").write_bytes(case.text if isinstance(case.text, bytes) else case.text.encode())
    code = main(["validate", "recipe.yaml", *case.overrides])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert "Traceback" not in printed.err
    golden(case.name, printed.err)


def test_s11_without_a_sandbox_a_code_reward_is_refused(
    recipe_dir: RecipeDir,
    golden: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(recipe_dir.path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe_dir.recipe({"reward": "[{type: code, tests_column: solution}, {type: code}, {type: json_schema}]"})
    assert main(["validate", "recipe.yaml"]) == 2
    golden("s11-no-sandbox", capsys.readouterr().err)


@pytest.mark.parametrize(
    "name", ["../x", "/abs", "a/b", "x" * 65, "", ".", "..", "-x", "é", "a b", "a\nb", "a\0b", "🙂", "x" * 300]
)
def test_b21_names_that_would_leave_the_directory(
    name: str, recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    recipe_dir.recipe({"name": json.dumps(name)})
    assert main(["validate", "recipe.yaml"]) == 2
    assert "1 to 64 letters, digits" in capsys.readouterr().err or "\0" in name


@pytest.mark.parametrize("name", ["a", "A-1.b_c", "0" * 64])
def test_names_that_are_allowed(name: str, recipe_dir: RecipeDir) -> None:
    recipe_dir.recipe({"name": f"'{name}'"})
    assert main(["validate", "recipe.yaml"]) == 0


def test_the_error_for_a_missing_recipe_lists_the_existing_ones(
    recipe_dir: RecipeDir, golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_dir.recipe()
    assert main(["validate", "recip.yaml"]) == 2
    assert main(["validate", "."]) == 2
    golden("no-such-recipe", capsys.readouterr().err)
