"""Models and data of the benchmarks, made in code from a seed: no hub, no download.

    python -m benchmarks.workloads dpo grpo-letters grpo-long grpo-mixed --root DIR

Both sides of a benchmark read the same directory, so equal work starts from equal files. Texts are the same on every
machine; trained weights and what is sampled from them differ in the last digits from one kind of CPU to another.

    <root>/<name>-<hash of the settings>/
      workload.json     everything a worker must know (see `WORKLOADS`); a worker takes no other settings
      model/            a Hugging Face directory: Qwen2 shape, float32, tied embeddings, with its tokenizer
      data.jsonl        dpo: {"prompt", "chosen", "rejected"} · grpo: {"prompt", "answer"}, in the order of use
      replay.jsonl      grpo only: {"completions": [[token, …], …]}, groups of the first prompts: equal learning is
      proven on them

Only torch, transformers and numpy are imported: what the environments of both sides have.

Why these workloads
- `dpo`: 11M parameters, vocabulary 32,000, so the output layer is 73 % of the arithmetic (about 2 % at 70B: the ratio
  on this shape is not the ratio of a large model). Lengths are lognormal with the means of UltraFeedback-like data:
  prompt 231, completion 228, and a batch of 8 pairs padded to its longest row holds 1.6 times its real tokens.
- `grpo-letters`: the quickstart's task on its 1.65M model after a short supervised stage. Completions have 5 to 10
  tokens.
- `grpo-long`: the body of `dpo` with a vocabulary of 4,096 (4.2M parameters; the output layer is a quarter of the
  arithmetic), prompts of 64 tokens, completions of exactly 128: short prompts, no stragglers, nothing to save but
  overhead.
- `grpo-mixed`: the same model with lengths as real runs have them: prompts as in `dpo`, and completions that end by
  themselves, each next token being the end with probability 1/120, up to 192 tokens. The longest of a batch is then
  about twice the mean.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

PAD, EOS = "<pad>", "<eos>"
LETTERS = "abcdefghijkl"
PROMPT_END = ">"
TOKEN_RANGE = (8, 512)  # shortest and longest prompt or completion; two of the longest fill max_length exactly

WORDS_MODEL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
LETTERS_MODEL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
GRPO = {
    "num_generations": 8,
    "temperature": 1.0,
    "epsilon": 0.2,
    "beta": 0.0,
    "adam_betas": [0.9, 0.99],
    "replay_steps": 3,
}

WORKLOADS: dict[str, dict[str, Any]] = {
    "dpo": {
        "kind": "dpo",
        "model": WORDS_MODEL,
        "vocab_size": 32_000,
        "num_steps": 8,
        "pairs_per_step": 8,
        "max_length": 1024,
        "beta": 0.1,
        "learning_rate": 1e-5,
        "adam_betas": [0.9, 0.999],
        "prompt_tokens": {"median": 190, "sigma": 0.65},
        "completion_tokens": {"median": 205, "sigma": 0.5},
    },
    "grpo-letters": {
        "kind": "grpo",
        "model": LETTERS_MODEL,
        "vocab_size": 100,
        "num_steps": 24,
        "prompts_per_step": 16,
        "max_completion_length": 10,
        "min_completion_length": 0,
        "learning_rate": 3e-5,
        "reward": "exact_answer",
        "sft_steps": 150,
        **GRPO,
    },
    "grpo-long": {
        "kind": "grpo",
        "model": WORDS_MODEL,
        "vocab_size": 4096,
        "num_steps": 8,
        "prompts_per_step": 4,
        "max_completion_length": 128,
        "min_completion_length": 128,
        "learning_rate": 3e-5,
        "reward": "even_share",
        "prompt_tokens": {"exactly": 64},
        **GRPO,
    },
    "grpo-mixed": {
        "kind": "grpo",
        "model": WORDS_MODEL,
        "vocab_size": 4096,
        "num_steps": 8,
        "prompts_per_step": 4,
        "max_completion_length": 192,
        "min_completion_length": 0,
        "learning_rate": 3e-5,
        "reward": "even_share",
        "prompt_tokens": {"median": 190, "sigma": 0.65},
        "end_probability": 1 / 120,
        **GRPO,
    },
}
COMMON = {"seed": 0, "dtype": "float32", "adam_eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0}
"""Of every workload: AdamW, a constant learning rate, gradients clipped by their norm, weights in float32."""


# ---------------------------------------------------------------------------------------------- rewards, for both sides


def exact_answer(
    prompts: list[str], completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any
) -> list[float]:
    """1.0 where the text equals the answer. An answer has at most 6 letters and a completion up to 10 tokens, so equal
    text also means that the model stopped by itself."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def even_share(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of tokens with an even id: cheap, and different for every sample."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


REWARDS = {"exact_answer": exact_answer, "even_share": even_share}


# ------------------------------------------------------------------------------------------------------- tokenizers


