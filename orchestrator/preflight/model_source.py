"""Check that a model suits its role by its files: head, tokenizer, attention heads, positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.config.run import RunConfig
from orchestrator.data.sources import local
from orchestrator.errors import Problems
from orchestrator.preflight.model_files import (
    config_of,
    has_no_end,
    highest_token,
    positive_int,
    read_json,
    tensors,
    tokenizer_digest,
)
from workers.config import ClassifierRewardConfig, ModelScorerConfig
from workers.positions import positions_of
from workers.vocabulary import first_difference, read_vocabulary

SCORER = "ForSequenceClassification"
SCORE_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")  # their names in transformers


def check_scorer(path: str, where: str, problems: Problems, *, label: str | None = None) -> None:
    """Check that a directory is a reward model: a sequence-classification model with one label, or one with `label`."""
    if (config := config_of(path)) is None:
        return
    architectures = [str(name) for name in config.get("architectures") or ()]
    fix = "give a model trained with `type: reward_model` or TRL's RewardTrainer, or another with one label"
    if not any(name.endswith(SCORER) for name in architectures):
        why = f"it is a {', '.join(architectures) or 'model without architectures'}; a reward model is a …{SCORER}"
        problems.add("not a reward model", where=where, why=why, fix=fix)
    elif label is not None and label not in (names := _labels(config)):
        why = f"it has no label {label}; it has {', '.join(names)}"
        problems.add("an unknown label", where=where, why=why, fix="name one of its labels as `label`")
    elif label is None and (labels := len(_labels(config))) != 1:
        why = f"it has {labels} labels, and a reward is one number"
        problems.add("not a reward model", where=where, why=why, fix=f"{fix}; or name one of its labels as `label`")
    else:
        for name, shape in tensors(path).items():
            if name.endswith(SCORE_HEADS) and shape[:1] != (len(_labels(config)),):
                wanted = (len(_labels(config)), *shape[1:])
                why = f"{name} has shape {list(shape)}; one number per label needs {list(wanted)}"
                problems.add("the weights do not match config.json", where=where, why=why, fix=fix)


def check_classifier(reward: ClassifierRewardConfig, where: str, problems: Problems) -> None:
    """Check that a directory is a text-classification model with the label that a reward asks for."""
    assert reward.path is not None
    if (config := config_of(reward.path)) is None:
        return
    architectures = [str(name) for name in config.get("architectures") or ()]
    fix = "give a text-classification model, such as one for toxicity or natural-language inference"
    if not any(name.endswith(SCORER) for name in architectures):
        why = f"it is a {', '.join(architectures) or 'model without architectures'}; a classifier is a …{SCORER}"
        problems.add("not a classifier", where=where, why=why, fix=fix)
    elif len(labels := _labels(config)) < 2:
        why = "it has one label, which makes it a reward model"
        problems.add("not a classifier", where=where, why=why, fix="set type to model, and remove label")
    elif reward.label not in labels:
        problems.add(
            f"no label {reward.label!r}",
            where=where.replace(f".path = {reward.path}", f".label = {reward.label}"),
            why=f"{reward.path} has the labels {', '.join(labels)}",
            fix="give one of them, spelled as there",
        )


def scores_of(path: str) -> list[str]:
    """Return the labels of a sequence-classification model; none of another one, or of one that cannot be read here."""
    config = config_of(path)
    architectures = [] if config is None else config.get("architectures") or ()
    is_scorer = any(str(name).endswith(SCORER) for name in architectures)
    return _labels(config) if config is not None and is_scorer else []


def check_critic(labels: Sequence[str], where: str, problems: Problems) -> None:
    """Check that a critic, which predicts one value, does not start from a model with several scores, `labels`."""
    if len(labels) > 1:
        why = f"it has the scores {', '.join(labels)}, and a critic predicts one value"
        fix = "give a reward model with one score, or remove critic_model: the critic then starts from the policy's"
        problems.add("not a model for a critic", where=where, why=why, fix=fix)


def check_writer(path: str, where: str, problems: Problems) -> None:
    """Check that a model is not a reward model, whose language-model head would be initialised at random."""
    config = config_of(path)
    if config is not None and any(str(name).endswith(SCORER) for name in config.get("architectures") or ()):
        fix = "give a causal language model; a reward model goes to `reward: [{type: model, path: …}]`"
        problems.add("a reward model cannot write text", where=where, why="it has no language-model head", fix=fix)


def check_stage(stage: RunConfig, where: str, problems: Problems, *, scores: bool, label: str | None = None) -> None:
    """Check the kind of a model that an earlier stage will write. `scores`: it must be a reward model, with `label`."""
    if (stage.algorithm.needs.head == "scores") == scores:
        labels = stage.algorithm.labels
        if label not in (labels or (None,)):
            why = f"the model of stage {stage.name} has {' and '.join(labels) or 'one score without a label'}"
            fix = "name one of them as `label`" if labels else "remove `label`"
            problems.add("an unknown label", where=where, why=why, fix=fix)
        return
    if scores:
        why = f"stage {stage.name} is of type {stage.algorithm.type}, which trains a language model"
        problems.add("not a reward model", where=where, why=why, fix="name a stage of type reward_model")
    else:
        why = f"stage {stage.name} trains a reward model, which cannot write text"
        fix = "name a stage that trains a policy; a reward model goes to `reward: [{type: model, from_stage: …}]`"
        problems.add("not a language model", where=where, why=why, fix=fix)


def check_same_tokens(path: str, other: str, where: str, problems: Problems) -> None:
    """Check that a critic at `path` has the vocabulary of the policy at `other`, whose tokens it reads."""
    fix = "give a model with the policy's tokenizer; only a reward model may have another one, because it reads text"
    ours, theirs = (positive_int(config_of(p), "vocab_size") for p in (path, other))
    if ours is not None and theirs is not None and ours != theirs:
        why = f"its vocabulary has {ours} tokens and the policy's {theirs}: the critic reads the policy's tokens"
        problems.add("another vocabulary", where=where, why=why, fix=fix)
        return
    policy, critic = (read_vocabulary(local(p)) for p in (other, path))
    if policy and critic and (difference := first_difference(policy, critic)):
        digests = f"{tokenizer_digest(path)} and the policy's {tokenizer_digest(other)}"
        why = f"{difference} (its tokenizer is {digests}), and the critic reads the policy's tokens"
        problems.add("another tokenizer than the policy's", where=where, why=why, fix=fix)


def check_tokenizer(path: str, where: str, problems: Problems, *, writes: bool) -> None:
    """Check that the model has an embedding for every token, and the tokenizer an end of sequence if it `writes`."""
    rows, last = positive_int(config_of(path), "vocab_size"), highest_token(path)
    if rows is not None and last is not None and last[0] >= rows:
        problems.add(
            "the tokenizer is another model's",
            where=where,
            why=f"its token {last[1]!r} has the id {last[0]}, and config.json has a vocab_size of {rows} "
            f"(the tokenizer is {tokenizer_digest(path)})",
            fix="copy the tokenizer that belongs to these weights, or resize the model's embeddings",
        )
    if writes and has_no_end(path):
        problems.add(
            "the tokenizer has no end-of-sequence token",
            where=where,
            why="completions could neither stop nor be trained to stop",
            fix="set eos_token in its tokenizer_config.json",
        )


def check_parallel(path: str, size: int, problems: Problems) -> None:
    """Check that the attention heads can be split evenly across the `size` GPUs of one engine."""
    config = config_of(path)
    heads, kv_heads = (positive_int(config, key) for key in ("num_attention_heads", "num_key_value_heads"))
    if heads is None:
        return
    kv_heads = kv_heads or heads
    sizes = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
    if size not in sizes:
        of = f"{heads} attention heads" + (f" and {kv_heads} key-value heads" if kv_heads != heads else "")
        problems.add(
            f"{of} of {path} cannot be split across {size} GPUs",
            where=f"rollout.tensor_parallel_size = {size}",
            why="every GPU of an engine takes the same number of heads",
            fix=f"give one of {', '.join(map(str, sizes))}",
        )


def check_positions(config: RunConfig, key: str, path: str, where: str, problems: Problems) -> None:
    """Check that no sequence is longer than the context length of the model of `key`.

    Args:
        path: directory with its config.json; a stage keeps the context length of its initial model.
    """
    if (limit := _positions(path)) is None:
        return
    for tokens, settings, before in _longest(config, key):
        if tokens > limit:
            name = settings.split(" ")[-2]
            fix = f"set {name} to {limit - before}" if limit > before else "lower both"
            problems.add(
                f"{settings}: {tokens} tokens are more than the {limit} positions of {path}",
                where=where,
                why="the engine refuses longer sequences, and a model was not trained on positions beyond its last",
                fix=f"{fix}, or give a model with more positions",
            )


def _longest(config: RunConfig, key: str) -> Iterator[tuple[int, str, int]]:
    """Yield the length in tokens of the longest sequences of the model of `key`.

    Each comes with the settings that it follows from, and the tokens of all but the last of these settings. Rows of a
    dataset are truncated at the policy's last position, so that data.max_length counts only if the recipe gives it.
    """
    rollout, data = config.rollout, config.data
    if key.startswith("reward."):
        reward = config.reward[int(key.removeprefix("reward."))]
        if isinstance(reward, ModelScorerConfig) and "max_length" in reward.model_fields_set:
            yield reward.max_length, f"{key}.max_length {reward.max_length}", 0
        return
    if data.prompts is not None or (key == "model" and data.answered):
        prompt, completion = rollout.max_prompt_length, rollout.max_completion_length
        settings = f"rollout.max_prompt_length {prompt} + rollout.max_completion_length {completion}"
        yield prompt + completion, settings, prompt
    if data.dataset is not None and (key != "model" or "max_length" in data.model_fields_set):
        limit = data.max_length if key == "model" else _positions(config.model.path or "") or data.max_length
        yield min(data.max_length, limit), f"data.max_length {data.max_length}", 0


def _positions(path: str) -> int | None:
    config = read_json(local(path) / "config.json")
    return None if config is None else positions_of(config)


def _labels(config: dict[str, Any]) -> list[str]:
    names = config.get("id2label")
    if isinstance(names, dict):
        return [str(name) for name in names.values()]
    return [f"LABEL_{i}" for i in range(int(config.get("num_labels") or 2))]  # the names and the number of transformers
