"""TRL's side of the parity table: loss and gradient norm by TRL's own trainers, on the batches of `cases.py`.

Run it with TRL's own Python (`requirements/trl.txt`). It writes models/ and trl_values.json beside this file. Tokens,
rewards and weights are given. Everything else is TRL's: forward passes, reference, old log-probabilities, advantages,
loss.

    policy     model that is trained
    reference  reference model
    sampler    model that sampled the completions; it replaces the policy while TRL computes old log-probabilities
    reward     reward model
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import importlib.metadata
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from cases import CASES, EOS, MAX_COMPLETION_LENGTH, PAD, SEEDS, VOCABULARY, Case, Rows, draw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer

HERE = Path(__file__).parent
MODELS = HERE / "models"
NUM_GENERATIONS = 4


# ------------------------------------------------------------------------------------------------ models


def write_models() -> None:
    vocabulary = {"<pad>": PAD, "<eos>": EOS} | {f"t{i}": i for i in range(EOS + 1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="t2")
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        initializer_range=0.2,  # far from uniform, so that a wrong mask shows
        dtype="float32",
        num_labels=1,
    )
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(config)
    _save(policy, "policy", fast)
    for name in ("reference", "sampler"):  # near the policy: ratios on both sides of the clipping
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        _save(policy, name, fast)
    _save(AutoModelForSequenceClassification.from_config(config), "reward", fast)


def _save(model: Any, name: str, tokenizer: Any) -> None:
    model.save_pretrained(MODELS / name)
    (MODELS / name / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(MODELS / name)


def load(name: str) -> Any:
    kind = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
    return kind.from_pretrained(MODELS / name, dtype=torch.float32)


def tokenizer() -> Any:
    return PreTrainedTokenizerFast.from_pretrained(MODELS / "policy")


# ------------------------------------------------------------------------------------------------ trainers


def arguments(case: Case, num_rows: int, directory: str) -> dict[str, Any]:
    return {
        "output_dir": directory,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "per_device_train_batch_size": num_rows,
    } | case.trl


def dataset(**columns: Any) -> datasets.Dataset:
    """Return a dataset of one row for the constructor, which requires one. It is not trained on."""
    return datasets.Dataset.from_dict({name: [value] * 2 for name, value in columns.items()})


def sft(case: Case, rows: Rows, directory: str) -> tuple[Any, Any]:
    args = SFTConfig(**arguments(case, len(rows), directory))
    given = dataset(prompt="t5 t6", completion=" t7")
    trainer = SFTTrainer(load("policy"), args=args, train_dataset=given, processing_class=tokenizer())
    examples = [
        {
            "input_ids": r["prompt"] + r["completion"],
            "completion_mask": [0] * len(r["prompt"]) + [1] * len(r["completion"]),
            "labels": [-100] * len(r["prompt"]) + r["completion"],
        }
        for r in rows
    ]
    return trainer, trainer.data_collator(examples)


def dpo(case: Case, rows: Rows, directory: str) -> tuple[Any, Any]:
    args = DPOConfig(**arguments(case, len(rows), directory))
    given = dataset(prompt="t5 t6", chosen=" t7", rejected=" t8")
    trainer = DPOTrainer(load("policy"), load("reference"), args, train_dataset=given, processing_class=tokenizer())
    examples = [{"prompt_ids": r["prompt"], "chosen_ids": r["chosen"], "rejected_ids": r["rejected"]} for r in rows]
    return trainer, trainer.data_collator(examples)


def cpo(case: Case, rows: Rows, directory: str) -> tuple[Any, Any]:
    args = CPOConfig(**arguments(case, len(rows), directory), max_length=64)
    given = dataset(prompt="t5 t6", chosen=" t7", rejected=" t8")
    trainer = CPOTrainer(load("policy"), args, train_dataset=given, processing_class=tokenizer())
    examples = []
    for r in rows:
        example = {"prompt_input_ids": r["prompt"], "prompt_attention_mask": [1] * len(r["prompt"])}
        for side in ("chosen", "rejected"):
            whole = r["prompt"] + r[side]
            example |= {
                f"{side}_input_ids": whole,
                f"{side}_attention_mask": [1] * len(whole),
                f"{side}_labels": [-100] * len(r["prompt"]) + r[side],
            }
        examples.append(example)
    return trainer, trainer.data_collator(examples)


def kto(case: Case, rows: Rows, directory: str) -> tuple[Any, Any]:
    args = KTOConfig(**arguments(case, len(rows), directory))
    given = dataset(prompt="t5 t6", completion=" t7", label=True)
    trainer = KTOTrainer(load("policy"), load("reference"), args, train_dataset=given, processing_class=tokenizer())
    others = [*rows[1:], rows[0]]  # a prompt's mismatched completion is the next row's
    examples = [
        {
            "prompt_ids": r["prompt"],
            "completion_ids": r["completion"],
            "KL_completion_ids": other["completion"],
            "label": r["label"],
        }
        for r, other in zip(rows, others, strict=True)
    ]
    return trainer, trainer.data_collator(examples)


def reward(case: Case, rows: Rows, directory: str) -> tuple[Any, Any]:
    args = RewardConfig(**arguments(case, len(rows), directory))
    given = dataset(chosen="t5 t7", rejected="t5 t8")
    trainer = RewardTrainer(load("reward"), args, train_dataset=given, processing_class=tokenizer())
    examples = [{f"{side}_ids": r["prompt"] + r[side] for side in ("chosen", "rejected")} for r in rows]
    return trainer, trainer.data_collator(examples)


class GivenRLOOTrainer(RLOOTrainer):
    """RLOOTrainer with given prompts and completions, because RLOOTrainer has no `rollout_func`."""

    given: tuple[list[list[int]], list[list[int]]]

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        return self.given[0], None, {}

    def _generate_single_turn(self, *_: Any) -> Any:
        return self.given[1]


def rloo(case: Case, rows: Rows, directory: str) -> tuple[Any, Any]:
    prompts, completions, rewards = _groups(rows)
    args = RLOOConfig(**_sampled(case, len(completions), directory))
    trainer = GivenRLOOTrainer(
        load("policy"), _scorer(rewards), args, train_dataset=dataset(prompt="t5"), processing_class=tokenizer()
    )
    trainer.given = prompts, completions
    return trainer, _scored(trainer, len(completions))


def grpo(case: Case, rows: Rows, directory: str) -> tuple[Any, Any]:
    prompts, completions, rewards = _groups(rows)
    rollout = {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}
    trainer = GRPOTrainer(
        load("policy"),
        _scorer(rewards),
        GRPOConfig(**_sampled(case, len(completions), directory)),
        train_dataset=dataset(prompt="t5"),
        processing_class=tokenizer(),
        rollout_func=lambda prompts, trainer: dict(rollout),
    )
    return trainer, _scored(trainer, len(completions))


def _groups(rows: Rows) -> tuple[list[list[int]], list[list[int]], list[float]]:
    prompts = [r["prompt"] for r in rows for _ in r["completions"]]
    return prompts, [c for r in rows for c in r["completions"]], [x for r in rows for x in r["rewards"]]


def _scorer(rewards: list[float]) -> Callable[..., list[float]]:
    def given(**_: Any) -> list[float]:
        return rewards

    return given


def _sampled(case: Case, num_rows: int, directory: str) -> dict[str, Any]:
    return arguments(case, num_rows, directory) | {
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "num_iterations": 2,  # with one, TRL takes the policy's own log-probabilities for the old ones
    }


def _scored(trainer: Any, num_rows: int) -> Any:
    """Return TRL's old and reference log-probabilities and advantages of the given completions."""
    if trainer.ref_model is not None:
        trainer.ref_model.load_state_dict(load("reference").state_dict())
    trainer.model.load_state_dict(load("sampler").state_dict())
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": "t5"}] * num_rows)
    trainer.model.load_state_dict(load("policy").state_dict())
    trainer.current_gradient_accumulation_steps = 1
    return inputs


TRAINERS = {"sft": sft, "dpo": dpo, "cpo": cpo, "kto": kto, "reward": reward, "rloo": rloo, "grpo": grpo}


# ------------------------------------------------------------------------------------------------ values


def value(case: Case, rows: Rows) -> dict[str, float]:
    assert case.trainer is not None
    with tempfile.TemporaryDirectory() as directory:
        trainer, inputs = TRAINERS[case.trainer](case, rows, directory)
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
    squares = [p.grad.double().square().sum() for p in trainer.model.parameters() if p.grad is not None]
    return {"loss": loss.item(), "grad_norm": float(torch.stack(squares).sum().sqrt())}


def main() -> None:
    torch.set_num_threads(1)
    write_models()
    compared = [case for case in CASES if case.trainer is not None]
    kinds = sorted({case.rows for case in compared})
    batches = {kind: [draw(kind, seed) for seed in SEEDS] for kind in kinds}
    values = {}
    for case in compared:
        values[case.name] = [value(case, rows) for rows in batches[case.rows]]
        print(case.name, values[case.name], flush=True)
    packages = ("trl", "transformers", "torch", "numpy")
    found = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "batches": batches,
        "values": values,
    }
    (HERE / "trl_values.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
