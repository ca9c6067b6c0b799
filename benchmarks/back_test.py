"""Compare the planner with published runs.

    python -m benchmarks.back_test      (`make back-test`; seconds) writes the tables of docs/evidence/back_test.md

benchmarks/published_runs.csv contains published figures with their sources. For each run with enough published detail,
this module has the planner's prediction, its assumptions, and the constants that were fitted to the run. Points outside
their bounds are reported like all others.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.worked_example import example_table
from orchestrator.plan.constants import DEFAULT, Constants
from orchestrator.plan.gpus import GPUS
from orchestrator.plan.memory import NAIVE_LOGIT_BYTES, Sharding, logits_bytes, zero_bytes
from orchestrator.plan.models import TABLE, ModelShape
from orchestrator.plan.time import (
    Engine,
    forward_flops,
    generation_s,
    learning_s,
    scoring_s,
    sharded_s,
    throughput,
)

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "benchmarks" / "published_runs.csv"
PAGE = ROOT / "docs" / "evidence" / "back_test.md"
BEGIN, END = "<!-- back-test: make back-test -->", "<!-- end of the back-test -->"
H100, FP8_FLOPS = GPUS["H100"], 1979e12
LLAMA_8B, LLAMA_70B, LLAMA_405B = (TABLE[f"llama-3-{size}"] for size in ("8b", "70b", "405b"))
BOUNDS = {"backtest-train": 0.15, "backtest-e2e": 0.15, "backtest-sync": 0.30, "backtest-decode": 0.30}
EXCEPTIONS = {
    "trtllm-70b-h100-tp8-128-128": "more than 512 sequences were running",
    "vllm-32b-h100": "only about 4 GB are left for the KV cache",
}
ANOTHER_GPU = "another GPU"
SELECTIVE_BYTES = 18  # assumed: per hidden unit, token and layer, with selective checkpointing


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A published figure and the planner's prediction of it."""

    id: str
    kind: str
    what: str
    published: float
    unit: str
    predicted: float
    fitted: str  # constants that were fitted to this point

    @property
    def ratio(self) -> float:
        return self.predicted / self.published

    @property
    def is_outside(self) -> bool:
        bound = BOUNDS.get(self.kind)
        return bound is not None and abs(self.ratio - 1) > bound


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A training run, published as tokens per second and GPU."""

    shape: ModelShape
    context: int
    mfu: float
    flops: float = H100.flops
    fitted: str = "the MFU of this run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """A GRPO step of 2048 completions in groups of 32, at most 4096 tokens each with the prompt.

    The published figure is the mean length of prompt and completion together; prompts of 170 tokens and the spread of
    lengths are assumed."""

    shape: ModelShape
    gpus: int
    tokens: int  # mean length of prompt and completion
    sigma: float  # of the log-normal lengths
    tensor_parallel: int
    split: bool = False  # one step off-policy, with half of the GPUs for each side; False: colocated
    fitted: str = "nothing; lengths and their spread are assumed"


_QWEN_32B = TABLE["qwen3-32b"]
TRAINING: Mapping[str, Training] = {
    "titan-70b-bf16-asynctp": Training(shape=LLAMA_70B, context=8192, mfu=0.32),
    "titan-8b-compile": Training(shape=LLAMA_8B, context=8192, mfu=0.36),
    "mbridge-70b-sft-fp8": Training(shape=LLAMA_70B, context=4096, mfu=0.36, flops=FP8_FLOPS),
    "titan-70b-bf16-vanilla": Training(shape=LLAMA_70B, context=8192, mfu=0.32, fitted="nothing"),
    "mbridge-70b-pretrain-fp8": Training(shape=LLAMA_70B, context=8192, mfu=0.36, flops=FP8_FLOPS, fitted="nothing"),
    "mbridge-405b-pretrain-fp8": Training(shape=LLAMA_405B, context=8192, mfu=0.36, flops=FP8_FLOPS, fitted="nothing"),
}
_SWITCH = "the switch time of 20 s, fitted to this and one other point"
LOOPS: Mapping[str, Loop] = {
    "nemorl-v0_5-llama-3_1-8b-on-16-step": Loop(
        shape=LLAMA_8B, gpus=16, tokens=1019, sigma=0.6, tensor_parallel=1, fitted=_SWITCH
    ),
    "nemorl-v0_5-llama-3_1-8b-1off-16-step": Loop(
        shape=LLAMA_8B, gpus=16, tokens=1123, sigma=0.6, tensor_parallel=1, split=True
    ),
    "nemorl-v0_5-qwen3-32b-on-32-step": Loop(
        shape=_QWEN_32B, gpus=32, tokens=3251, sigma=0.35, tensor_parallel=4, fitted=_SWITCH
    ),
    "nemorl-v0_5-qwen3-32b-1off-64-step": Loop(
        shape=_QWEN_32B, gpus=64, tokens=3252, sigma=0.35, tensor_parallel=4, split=True
    ),
    "nemorl-v0_4-llama-3_1-8b-on-16-step": Loop(shape=LLAMA_8B, gpus=16, tokens=1060, sigma=0.6, tensor_parallel=1),
    "nemorl-v0_4-llama-3_1-8b-1off-16-step": Loop(
        shape=LLAMA_8B, gpus=16, tokens=1129, sigma=0.6, tensor_parallel=1, split=True
    ),
    "nemorl-v0_4-qwen3-32b-on-32-step": Loop(shape=_QWEN_32B, gpus=32, tokens=3206, sigma=0.35, tensor_parallel=4),
    "nemorl-v0_4-qwen3-32b-1off-64-step": Loop(
        shape=_QWEN_32B, gpus=64, tokens=3207, sigma=0.35, tensor_parallel=4, split=True
    ),
}
PROMPT, SAMPLES, GROUP, LONGEST = 170, 2048, 32, 4096
VLLM = {"vllm-7b-h100": TABLE["qwen2.5-7b"], "vllm-32b-h100": _QWEN_32B}


def published() -> list[dict[str, str]]:
    with open(RUNS, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def points() -> list[Point]:
    """Return every published run that the planner can predict."""
    predictable = []
    for row in published():
        match = re.search(r"kind=([\w-]+)", row["note"])
        prediction = _predict(row)
        if prediction is None:
            continue
        predicted, fitted = prediction
        predictable.append(
            Point(
                id=row["id"],
                kind=ANOTHER_GPU if _is_another_gpu(row) else match[1] if match else "",
                what=f"{row['system']}, {row['model']}" + (f", {row['n_gpus']} {row['gpu']}" if row["n_gpus"] else ""),
                published=float(row["value"]),
                unit=row["unit"],
                predicted=predicted,
                fitted=fitted,
            )
        )
    return predictable


def _predict(row: Mapping[str, str]) -> tuple[float, str] | None:
    """Return the prediction in the row's unit, and the constants fitted to it; None if it cannot be predicted."""
    id = row["id"]
    if id in TRAINING:
        run = TRAINING[id]
        return run.flops * run.mfu / (3 * forward_flops(run.shape, run.context)), run.fitted
    if id in LOOPS:
        return loop_s(LOOPS[id]), LOOPS[id].fitted
    if _is_decoding(row):
        return _decoding(row, DEFAULT), "four decoding constants, fitted to these 16 points"
    if _is_another_gpu(row):
        return _decoding(row, DEFAULT), "nothing"
    if id in VLLM:
        engine = Engine(shape=VLLM[id], gpu=H100, tensor_parallel=1)
        return throughput(engine, prompt=100, response=600, batch=256, constants=DEFAULT), "nothing; lengths assumed"
    if id.startswith("sync-") and "kind=backtest-sync" in row["note"]:
        size = re.search(r"sync ([\d.]+) GB", row["workload"])
        assert size is not None, row["workload"]
        return sharded_s(float(size[1]) * 1e9, DEFAULT), "latency and bandwidth, fitted to these 6 points"
    if id == "titan-8b-fsdp-mem":
        return memory_8b() / 2**30, "nothing; the factor of selective checkpointing is assumed"
    if "kind=backtest-ratio" in row["note"]:
        return 3.0, "nothing: a backward pass costs two forward passes"
    if id in ("tulu3-70b-dpo", "tulu3-8b-dpo"):
        return floor_h(id), "nothing; 1000 tokens per pair and an efficiency of 0.40 are assumed"
    return None


