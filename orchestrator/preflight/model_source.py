"""Whether a model directory holds what a recipe wants of it: one that writes text, or one that scores it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.config.run import RunConfig
from orchestrator.data.sources import local
from orchestrator.errors import Problems
from orchestrator.preflight.model_files import (
    config_of,
    has_no_end,
    highest_token,
    read_json,
    tensors,
    tokenizer_digest,
    whole_number,
)
from workers.config import DistillConfig, ModelRewardConfig
from workers.families import Family, family_of
from workers.needs import NEEDS
from workers.positions import positions_of, unstretched_positions_of
from workers.vocabulary import first_difference, read_vocabulary

SCORER = "ForSequenceClassification"
SCORE_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")  # their names in transformers


def check_scorer(path: str, where: str, problems: Problems) -> None:
    """A reward model: a directory of a sequence-classification model with one label."""
    if (config := config_of(path)) is None:
        return
    named = [str(name) for name in config.get("architectures") or ()]
    fix = "give a model that `type: reward_model` or TRL's RewardTrainer made, or another with one label"
    if not any(name.endswith(SCORER) for name in named):
        why = f"it is a {', '.join(named) or 'model of no named kind'}, and a reward model is a …{SCORER}"
        problems.add("not a reward model", where=where, why=why, fix=fix)
    elif (labels := _labels(config)) != 1:
        why = f"it has {labels} labels, and a reward is one number"
        problems.add("not a reward model", where=where, why=why, fix=fix)
    else:
        for name, shape in tensors(path).items():
            if name.endswith(SCORE_HEADS) and shape[:1] != (1,):
                wanted = (1, *shape[1:])
                why = f"{name} has the shape {list(shape)}, and one number per text takes {list(wanted)}"
                problems.add("the weights do not fit config.json", where=where, why=why, fix=fix)


def check_writer(path: str, where: str, problems: Problems) -> None:
    """A language model: its output layer would be made up if it were a reward model."""
    config = config_of(path)
    if config is not None and any(str(name).endswith(SCORER) for name in config.get("architectures") or ()):
        fix = "give a causal language model; a reward model goes to `reward: [{type: model, path: …}]`"
        problems.add("a reward model writes no text", where=where, why="it has no language-model head", fix=fix)


def check_same_tokens(path: str, other: str, where: str, problems: Problems) -> None:
    """A critic reads the policy's tokens, so both must have the same vocabulary."""
    fix = "give a model with the policy's tokenizer; a reward model may have another one: it reads text"
    mine, its = (whole_number(config_of(p), "vocab_size") for p in (path, other))
    if mine is not None and its is not None and mine != its:
        why = f"it has a vocabulary of {mine} tokens and the policy one of {its}: the critic reads the policy's tokens"
        problems.add("another vocabulary", where=where, why=why, fix=fix)
        return
    ours, theirs = (read_vocabulary(local(p)) for p in (other, path))
    if ours and theirs and (difference := first_difference(ours, theirs)):
        digests = f"{tokenizer_digest(path)} and the policy's {tokenizer_digest(other)}"
        why = f"{difference} (its tokenizer is {digests}), and the critic reads the policy's tokens"
        problems.add("another tokenizer than the policy's", where=where, why=why, fix=fix)


def check_tokenizer(path: str, where: str, problems: Problems, *, writes: bool) -> None:
    """Every token has a row in the model, and a text has an end."""
    rows, last = whole_number(config_of(path), "vocab_size"), highest_token(path)
    if rows is not None and last is not None and last[0] >= rows:
        problems.add(
            "the tokenizer is another model's",
            where=where,
            why=f"its token {last[1]!r} has the number {last[0]}, and config.json has a vocab_size of {rows} "
            f"(the tokenizer is {tokenizer_digest(path)})",
            fix="copy the tokenizer that belongs to these weights, or resize the model's embeddings",
        )
    if writes and has_no_end(path):
        problems.add(
            "the tokenizer has no end-of-sequence token",
            where=where,
            why="no completion would ever stop by itself, and none could be taught to",
            fix="set eos_token in its tokenizer_config.json",
        )


def check_parallel(path: str, size: int, problems: Problems) -> None:
    """The heads of a layer are shared out among the GPUs of one engine, each as many."""
    config = config_of(path)
    heads, groups = (whole_number(config, key) for key in ("num_attention_heads", "num_key_value_heads"))
    if heads is None:
        return
    groups = groups or heads
    good = [n for n in range(1, heads + 1) if heads % n == 0 and (groups % n == 0 or n % groups == 0)]
    if size not in good:
        of = f"{heads} attention heads" + (f" and {groups} key-value heads" if groups != heads else "")
        problems.add(
            f"{of} of {path} cannot be shared out among {size} GPUs",
            where=f"rollout.tensor_parallel_size = {size}",
            why="each GPU of an engine takes as many",
            fix=f"give one of {', '.join(map(str, good))}",
        )


