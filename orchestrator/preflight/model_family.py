"""Check that a model's family supports what the recipe does with it. workers/families.json has the measurements."""

from __future__ import annotations

from orchestrator.config.run import RunConfig
from orchestrator.data.sources import local
from orchestrator.errors import Problems
from orchestrator.preflight.model_files import config_of, positive_int, read_json
from workers.config import ModelScorerConfig, Sampled
from workers.families import Family, family_of
from workers.positions import unstretched_positions_of

EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")  # the keys that vLLM reads
SUPPORTED = "docs/families.md lists the supported families"


def check_family(path: str, where: str, problems: Problems) -> None:
    """Refuse a model whose family cannot be trained here, neither with packed nor with single rows."""
    family = _family(path)
    if family is not None and family.rows == "refused":
        fix = f"give a model of another family; {SUPPORTED}"
        problems.add(f"models of type {family.name} are not supported", where=where, why=family.why, fix=fix)


def check_precision(path: str, where: str, problems: Problems) -> None:
    """Refuse a quantised model: its weights have no gradients, and engines take no new ones."""
    quantised = (read_json(local(path) / "config.json") or {}).get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        problems.add(
            f"its weights are quantised{f' ({method})' if method else ''}",
            where=where,
            why="config.json has a quantization_config, and quantised weights cannot be trained or compared here",
            fix="give the model in float32 or bfloat16: the one that it was quantised from, or a dequantised copy",
        )


def check_evaluated(path: str, where: str, problems: Problems) -> None:
    """Refuse a model to evaluate if its family is not supported here or by vLLM."""
    check_family(path, where, problems)
    family = _family(path)
    if family is not None and family.engine:
        what, fix = f"vLLM cannot be used with models of type {family.name}", "evaluate a model of another family"
        problems.add(what, where=where, why=family.engine, fix=fix)


def check_use(config: RunConfig, key: str, path: str, where: str, problems: Problems) -> None:
    """Refuse a model whose family does not support how the recipe uses it.

    Args:
        key: key of the recipe that names the model.
        path: directory with its config.json.
    """
    if _is_sampled_from(config, key):
        _check_rotary_scaling(config, path, where, problems)
    family = _family(path)
    if family is None or family.rows == "refused":
        return
    models, has_adapters = f"models of type {family.name}", key == "model" and config.model.lora is not None
    if _is_sampled_from(config, key):
        _check_engine(config, family, has_adapters, path, where, problems)
    if has_adapters and family.lora:
        fix = f"train all weights (no model.lora), or name other target_modules; {SUPPORTED}"
        problems.add(f"{models} do not support all adapters", where="model.lora", why=family.lora, fix=fix)
    if family.bfloat16 and (dtype := _bfloat16_setting(config, key)):
        fix = f"set {dtype} to float32; {SUPPORTED}"
        problems.add(f"{models} are not supported in bfloat16", where=dtype, why=family.bfloat16, fix=fix)
    for setting in _zero3_settings(config, key) if family.zero3 else ():
        lower = 2 if setting.startswith(("policy", "critic")) else 0
        fix = f"set it to {lower}; {SUPPORTED}"
        problems.add(f"{models} cannot be partitioned", where=f"{setting} = 3", why=family.zero3, fix=fix)


def unmeasured_remark(config: RunConfig) -> str | None:
    """Return a remark on a policy whose family was not measured; None: it was."""
    path = config.model.path
    model = read_json(local(path) / "config.json") if path is not None else None
    if model is None or "model_type" not in model or family_of(model) is not None:
        return None
    return (
        f"model.path = {path}: models of type {model['model_type']} were not measured (docs/families.md); every rank "
        "compares packed rows with the model's own forward pass at the start, and stops if they differ"
    )


