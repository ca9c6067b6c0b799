"""TRL's side of the benchmarks: its own trainers, through their public interface, as a long-lived worker.

It runs in TRL's own environment (`requirements/trl.txt`) and answers the requests of `protocol.py`. Two subclasses only
add clocks and counters.

The behaviour of TRL 1.16 with transformers 5.19, from its source and from runs; the other side must do the same work:

Both trainers
- `use_cpu=True` is required: without it the default `bf16=True` does not start on a machine without a GPU. With it, the
  default on CPU is bfloat16 autocast over float32 weights (variant `default-bf16`). The equal-work variants set
  `bf16=False`; weights are float32 in all variants.
- Optimizer: `torch.optim.AdamW(fused=True)`, eps 1e-8, weight decay 0 (TRL's defaults; betas 0.9 and 0.999 unless the
  workload says otherwise). Gradients are clipped at norm 1; `grad_norm` is logged before clipping. The default
  schedule is linear to zero over the run without warm-up; we set `lr_scheduler_type="constant"`.
- `gradient_checkpointing=True` is the default: one more forward pass of the body per step.
- Log-probabilities come from `ChunkedLogProbFunction`: tiles of 4,096 tokens by 32,768 words, float32, recomputed in
  the backward. On a GPU only completion positions go through it; **on CPU all positions of the padded rectangle do**
  (`_use_triton` is false), prompts and padding included. It also computes entropy, mean logit and top-1 accuracy.
- Rows are padded to the longest of the micro-batch; `pad_to_multiple_of="auto"` adds no more padding on CPU.
- Attention is SDPA with a padding mask.

DPOTrainer
- Text (not conversational): the end token is appended to chosen and rejected if missing; prompt, prompt + chosen and
  prompt + rejected are each tokenised as one string with special tokens (with a BOS if the tokenizer adds one; ours
  adds none), and the completion begins where the token lists diverge. Rows over `max_length` (1024) are truncated at
  the end (`keep_start`); a row whose prompt fills it is dropped. The workload has no such row.
- The order is random by default; `train_sampling_strategy="sequential"` is file order. Chosen rows come first, then
  rejected ones, in one right-padded forward pass of 2 x batch rows.
- Loss: mean over pairs of -logsigmoid(0.1 * ((c - c_ref) - (r - r_ref))) with sums over completion tokens, end token
  included. Gradient accumulation takes the mean of equal micro-batches: the same number. Dropout is disabled.
- The reference is a second copy with one forward pass per step, without gradient checkpointing, on the same
  micro-batches; `precompute_ref_log_probs` replaces it by one pass over the data in the constructor (`cache_s`).

GRPOTrainer
- Prompts are tokenised with special tokens, left-padded, passed to `generate` in one batch of all samples of the step
  with the KV cache (temperature 1, top_p 1, no top_k), and truncated after the first end token. `RepeatSampler` repeats
  each prompt `num_generations` times; the order is random by default, `shuffle_dataset=False` is file order.
- The defaults are one prompt x 8 samples per update; the workload's update has more prompts, so `default` keeps the
  micro-batch of 8 and accumulates gradients (`steps_per_generation` follows: still one generation per update).
- Advantage: (reward - mean of the group) / (standard deviation of the group, with Bessel's correction, + 1e-4).
- Loss type `dapo` (default): sum over all completion tokens of -min(r A, clip(r, 0.8, 1.2) A), divided by the number of
  completion tokens of the whole batch of the update (end token counted, all micro-batches together). `beta=0`: no
  reference. One update per batch: the old log-probabilities are the new ones detached, without an extra forward pass,
  so r = 1.
- `generation_kwargs={"min_new_tokens": n}` with `max_completion_length=n` fixes the length (the end token is
  forbidden).
- Samples of a step are shuffled among micro-batches before the update: no effect on the sums.

Settings tried for the best variant on CPU
- DPO micro-batches of one pair with accumulation: same loss, 1.4 times fewer padded tokens, half the memory: used.
- `gradient_checkpointing=False`: same loss, about a tenth less time: used. `precompute_ref_log_probs`: used.
- `padding_free=True`: 1.16 warns, "temporarily unavailable", and pads: no gain. Liger and FlashAttention need a GPU.
  `group_by_length` gives other batches, so other losses; with micro-batches of one pair it has nothing to save.
- bfloat16 autocast: other losses (0.2 % at the second step of DPO), so not equal work; optional variants. It takes a
  sixth less CPU time on DPO, more on the letters.
- `use_vllm=True` is the other side's engine: excluded by the definition of the benchmark.
- GRPO micro-batches of 4 to 128 samples without gradient checkpointing: the whole batch of 128 is twice as fast as the
  default on the letters; on `grpo-long` 8 to 32 are equally fast and 8 takes the least memory; on `grpo-mixed` 2 and 4
  are the fastest, 32 is a third slower (`BEST_MICRO_BATCH`).
- `torch_compile=True` works on CPU, but compiles for minutes at every new shape, with no faster steps: not used.
- Two threads are faster than one on two free cores (letters 0.31 against 0.47 s per step) and 5 to 50 times slower when
  another process takes one of the cores, because the OpenMP runtime spins while it waits. `OMP_WAIT_POLICY=PASSIVE`
  avoids that and costs 20 to 40 % on free cores: the default is kept, and disturbed rounds are not counted.
- `cache_implementation="static"`: same samples, no gain on CPU (generation is never compiled: `disable_compile=True`).
- `use_transformers_continuous_batching=True` starts on CPU and is about 70 times slower (22 s per batch, 12 GB).
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from benchmarks.protocol import Meter, serve
from benchmarks.workloads import REWARDS, load_settings, read_rows

DPO_BEST = {
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "precompute_ref_log_probs": True,
}
GRPO_DEFAULT = {"per_device_train_batch_size": 8}
GRPO_BEST = {"gradient_checkpointing": False}
BEST_MICRO_BATCH = {"grpo-letters": 128, "grpo-long": 8, "grpo-mixed": 4}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "dpo": {"default": {}, "best": DPO_BEST, "default-bf16": {"bf16": True}, "best-bf16": {**DPO_BEST, "bf16": True}},
    "grpo": {
        "default": GRPO_DEFAULT,
        "best": GRPO_BEST,
        "default-bf16": {**GRPO_DEFAULT, "bf16": True},
        "best-bf16": {**GRPO_BEST, "bf16": True},
    },
}
PACKAGES = ("trl", "transformers", "torch", "accelerate", "datasets", "numpy")


def hello(request: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(request["cores"])
    return {
        "side": "trl",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cores": f"one process with {request['cores']} torch threads",
        "variants": {
            kind: {name: _described(settings) for name, settings in variants.items()}
            for kind, variants in VARIANTS.items()
        },
    }


def _described(settings: dict[str, Any]) -> dict[str, Any]:
    other_dtype = "bf16" in settings
    shown = {"bf16": False} | settings
    if "gradient_checkpointing" in settings and "per_device_train_batch_size" not in settings:
        shown |= {"per_device_train_batch_size": f"the fastest for each workload ({BEST_MICRO_BATCH})"}
    about = "TRL's defaults except " + ", ".join(f"{key}={value}" for key, value in shown.items())
    return {"about": about, "same_work": not other_dtype, "optional": other_dtype}


class StepClock(TrainerCallback):
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._meter.step_begins()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._meter.step_ends()


def _common_arguments(settings: dict[str, Any], output_dir: str, steps: int) -> dict[str, Any]:
    return {
        "output_dir": output_dir,
        "max_steps": steps,
        "use_cpu": True,
        "bf16": False,
        "seed": settings["seed"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "adam_beta1": settings["adam_betas"][0],
        "adam_beta2": settings["adam_betas"][1],
        "adam_epsilon": settings["adam_eps"],
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "beta": settings["beta"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _curves(trainer: DPOTrainer | GRPOTrainer) -> dict[str, list[float]]:
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": [entry["loss"] for entry in steps], "grad_norms": [entry["grad_norm"] for entry in steps]}


# -------------------------------------------------------------------------------------------------------------- DPO


class TimedDPOTrainer(DPOTrainer):
    """A `DPOTrainer` that times the building of its cache of reference log-probabilities."""

    cache_s = 0.0

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        dataset = super()._precompute_ref_logps(*args, **kwargs)
        self.cache_s += time.perf_counter() - begin
        return dataset


def dpo(request: dict[str, Any]) -> dict[str, Any]:
    meter = Meter()
    settings, steps = load_settings(Path(request["workload"])), request["steps"]
    rows = read_rows(Path(settings["data_path"]))[: steps * settings["pairs_per_step"]]
    with tempfile.TemporaryDirectory() as output_dir:
        arguments = _common_arguments(settings, output_dir, steps) | {
            "per_device_train_batch_size": settings["pairs_per_step"],
            "max_length": settings["max_length"],
            "train_sampling_strategy": "sequential",
            **VARIANTS["dpo"][request["variant"]],
        }
        trainer = TimedDPOTrainer(
            model=settings["model_path"],
            args=DPOConfig(**arguments),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(settings["model_path"]),
            callbacks=[StepClock(meter)],
        )
        trainer.train()
    return {
        **meter.result(trainer.cache_s),
        **_curves(trainer),
        "pairs": len(rows),
        "tokens": _dpo_tokens(trainer),
    }


def _dpo_tokens(trainer: DPOTrainer) -> dict[str, int]:
    """Count tokens: a forward pass covers the padded micro-batch; on CPU all its positions but the last are scored."""
    lengths_P2 = [
        (len(row["prompt_ids"]) + len(row["chosen_ids"]), len(row["prompt_ids"]) + len(row["rejected_ids"]))
        for row in trainer.train_dataset
    ]
    size = trainer.args.per_device_train_batch_size
    widths = [max(map(max, lengths_P2[start : start + size])) for start in range(0, len(lengths_P2), size)]
    return {
        "real": sum(map(sum, lengths_P2)),
        "forward": sum(2 * size * width for width in widths),
        "logit_rows": sum(2 * size * (width - 1) for width in widths),
    }


# ------------------------------------------------------------------------------------------------------------- GRPO


class TimedGRPOTrainer(GRPOTrainer):
    """A `GRPOTrainer` that times its generation and counts its tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.generate_s: list[float] = []
        self.tokens = {"prompt": 0, "generated": 0, "forward": 0, "logit_rows": 0}
        super().__init__(*args, **kwargs)

    def _generate(self, prompts: list[str]) -> Any:
        begin = time.perf_counter()
        prompt_ids, completion_ids, *rest = super()._generate(prompts)
        self.generate_s.append(time.perf_counter() - begin)
        self._count(prompt_ids, completion_ids)
        return prompt_ids, completion_ids, *rest

    def _count(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> None:
        """Count tokens: the whole batch is padded at once, prompts on the left and completions on the right."""
        width = max(map(len, prompt_ids)) + max(map(len, completion_ids))
        self.tokens["prompt"] += sum(map(len, prompt_ids))
        self.tokens["generated"] += sum(map(len, completion_ids))
        self.tokens["forward"] += len(prompt_ids) * width
        self.tokens["logit_rows"] += len(prompt_ids) * (width - 1)


def grpo(request: dict[str, Any]) -> dict[str, Any]:
    meter = Meter()
    settings = load_settings(Path(request["workload"]))
    rows = read_rows(Path(settings["data_path"]))[: request["steps"] * settings["prompts_per_step"]]
    tokenizer = AutoTokenizer.from_pretrained(settings["model_path"])
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = TimedGRPOTrainer(
            model=settings["model_path"],
            reward_funcs=REWARDS[settings["reward"]],
            args=GRPOConfig(**_grpo_arguments(settings, request, output_dir)),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            rollout_func=_replay(settings, tokenizer) if request["replay"] else None,
            callbacks=[StepClock(meter)],
        )
        trainer.train()
    return {
        **meter.result(),
        **_curves(trainer),
        "samples": len(rows) * settings["num_generations"],
        "rewards": [entry["reward"] for entry in trainer.state.log_history if "reward" in entry],
        "generate_s": trainer.generate_s,
        "tokens": trainer.tokens,
    }


def _grpo_arguments(settings: dict[str, Any], request: dict[str, Any], output_dir: str) -> dict[str, Any]:
    samples = settings["prompts_per_step"] * settings["num_generations"]
    arguments = _common_arguments(settings, output_dir, request["steps"]) | {
        "seed": request["seed"],
        "per_device_train_batch_size": BEST_MICRO_BATCH[settings["name"]],
        "num_generations": settings["num_generations"],
        "max_completion_length": settings["max_completion_length"],
        "epsilon": settings["epsilon"],
        "temperature": settings["temperature"],
        "shuffle_dataset": False,
        **VARIANTS["grpo"][request["variant"]],
    }
    arguments["gradient_accumulation_steps"] = samples // arguments["per_device_train_batch_size"]
    if settings["min_completion_length"]:
        arguments["generation_kwargs"] = {"min_new_tokens": settings["min_completion_length"]}
    return arguments


def _replay(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Callable[..., dict[str, Any]]:
    """Return a rollout function, TRL's hook for external rollouts, that reads the groups from the file in order."""
    groups = iter(read_rows(Path(settings["replay_path"])))

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        completions = [ids for _ in range(settings["prompts_per_step"]) for ids in next(groups)["completions"]]
        return {"prompt_ids": tokenizer(prompts)["input_ids"], "completion_ids": completions, "logprobs": None}

    return rollout


if __name__ == "__main__":
    datasets.disable_caching()  # otherwise the second request would reuse the first one's reference log-probabilities
    datasets.disable_progress_bars()
    serve({"hello": hello, "dpo": dpo, "grpo": grpo})