def check_positions(config: RunConfig, key: str, path: str, where: str, problems: Problems) -> None:
    """No sequence is longer than the model of `key` was built for. `path`: where its config.json is; a stage hands on
    the positions of the model it began with."""
    if (limit := _positions(path)) is None:
        return
    for tokens, told, before in _longest(config, key):
        if tokens > limit:
            name = told.split(" ")[-2]
            fix = f"set {name} to {limit - before}" if limit > before else "lower both"
            problems.add(
                f"{told}: {tokens} tokens are more than the {limit} positions of {path}",
                where=where,
                why="the engine refuses longer sequences, and beyond its last position a model only guesses",
                fix=f"{fix}, or give a model with more positions",
            )


def _longest(config: RunConfig, key: str) -> Iterator[tuple[int, str, int]]:
    """Tokens that a sequence of this model may have, the settings that say so, and what all but the last of them take.
    A row of a dataset is cut where the policy's positions end, so only a length that was asked for is held against
    them."""
    rollout, data = config.rollout, config.data
    if key.startswith("reward."):
        reward = config.reward[int(key.removeprefix("reward."))]
        if isinstance(reward, ModelRewardConfig) and "max_length" in reward.model_fields_set:
            yield reward.max_length, f"{key}.max_length {reward.max_length}", 0
        return
    if data.prompts is not None or (key == "model" and data.answered):
        prompt, completion = rollout.max_prompt_length, rollout.max_completion_length
        told = f"rollout.max_prompt_length {prompt} + rollout.max_completion_length {completion}"
        yield prompt + completion, told, prompt
    if data.dataset is not None and (key != "model" or "max_length" in data.model_fields_set):
        cut = data.max_length if key == "model" else _positions(config.model.path or "") or data.max_length
        yield min(data.max_length, cut), f"data.max_length {data.max_length}", 0


def _positions(path: str) -> int | None:
    config = read_json(local(path) / "config.json")
    return None if config is None else positions_of(config)


def _family(path: str) -> Family | None:
    return family_of(read_json(local(path) / "config.json") or {})


EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")  # as vLLM looks for them
KNOWN = "docs/families.md has the families that are right"


def check_family(path: str, where: str, problems: Problems) -> None:
    """A model whose family is known to be right neither packed nor apart is refused by name."""
    family = _family(path)
    if family is not None and family.rows == "refused":
        fix = f"give a model of another family; {KNOWN}"
        problems.add(f"models of type {family.name} are not supported", where=where, why=family.why, fix=fix)


def check_precision(path: str, where: str, problems: Problems) -> None:
    """Weights that are quantised have no gradients, and no engine takes new ones of them."""
    quantised = (read_json(local(path) / "config.json") or {}).get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        problems.add(
            f"its weights are quantised{f' ({method})' if method else ''}",
            where=where,
            why="config.json has a quantization_config, and what is trained or compared here are whole weights",
            fix="give the model in float32 or bfloat16: the one that it was quantised from, or a dequantised copy",
        )


def check_evaluated(path: str, where: str, problems: Problems) -> None:
    """A model that is only sampled from is refused by name where its family is not supported, or not by vLLM."""
    check_family(path, where, problems)
    family = _family(path)
    if family is not None and family.engine:
        what, fix = f"vLLM cannot be used with models of type {family.name}", "evaluate a model of another family"
        problems.add(what, where=where, why=family.engine, fix=fix)


def check_use(config: RunConfig, key: str, path: str, where: str, problems: Problems) -> None:
    """A model whose family is known not to be right as the recipe wants it is refused by name. `key`: where the recipe
    names it; `path`: where its config.json is."""
    if _sampled_from(config, key):
        _check_stretched(config, path, where, problems)
    family = _family(path)
    if family is None or family.rows == "refused":
        return
    what, adapted = f"models of type {family.name}", key == "model" and config.model.lora is not None
    if _sampled_from(config, key):
        _check_engine(config, family, adapted, path, where, problems)
    if adapted and family.lora:
        fix = f"train all weights (no model.lora), or name other target_modules; {KNOWN}"
        problems.add(f"{what} cannot have all adapters", where="model.lora", why=family.lora, fix=fix)
    if family.bfloat16 and (dtype := _in_bfloat16(config, key)):
        fix = f"set {dtype} to float32; {KNOWN}"
        problems.add(f"{what} are not supported in bfloat16", where=dtype, why=family.bfloat16, fix=fix)
    for setting in _partitioned(config, key) if family.zero3 else ():
        lower = 2 if setting.startswith(("policy", "critic")) else 0
        fix = f"set it to {lower}; {KNOWN}"
        problems.add(f"{what} cannot be partitioned", where=f"{setting} = 3", why=family.zero3, fix=fix)


def _in_bfloat16(config: RunConfig, key: str) -> str | None:
    """The setting that loads the model of `key` in bfloat16; None: it is not, or elsewhere."""
    if key == "teacher.model" and config.teacher is not None:
        return "teacher.model.dtype" if config.teacher.model.dtype == "bfloat16" else None
    if key.startswith("reward."):
        reward = config.reward[int(key.removeprefix("reward."))]
        return f"{key}.dtype" if isinstance(reward, ModelRewardConfig) and reward.dtype == "bfloat16" else None
    return "model.dtype" if config.model.dtype == "bfloat16" else None


