"""Models and data of the benchmarks, generated from a seed without any download.

    python -m benchmarks.workloads dpo grpo-letters grpo-long grpo-mixed --root DIR

Both sides of a benchmark read the same directory, so equal work starts from equal files. Texts are the same on every
machine; trained weights and samples from them differ in the last digits between types of CPU.

    <root>/<name>-<hash of the settings>/
      workload.json     all settings of a worker (see `WORKLOADS`)
      model/            Hugging Face directory: Qwen2 shape, float32, tied embeddings, with its tokenizer
      data.jsonl        dpo: {"prompt", "chosen", "rejected"} · grpo: {"prompt", "answer"}, in the order of use
      replay.jsonl      grpo only: {"completions": [[token, …], …]}, groups for the first prompts, on which equal work
                        is checked

Only torch, transformers and numpy are imported, which the environments of both sides have.

Why these workloads
- `dpo`: 11M parameters, vocabulary 32,000, so the output layer is 73 % of the arithmetic (about 2 % at 70B: the ratio
  on this shape is not the ratio of a large model). Lengths are log-normal with the means of UltraFeedback-like data:
  prompt 231, completion 228. A batch of 8 pairs padded to its longest row has 1.6 times its real tokens.
- `grpo-letters`: the quickstart's task on its 1.65M model after a short supervised stage. Completions have 5 to 10
  tokens.
- `grpo-long`: the body of `dpo` with a vocabulary of 4,096 (4.2M parameters; the output layer is a quarter of the
  arithmetic), prompts of 64 tokens, completions of exactly 128: no padding and no stragglers, so only overhead can be
  saved.
- `grpo-mixed`: the same model with realistic lengths: prompts as in `dpo`, and completions in which each next token is
  the end token with probability 1/120, up to 192 tokens. The longest of a batch is about twice the mean.
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
"""Settings of every workload: AdamW, a constant learning rate, gradients clipped by norm, float32 weights."""


# ---------------------------------------------------------------------------------------------- rewards, for both sides


def exact_answer(
    prompts: list[str], completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any
) -> list[float]:
    """Return 1.0 for each completion equal to the answer.

    An answer has at most 6 letters and a completion up to 10 tokens, so an equal text also ended with the end token."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def even_share(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Return the share of tokens with an even id: cheap, and different for every sample."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


REWARDS = {"exact_answer": exact_answer, "even_share": even_share}


# ------------------------------------------------------------------------------------------------------- tokenizers


def _words_vocabulary(vocab_size: int) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Return tokens, merges and words of a BPE in which every word (a space and three syllables) is one token.

    Only tokens that begin with the space ("\u0120" in byte-level notation) merge with a syllable. So a text has one
    tokenisation, and that of two joined texts is the concatenation of theirs.
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
    """Return a tokenizer with one token per word (with its leading space) and no BOS."""
    tokens, merges, _ = _words_vocabulary(vocab_size)
    assert len(tokens) == vocab_size
    return _qwen2_tokenizer(tokens, merges)


def letters_tokenizer(vocab_size: int) -> Qwen2Tokenizer:
    """Return a tokenizer with one token per printable ASCII character and no BOS."""
    tokens = [PAD, EOS, "\u0120", *map(chr, range(33, 127))]
    assert len(tokens) <= vocab_size
    return _qwen2_tokenizer(tokens, [])


def _qwen2_tokenizer(tokens: list[str], merges: list[tuple[str, str]]) -> Qwen2Tokenizer:
    """Create a tokenizer of the model family's own class.

    For the model type qwen2, AutoTokenizer silently converts any other class to this one, and a word-level vocabulary
    would become a tokenizer that finds no tokens."""
    vocab = {token: index for index, token in enumerate(tokens)}
    return Qwen2Tokenizer(vocab, merges, unk_token=PAD, pad_token=PAD, eos_token=EOS, padding_side="left")


# ----------------------------------------------------------------------------------------------------------- models


def build_model(settings: dict[str, Any]) -> Qwen2ForCausalLM:
    """Create a Qwen2 model with random float32 weights, half as many key-value heads as heads, and tied embeddings."""
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
    """Give the end token about this probability at every position, whatever the context.

    With random weights the end token has a probability of 1 / vocabulary. So the first component of every embedding is
    set to 1, which the layers carry to the last hidden state, and that of the end token slightly higher. With tied
    embeddings its logit then exceeds the others by a constant, which a few Newton steps determine.
    """
    vectors = model.get_input_embeddings().weight  # [V, h]
    vectors[:, 0] = 1.0
    some_text = torch.randint(2, len(vectors), (4, 256), generator=torch.Generator().manual_seed(0))
    hidden = model.eval().get_decoder()(input_ids=some_text).last_hidden_state
    for _ in range(5):
        current = (hidden @ vectors.T).softmax(-1)[..., 1].mean().item()
        vectors[1, 0] += np.log(probability / current) / hidden[..., 0].mean().item()


def _careless_answer(letters: str, rng: np.random.Generator) -> str:
    """Sort the letters, and swap the last two with probability 0.25 (4 letters) or 0.65 (5 and 6 letters)."""
    answer = sorted(letters)
    if rng.random() < (0.25 if len(letters) == 4 else 0.65):
        answer[-2:] = answer[:-3:-1]
    return "".join(answer)


def _letters_prompt(rng: np.random.Generator) -> str:
    return "".join(rng.permutation(list(LETTERS))[: rng.integers(4, 7)])


def _sft_batch(tokenizer: Qwen2Tokenizer, rng: np.random.Generator, rows: int) -> dict[str, torch.Tensor]:
    """Draw right-padded demonstrations with the loss on the answer and its end token only."""
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
    """Fine-tune briefly on careless demonstrations, so that rewards vary within a group (about half are correct)."""
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
    """Yield pairs of random words. A completion has one word less than its length, for the end token."""
    rng = np.random.default_rng(settings["seed"])
    words = _words_vocabulary(settings["vocab_size"])[-1]
    count = settings["num_steps"] * settings["pairs_per_step"]
    lengths_P = _lengths(settings["prompt_tokens"], count, rng)
    lengths_P2 = _lengths(settings["completion_tokens"], 2 * count, rng).reshape(count, 2)
    for prompt_tokens, completion_tokens in zip(lengths_P, lengths_P2, strict=True):
        chosen, rejected = (_text(tokens - 1, words, rng) for tokens in completion_tokens)
        yield {"prompt": _text(prompt_tokens, words, rng), "chosen": chosen, "rejected": rejected}


def prompt_rows(settings: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield prompts in the order of use, with the answer if the task has one."""
    rng = np.random.default_rng(settings["seed"] + 1)  # another stream than the supervised stage's
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
    """Sample a group for each prompt from the initial model; completions include their end token."""
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
    """Read `workload.json`, and add the absolute paths of its files."""
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
    """Return the directory of a workload; if missing, create it under another name and rename it when complete."""
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
    parser = argparse.ArgumentParser(
        description="create the models and data of the benchmarks, print their directories"
    )
    parser.add_argument("names", nargs="+", choices=sorted(WORKLOADS))
    parser.add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums does not depend on the number of cores
    for name in arguments.names:
        print(ensure(name, arguments.root), flush=True)


if __name__ == "__main__":
    main()