def _words_vocabulary(vocab_size: int) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Tokens, merges and words of a byte-pair encoding in which every word (a space and three syllables) is one token.

    Only a token that begins with the space ("\u0120" in byte-level spelling) ever merges with a syllable, so a text has
    one reading, and joining two texts of words joins their tokens.
    """
    pairs = [(consonant, vowel) for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
    syllables = [consonant + vowel for consonant, vowel in pairs]
    tokens = [PAD, EOS, "\u0120", *"bcdfghjklmnprstvwxyzaeiou", *syllables]
    merges, stems, words = list(pairs), ["\u0120"], []
    for tails in (syllables[:4], syllables, syllables):
        grown = [(stem, tail) for stem in stems for tail in tails][: vocab_size - len(tokens)]
        stems = words = ["".join(pair) for pair in grown]
        tokens, merges = tokens + words, merges + grown
    return tokens, merges, words


def words_tokenizer(vocab_size: int) -> Qwen2Tokenizer:
    """One token per word, every word begins with its space: the text of N words has N tokens. No BOS is ever added."""
    tokens, merges, _ = _words_vocabulary(vocab_size)
    assert len(tokens) == vocab_size
    return _qwen2_tokenizer(tokens, merges)


def letters_tokenizer(vocab_size: int) -> Qwen2Tokenizer:
    """One token per printable ASCII character. No BOS is ever added."""
    tokens = [PAD, EOS, "\u0120", *map(chr, range(33, 127))]
    assert len(tokens) <= vocab_size
    return _qwen2_tokenizer(tokens, [])


def _qwen2_tokenizer(tokens: list[str], merges: list[tuple[str, str]]) -> Qwen2Tokenizer:
    """The model family's own class: for the model type qwen2, AutoTokenizer silently rebuilds any other class from this
    one's parts, and a word-level vocabulary would come back as a tokenizer that finds no tokens."""
    vocab = {token: index for index, token in enumerate(tokens)}
    return Qwen2Tokenizer(vocab, merges, unk_token=PAD, pad_token=PAD, eos_token=EOS, padding_side="left")


# ----------------------------------------------------------------------------------------------------------- models