def _partitioned(config: RunConfig, key: str) -> list[str]:
    """The settings by which a role takes the model of `key` apart, at ZeRO stage 3."""
    held: list[tuple[str, int]] = []
    if key == "model":
        held.append(("policy.zero_stage", config.policy.zero_stage))
        if config.algorithm.needs_reference:
            held.append(("reference.zero_stage", config.reference.zero_stage))
    if NEEDS[config.algorithm.type].critic and key == ("critic_model" if config.critic_model else "model"):
        owner, settings = ("critic", config.critic) if config.critic else ("policy", config.policy)
        held.append((f"{owner}.zero_stage", settings.zero_stage))
    if key == "teacher.model" and config.teacher is not None:
        held.append(("teacher.zero_stage", config.teacher.zero_stage))
    return list(dict.fromkeys(setting for setting, stage in held if stage == 3))


def _check_stretched(config: RunConfig, path: str, where: str, problems: Problems) -> None:
    """Texts that the engine and the learner would read by different rotary positions."""
    told = read_json(local(path) / "config.json")
    limit = None if told is None else unstretched_positions_of(told)
    tokens = config.rollout.max_prompt_length + config.rollout.max_completion_length
    if limit is not None and tokens > limit:
        problems.add(
            f"texts of up to {tokens} tokens: the rotary positions of {path} depend on the length beyond {limit}",
            where=where,
            why="beyond them the model reads each text by its own length, and vLLM all texts by the longest",
            fix=f"set rollout.max_prompt_length + rollout.max_completion_length to at most {limit}",
        )


def _check_engine(config: RunConfig, family: Family, adapted: bool, path: str, where: str, problems: Problems) -> None:
    """`adapted`: adapters are published to the engine, and not whole weights."""
    on_cpu = config.cluster.device == "cpu" and any(whole_number(config_of(path), key) for key in EXPERTS)
    no_adapters = family.engine_lora or (family.engine_lora_cpu if on_cpu else "")
    if family.engine and (no_adapters or not adapted):
        fix = "use a method without samples (offline dpo, kto, sft, reward_model), or a model of another family"
        what = f"vLLM cannot be used with models of type {family.name}"
        problems.add(what, where=where, why=family.engine, fix=fix)
    elif adapted and no_adapters:
        fix = "remove it (whole weights are then published), or use a method without samples"
        what = f"vLLM takes no adapters of models of type {family.name}"
        problems.add(what, where="model.lora", why=no_adapters, fix=fix)


def _sampled_from(config: RunConfig, key: str) -> bool:
    """Whether an engine holds the model of `key`: the policy, or the teacher whose completions are learned from."""
    taught = isinstance(config.algorithm, DistillConfig) and config.algorithm.sampler == "teacher"
    return bool(config.data.answered) and key == ("teacher.model" if taught else "model")


def unmeasured_remark(config: RunConfig) -> str | None:
    """What is said of a model whose family was not measured; None: it was."""
    path = config.model.path
    told = read_json(local(path) / "config.json") if path is not None else None
    if told is None or "model_type" not in told or family_of(told) is not None:
        return None
    return (
        f"model.path = {path}: models of type {told['model_type']} were not measured (docs/families.md); every rank "
        "compares packed rows with its own forward pass at start, and stops if they differ"
    )


def apart_remark(config: RunConfig) -> str | None:
    """What the reading of rows apart costs a run, in one line; None: its policy's rows are packed."""
    family = _family(config.model.path) if config.model.path is not None else None
    if family is None or family.rows != "apart":
        return None
    answers = getattr(config.algorithm, "num_generations", None) if config.data.prompts is not None else None
    count = answers or NEEDS[config.algorithm.type].completions
    dearer = f"a prompt is computed {count} times, once per completion" if count > 1 else "micro-batches are padded"
    return f"model.path = {config.model.path}: models of type {family.name} read rows apart ({family.why}): {dearer}"


def check_stage(stage: RunConfig, where: str, problems: Problems, *, scores: bool) -> None:
    """The same of a model that an earlier stage will have made."""
    kind = stage.algorithm.type
    if (NEEDS[kind].head == "scores") == scores:
        return
    if scores:
        why = f"stage {stage.name} is of type {kind}, whose model writes text"
        problems.add("not a reward model", where=where, why=why, fix="name a stage of type reward_model")
    else:
        why = f"stage {stage.name} makes a reward model, which writes no text"
        fix = "name a stage that makes a policy; a reward model goes to `reward: [{type: model, from_stage: …}]`"
        problems.add("not a language model", where=where, why=why, fix=fix)


def _labels(config: dict[str, Any]) -> int:
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) else int(config.get("num_labels") or 2)  # transformers' default is 2