def unpacked_remark(config: RunConfig) -> str | None:
    """Return a remark on the cost of a policy that cannot take packed rows; None: it can."""
    family = _family(config.model.path) if config.model.path is not None else None
    if family is None or family.rows != "apart":
        return None
    algorithm, on_prompts = config.algorithm, config.data.prompts is not None
    in_dataset_row = 2 if algorithm.needs.row == "pair" else 1
    count = algorithm.num_generations if on_prompts and isinstance(algorithm, Sampled) else in_dataset_row
    cost = f"each prompt is computed {count} times, once per completion" if count > 1 else "micro-batches are padded"
    models = f"models of type {family.name} cannot take packed rows"
    return f"model.path = {config.model.path}: {models} ({family.why}): {cost}"


def _family(path: str) -> Family | None:
    return family_of(read_json(local(path) / "config.json") or {})


def _is_sampled_from(config: RunConfig, key: str) -> bool:
    """Return whether the engines hold the model of `key`: the policy, or a teacher whose completions are trained on."""
    return bool(config.data.answered) and key == ("teacher.model" if config.algorithm.teacher_samples else "model")


def _bfloat16_setting(config: RunConfig, key: str) -> str | None:
    """Return the setting that loads the model of `key` in bfloat16; None: it is loaded in another dtype."""
    if key == "teacher.model" and config.teacher is not None:
        return "teacher.model.dtype" if config.teacher.model.dtype == "bfloat16" else None
    if key.startswith("reward."):
        reward = config.reward[int(key.removeprefix("reward."))]
        return f"{key}.dtype" if isinstance(reward, ModelScorerConfig) and reward.dtype == "bfloat16" else None
    return "model.dtype" if config.model.dtype == "bfloat16" else None


def _zero3_settings(config: RunConfig, key: str) -> list[str]:
    """Return the settings by which roles partition the model of `key` (ZeRO stage 3)."""
    stages: list[tuple[str, int]] = []
    if key == "model":
        stages.append(("policy.zero_stage", config.policy.zero_stage))
    if config.algorithm.needs_reference and key == ("model" if config.reference.path is None else "reference"):
        stages.append(("reference.zero_stage", config.reference.zero_stage))
    if config.algorithm.needs.critic and key == ("critic_model" if config.critic_model else "model"):
        owner, settings = ("critic", config.critic) if config.critic else ("policy", config.policy)
        stages.append((f"{owner}.zero_stage", settings.zero_stage))
    if key == "teacher.model" and config.teacher is not None:
        stages.append(("teacher.zero_stage", config.teacher.zero_stage))
    return list(dict.fromkeys(setting for setting, stage in stages if stage == 3))


def _check_rotary_scaling(config: RunConfig, path: str, where: str, problems: Problems) -> None:
    """Check that no text is so long that the engine and the learner would scale its rotary positions differently."""
    model = read_json(local(path) / "config.json")
    limit = None if model is None else unstretched_positions_of(model)
    tokens = config.rollout.max_prompt_length + config.rollout.max_completion_length
    if limit is not None and tokens > limit:
        problems.add(
            f"texts of up to {tokens} tokens: the rotary positions of {path} depend on the length beyond {limit}",
            where=where,
            why="beyond it the model scales positions by the length of each text, and vLLM by the maximum length",
            fix=f"set rollout.max_prompt_length + rollout.max_completion_length to at most {limit}",
        )


def _check_engine(
    config: RunConfig, family: Family, has_adapters: bool, path: str, where: str, problems: Problems
) -> None:
    """Check that vLLM can sample from the family. `has_adapters`: adapters are published, not all weights."""
    on_cpu = config.cluster.device == "cpu" and any(positive_int(config_of(path), key) for key in EXPERTS)
    no_adapters = family.engine_lora or (family.engine_lora_cpu if on_cpu else "")
    if family.engine and (no_adapters or not has_adapters):
        fix = "use a method without sampling (offline dpo, kto, sft, reward_model), or a model of another family"
        what = f"vLLM cannot be used with models of type {family.name}"
        problems.add(what, where=where, why=family.engine, fix=fix)
    elif has_adapters and no_adapters:
        fix = "remove it (all weights are then published), or use a method without sampling"
        what = f"vLLM does not support adapters for models of type {family.name}"
        problems.add(what, where="model.lora", why=no_adapters, fix=fix)