def build_model(settings: dict[str, Any]) -> Qwen2ForCausalLM:
    """Qwen2 shape with random weights, half as many key-value heads as heads, tied embeddings, float32."""
    torch.manual_seed(settings["seed"])
    config = Qwen2Config(
        **settings["model"],
        num_key_value_heads=settings["model"]["num_attention_heads"] // 2,
        vocab_size=settings["vocab_size"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    return model


@torch.no_grad()
def make_end_likely(model: Qwen2ForCausalLM, probability: float) -> None:
    """Give the end token about this probability at every position, whatever came before.

    A model with random weights would end once in a vocabulary. So the first number of every token's vector becomes 1,
    which the layers carry through to the last hidden state, and that of the end token a little more: its logit, taken
    with the same (tied) vectors, is then above the others' by a constant, found in a few steps of Newton's method.
    """
    vectors = model.get_input_embeddings().weight  # [V, h]
    vectors[:, 0] = 1.0
    some_text = torch.randint(2, len(vectors), (4, 256), generator=torch.Generator().manual_seed(0))
    hidden = model.eval().get_decoder()(input_ids=some_text).last_hidden_state
    for _ in range(5):
        found = (hidden @ vectors.T).softmax(-1)[..., 1].mean().item()
        vectors[1, 0] += np.log(probability / found) / hidden[..., 0].mean().item()


def _careless_answer(letters: str, rng: np.random.Generator) -> str:
    """Sorted letters, the last two swapped with probability 0.25 (4 letters) or 0.65 (5 and 6 letters)."""
    answer = sorted(letters)
    if rng.random() < (0.25 if len(letters) == 4 else 0.65):
        answer[-2:] = answer[:-3:-1]
    return "".join(answer)


def _letters_prompt(rng: np.random.Generator) -> str:
    return "".join(rng.permutation(list(LETTERS))[: rng.integers(4, 7)])


def _sft_batch(tokenizer: Qwen2Tokenizer, rng: np.random.Generator, rows: int) -> dict[str, torch.Tensor]:
    """Right-padded demonstrations; the loss is on the answer and its end alone."""
    drawn = [_letters_prompt(rng) for _ in range(rows)]
    texts = [(letters + PROMPT_END, _careless_answer(letters, rng) + EOS) for letters in drawn]
    ids = [tokenizer(prompt + answer)["input_ids"] for prompt, answer in texts]
    width = max(map(len, ids))
    input_ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
    labels = input_ids.clone()
    for row, (prompt, _) in enumerate(texts):
        labels[row, : len(prompt)] = -100
        labels[row, len(ids[row]) :] = -100
    return {"input_ids": input_ids, "attention_mask": (input_ids != tokenizer.pad_token_id).long(), "labels": labels}


def supervise(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, settings: dict[str, Any]) -> None:
    """Short supervised stage on a careless demonstrator, so that rewards vary within a group (about half are right)."""
    rng = np.random.default_rng(settings["seed"])
    steps, warmup = settings["sft_steps"], 20
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 1.0 - 0.9 * step / steps)
    )
    for _ in range(steps):
        model(**_sft_batch(tokenizer, rng, 64)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


# ------------------------------------------------------------------------------------------------------------- data


def _lengths(spec: dict[str, float], count: int, rng: np.random.Generator) -> np.ndarray:
    if "exactly" in spec:
        return np.full(count, spec["exactly"], dtype=int)
    drawn = rng.lognormal(np.log(spec["median"]), spec["sigma"], count)
    return np.clip(drawn.round(), *TOKEN_RANGE).astype(int)


def _text(num_tokens: int, words: list[str], rng: np.random.Generator) -> str:
    return "".join(words[index] for index in rng.integers(len(words), size=num_tokens)).replace("\u0120", " ")


def preference_rows(settings: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Pairs of random words. Completions are one token short of their length: the end token completes them."""
    rng = np.random.default_rng(settings["seed"])
    words = _words_vocabulary(settings["vocab_size"])[-1]
    count = settings["num_steps"] * settings["pairs_per_step"]
    lengths_P = _lengths(settings["prompt_tokens"], count, rng)
    lengths_P2 = _lengths(settings["completion_tokens"], 2 * count, rng).reshape(count, 2)
    for prompt_tokens, completion_tokens in zip(lengths_P, lengths_P2, strict=True):
        chosen, rejected = (_text(tokens - 1, words, rng) for tokens in completion_tokens)
        yield {"prompt": _text(prompt_tokens, words, rng), "chosen": chosen, "rejected": rejected}


def prompt_rows(settings: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Prompts in the order of use, with the answer where the task has one."""
    rng = np.random.default_rng(settings["seed"] + 1)  # not the supervised stage's stream
    words = _words_vocabulary(settings["vocab_size"])[-1] if settings["reward"] != "exact_answer" else []
    for _ in range(settings["num_steps"] * settings["prompts_per_step"]):
        if settings["reward"] == "exact_answer":
            letters = _letters_prompt(rng)
            yield {"prompt": letters + PROMPT_END, "answer": "".join(sorted(letters))}
        else:
            (num_tokens,) = _lengths(settings["prompt_tokens"], 1, rng)
            yield {"prompt": _text(num_tokens, words, rng), "answer": ""}


@torch.no_grad()
def sampled_groups(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, rows: list[dict[str, str]], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """For each prompt its group, sampled from the starting model; each completion up to and with its end token."""
    torch.manual_seed(settings["seed"])
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True, return_token_type_ids=False)
    sampled = (
        model.eval()
        .generate(
            **inputs,
            do_sample=True,
            top_k=0,
            temperature=settings["temperature"],
            num_return_sequences=settings["num_generations"],
            max_new_tokens=settings["max_completion_length"],
            min_new_tokens=settings["min_completion_length"] or None,
        )[:, inputs["input_ids"].shape[1] :]
        .tolist()
    )
    ended = [ids[: ids.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in ids else ids for ids in sampled]
    size = settings["num_generations"]
    return [{"completions": ended[start : start + size]} for start in range(0, len(ended), size)]


# -------------------------------------------------------------------------------------------------------- directory


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load_settings(directory: Path) -> dict[str, Any]:
    """`workload.json` with the absolute paths of its files added."""
    settings = json.loads((directory / "workload.json").read_text())
    files = {"model_path": "model", "data_path": "data.jsonl", "replay_path": "replay.jsonl"}
    return settings | {key: str(directory / name) for key, name in files.items()}


def _fill(directory: Path, settings: dict[str, Any]) -> None:
    by_words = settings["model"] is WORDS_MODEL
    tokenizer = (words_tokenizer if by_words else letters_tokenizer)(settings["vocab_size"])
    model = build_model(settings)
    if "sft_steps" in settings:
        supervise(model, tokenizer, settings)
    if "end_probability" in settings:
        make_end_likely(model, settings["end_probability"])
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    rows = list((preference_rows if settings["kind"] == "dpo" else prompt_rows)(settings))
    _write_rows(directory / "data.jsonl", rows)
    if settings["kind"] == "grpo":
        replayed = rows[: settings["replay_steps"] * settings["prompts_per_step"]]
        _write_rows(directory / "replay.jsonl", sampled_groups(model, tokenizer, replayed, settings))
    (directory / "workload.json").write_text(json.dumps(settings, indent=2) + "\n")


def ensure(name: str, root: Path) -> Path:
    """The directory of a workload, made if missing (aside, then renamed: never half a directory)."""
    settings = {"name": name, **COMMON, **WORKLOADS[name]}
    source = Path(__file__).read_bytes()
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + source).hexdigest()[:12]
    directory = root.resolve() / f"{name}-{digest}"
    if not directory.exists():
        aside = directory.with_suffix(".part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _fill(aside, settings)
        aside.rename(directory)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description="make the models and data of the benchmarks; print their directories")
    parser.add_argument("names", nargs="+", choices=sorted(WORKLOADS))
    parser.add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order, whatever the number of cores
    for name in arguments.names:
        print(ensure(name, arguments.root), flush=True)


if __name__ == "__main__":
    main()