def _is_decoding(row: Mapping[str, str]) -> bool:
    return row["id"].startswith("trtllm-") and "kind=backtest-decode" in row["note"]


def _is_another_gpu(row: Mapping[str, str]) -> bool:
    """Return True for decoding on A100, from the publication of the fitted points; nothing was fitted to it."""
    return row["id"].startswith("trtllm-70b-a100-")


def _decoding(row: Mapping[str, str], constants: Constants) -> float:
    """Return the tokens per second of the row's TensorRT-LLM engine, always full."""
    gpu = GPUS["A100-80"] if row["gpu"] == "A100" else H100
    engine = Engine(shape=LLAMA_70B, gpu=gpu, tensor_parallel=int(row["n_gpus"]))
    prompt, response = float(row["prompt_tokens"]), float(row["response_tokens"])
    return throughput(engine, prompt=prompt, response=response, constants=constants)


def loop_s(loop: Loop) -> float:
    """Return the step time: the sum of all phases and the switch if colocated, else the longer side and publish."""
    constants = replace(DEFAULT, length_sigma=loop.sigma)
    response, tokens = float(loop.tokens - PROMPT), float(SAMPLES * loop.tokens)
    gpus = loop.gpus // 2 if loop.split else loop.gpus
    generate = generation_s(
        Engine(shape=loop.shape, gpu=H100, tensor_parallel=loop.tensor_parallel, utilization=0.85),
        sequences=math.ceil(SAMPLES / (gpus // loop.tensor_parallel)),
        prompt=float(PROMPT),
        response=response,
        longest=LONGEST - PROMPT,
        group=GROUP,
        constants=constants,
    )
    context = float(loop.tokens)
    learn = learning_s(loop.shape, H100, tokens=tokens, context=context, gpus=gpus, constants=constants)
    score = 2 * scoring_s(loop.shape, H100, tokens=tokens, context=context, gpus=gpus, constants=constants)
    if loop.split:
        return max(generate, score + learn) + constants.colocated_publish_s
    return generate + score + learn + constants.colocated_publish_s + constants.switch_s


def memory_8b() -> float:
    """Return the bytes per GPU of Llama 3.1 8B on 8 GPUs: 2 x 8192 tokens, whole logits, selective checkpointing."""
    tokens = 2 * 8192
    states, _ = zero_bytes(
        LLAMA_8B.num_params, Sharding(ranks=8, zero_stage=3), trained=LLAMA_8B.num_params, offload=False
    )
    activations = SELECTIVE_BYTES * LLAMA_8B.hidden * LLAMA_8B.layers * tokens
    return states + activations + logits_bytes(tokens, LLAMA_8B.vocab, NAIVE_LOGIT_BYTES)


def floor_h(id: str) -> float:
    """Return the hours of Tulu 3's offline DPO at an efficiency of 0.40, with cached reference log-probabilities."""
    shape, gpus, pairs = (LLAMA_70B, 64, 334302) if id == "tulu3-70b-dpo" else (LLAMA_8B, 8, 271409)
    return (
        learning_s(shape, H100, tokens=pairs * 1000.0 * 4 / 3, context=500, gpus=gpus, constants=DEFAULT, mfu=0.40)
        / 3600
    )  # learning costs three forward passes, the reference one: 4/3


# ------------------------------------------------------------------------------------------------ held out


def cross_fit() -> dict[str, list[float]]:
    """Return the ratios of each half of the 16 decoding points, with the constants fitted to the other half.

    The halves are engines of 4 and of 8 GPUs. The ratios estimate the error on engines that were not fitted."""
    rows = [row for row in published() if _is_decoding(row)]
    halves = {tp: [row for row in rows if row["n_gpus"] == tp] for tp in ("4", "8")}
    return {
        f"fitted to {fitted} GPUs per engine, {held} held out": _ratios(halves[held], _fit(halves[fitted]))
        for fitted, held in (("4", "8"), ("8", "4"))
    }


def _ratios(rows: Sequence[Mapping[str, str]], constants: Constants) -> list[float]:
    return [_decoding(row, constants) / float(row["value"]) for row in rows]


def _fit(rows: Sequence[Mapping[str, str]]) -> Constants:
    """Return the grid point with the smallest sum of squared log ratios."""
    grid = itertools.product(
        (0.5, 0.55, 0.6, 0.65, 0.7, 0.8), (0.5, 0.6, 0.7, 0.8), (0.45, 0.55, 0.65), (40, 60, 80, 100, 120)
    )
    candidates = (
        replace(DEFAULT, decode_mbu=mbu, decode_mfu=mfu, prefill_mfu=prefill, sequence_s=us * 1e-6)
        for mbu, mfu, prefill, us in grid
    )
    return min(candidates, key=lambda c: sum(math.log(r) ** 2 for r in _ratios(rows, c)))


# ------------------------------------------------------------------------------------------------ the page


def tables() -> str:
    every = points()
    return "\n".join([*_summary(every), "", *_table(every), "", *example_table()])


def _summary(every: Sequence[Point]) -> Iterator[str]:
    names = {
        "backtest-train": "training",
        "backtest-e2e": "whole steps",
        "backtest-sync": "weight transfer",
        "backtest-decode": "decoding",
        ANOTHER_GPU: "decoding on A100",
        "backtest-extra": "compared only after fitting",
        "backtest-ratio": "training time / scoring time",
        "backtest-memory": "memory",
        "floor": "slow systems, compared with a lower bound",
    }
    yield "| kind | points | median of \\|ratio − 1\\| | ratios | bound | outside |"
    yield "|---|--:|--:|---|--:|--:|"
    for kind, name in names.items():
        own = [p for p in every if p.kind == kind]
        ratios = [p.ratio for p in own]
        bound = f"±{BOUNDS[kind]:.0%}" if kind in BOUNDS else "none"
        outside = sum(p.is_outside for p in own)
        error = statistics.median(abs(r - 1) for r in ratios)
        yield f"| {name} | {len(own)} | {error:.1%} | {min(ratios):.2f} – {max(ratios):.2f} | {bound} | {outside} |"
    yield ""
    yield f"Median over training, whole steps and weight transfer: {median_error(every):.1%}."
    yield ""
    yield "Decoding, with the constants fitted to one half and the other half held out:"
    yield ""
    for name, ratios in cross_fit().items():
        error = statistics.median(abs(r - 1) for r in ratios)
        yield f"- {name}: ratios {min(ratios):.2f} – {max(ratios):.2f}, median of |ratio − 1| {error:.1%}"


def median_error(every: Sequence[Point]) -> float:
    kinds = ("backtest-train", "backtest-e2e", "backtest-sync")
    return statistics.median(abs(p.ratio - 1) for p in every if p.kind in kinds)


def _table(every: Sequence[Point]) -> Iterator[str]:
    yield "| run | predicted | published | ratio | fitted constants |"
    yield "|---|--:|--:|--:|---|"
    order = (*BOUNDS, ANOTHER_GPU, "backtest-extra", "backtest-ratio", "backtest-memory", "floor")
    for point in sorted(every, key=lambda p: order.index(p.kind)):
        outside = f" **outside**: {EXCEPTIONS.get(point.id, 'unknown reason')}" if point.is_outside else ""
        yield (
            f"| {point.what} `{point.id}` | {point.predicted:.4g} | {point.published:.4g} {point.unit} | "
            f"{point.ratio:.2f} | {point.fitted}{outside} |"
        )


def main() -> None:
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
