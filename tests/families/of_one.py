"""Table row of one family: both dtypes, DeepSpeed at every ZeRO stage, merged adapters, and export."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.families.judge import (
    CPU,
    TEMPERATURE,
    Verdict,
    compared,
    forward_alone,
    forward_packed,
    judge,
    packed,
    plain_model,
    rows_of,
    weights,
)
from tests.families.judge import refused as refusal
from tests.families.tiny import Unbuildable, write_tiny
from workers.config import LearnerConfig, LoraConfig, ModelConfig, SftConfig
from workers.engines import hf_files, hf_models, hf_packing, lora
from workers.engines.attention import AttentionError
from workers.engines.base import ModelError
from workers.engines.hf_check import check_rows

SFT = SftConfig(type="sft", learning_rate=1e-3)
CLOSE = 2e-4  # nats, float32


STAGES = (0, 1, 2, 3)  # of ZeRO


def row_of(name: str, stages: tuple[int, ...] = STAGES) -> dict[str, Any]:
    """Return the table row of a family: how rows are fed to the model, why, the figures, and what is wrong.

    `rows` is "-" if no small model of the family can be built.
    """
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary, "model")
        try:
            write_tiny(directory, name)
        except Unbuildable as error:
            return {"rows": "-", "why": str(error).removeprefix(f"{name}: "), "wrong": []}
        found = {dtype: _answer(lambda dtype=dtype: judge(directory, dtype)) for dtype in ("float32", "bfloat16")}
        first = found["float32"]
        row: dict[str, Any] = {"rows": first.rows, "why": first.refused, "wrong": []}
        for dtype, verdict in found.items():
            if verdict.rows == "refused" != first.rows:
                row["refused_bfloat16"] = verdict.refused
            elif verdict.rows != first.rows:
                row["wrong"].append(f"{dtype}: {verdict.rows} {verdict.refused}")
            elif verdict.wrong:
                row["wrong"].append(f"{dtype}: {verdict}")
            row[dtype] = figures(verdict)
        if first.rows == "refused":
            return row
        if first.rows == "apart":
            row["why"] = _why_apart(directory)
        row["zero"], wrong = partitioned(directory, stages, dtypes=[d for d in found if found[d].rows != "refused"])
        row["wrong"] += wrong
        for column, adapted in (("export", False), ("lora", True)):
            row[column] = exported(directory, Path(temporary, column), adapted=adapted)
            if row[column].startswith("wrong"):
                row["wrong"].append(f"{column}: {row[column]}")
        return row


def figures(verdict: Verdict) -> str:
    return "refused" if verdict.rows == "refused" else f"{verdict.logprobs:.0e} / {verdict.gradient:.0e}"


def _answer(compute_verdict: Callable[[], Verdict]) -> Verdict:
    """Return the verdict of `compute_verdict`, or a wrong one if it crashes, because a crash is not a refusal."""
    try:
        return compute_verdict()
    except Exception as error:
        return Verdict(rows="packed", logprobs=float("nan"), refused=f"the forward pass fails ({error!r})")


def _why_apart(directory: Path) -> str:
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    model_class = hf_models.auto_class(config)._model_mapping[type(config)]
    return hf_packing.reads_apart(model_class, config) or ""


# ------------------------------------------------------------------------------------------------ DeepSpeed


def partitioned(directory: Path, stages: tuple[int, ...], dtypes: list[str]) -> tuple[str, list[str]]:
    """Return the figures of the worst ZeRO stage in float32, and what is wrong in either dtype.

    If stage 3 is refused, the reason replaces the figures.
    """
    from workers.engines import deepspeed_engine

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    deepspeed_engine.join(rank=0, world_size=1, address="127.0.0.1", port=port, cuda=False)
    worst, wrong = Verdict(rows="packed"), []
    for dtype in dtypes:
        for stage in stages:
            verdict = _answer(lambda dtype=dtype, stage=stage: _at_stage(directory, dtype, stage))
            if verdict.refused and stage == 3:  # by our checks, or because it crashes: the table lists both as refused
                return f"refused: {verdict.refused}", wrong
            if verdict.refused or verdict.wrong:
                wrong.append(f"ZeRO {stage}, {dtype}: {verdict}")
            if dtype == "float32" and not verdict.gradient < worst.gradient:
                worst = verdict
    return figures(worst), wrong


def _at_stage(directory: Path, dtype: str, stage: int) -> Verdict:
    from deepspeed.utils import safe_get_full_grad

    from workers.engines.deepspeed_engine import DeepSpeedEngine

    model = ModelConfig(path=str(directory), dtype=dtype)  # type: ignore[arg-type]
    settings = LearnerConfig(zero_stage=stage, param_persistence_threshold=0, logprob_chunk_tokens=7)  # type: ignore[arg-type]
    try:
        engine = DeepSpeedEngine(model, settings, SFT, head="logprobs", device=CPU, seed=0)
    except ModelError as error:
        return refusal(directory, error)
    logprobs, entropy = engine.forward(packed(rows_of()), TEMPERATURE)
    assert entropy is not None
    engine.backward((logprobs * weights(logprobs)).sum(), last=True)
    gradients = {
        name: gradient
        for name, parameter in engine._module.model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
        and (gradient := parameter.grad if parameter.grad is not None else safe_get_full_grad(parameter)) is not None
    }
    found = compared(directory, dtype, engine.apart, logprobs.detach(), entropy.detach(), gradients)
    engine.free()
    return found


# ------------------------------------------------------------------------------------------------ directories


@torch.no_grad()
def exported(directory: Path, target: Path, *, adapted: bool) -> str:
    """Return the largest difference (nats) between the exported model, loaded by transformers, and its source."""
    from tests.workers.torch_engine import TorchEngine

    try:
        adapters = LoraConfig(r=2, lora_alpha=8) if adapted else None
        engine = TorchEngine(directory, SFT, adapters=adapters)
        check_rows(engine.module, CPU, path=str(directory), longest=100)
        for adapter in engine.adapters.values():  # adapters start at zero, so a lost one would not be noticed
            torch.nn.init.normal_(adapter.up, std=0.1, generator=torch.Generator().manual_seed(1))
        hf_files.export(str(directory), engine.describe_weights(), engine.weights(), target)
    except (ModelError, lora.LoraError, AttentionError) as error:
        return "refused: " + str(error).removeprefix(f"{directory}: ")
    try:
        logprobs, _ = forward_packed(engine.module.eval(), packed(rows_of()))
        expected, _ = forward_alone(plain_model(target, "float32"), rows_of())
    except Exception as error:
        return f"wrong: {type(error).__name__}: {error}"
    gap = float((logprobs - expected).abs().max())
    return f"{gap:.0e}" if gap <= CLOSE else f"wrong: {gap:.1e}"
