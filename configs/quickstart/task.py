"""The quickstart's task: sort distinct letters, learned from a demonstrator who is careless about the last two.

    prompt `hcafb>`   right `abcfh`   careless `abchf`

The demonstrations contain both habits, so the base model knows both; feedback has to choose. It teaches no new skill,
which is why minutes on a laptop are enough.

    python configs/quickstart/task.py        writes data/quickstart/: an untrained model, demonstrations, prompts,
                                             pairs of a right and a careless answer, and answers with feedback
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

LETTERS = "abcdefghijkl"
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 >+-*/=().,:;!?'\"#%&@[]{}<|~^_$"
CARELESS = {4: 0.25, 5: 0.65, 6: 0.65}  # probability of swapping the last two letters, by length
MODEL = {
    "model_type": "qwen2",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
SIZES = {
    "demonstrations": 9600,
    "prompts": 4096,
    "heldout": 256,
    "test": 256,
    "preferences": 2048,
    "feedback": 2048,
    "pairs": 8192,
    "heldout_pairs": 256,
    "test_pairs": 256,
}


def exact_sort(prompts: list[str], completions: list[str], solution: list[str], **_: object) -> list[float]:
    """1 when the answer is the sorted letters and nothing else, else 0. A completion that did not stop has too many."""
    return [float(completion == answer) for completion, answer in zip(completions, solution, strict=True)]


def write_data(directory: Path, seed: int) -> None:
    """Sets that share no prompt; nobody tunes anything on `test` and `test_pairs`."""
    rng = random.Random(seed)
    seen: set[str] = set()
    for name, size in SIZES.items():
        rows = []
        while len(rows) < size:
            letters = "".join(rng.sample(LETTERS, rng.choice([4, 5, 6])))
            if letters in seen:
                continue
            seen.add(letters)
            right = "".join(sorted(letters))
            rows.append(_row(name, letters, right, rng))
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(name: str, letters: str, right: str, rng: random.Random) -> dict[str, str | bool]:
    """One row of the set `name`: what the demonstrator writes, what it should have been, or both."""
    prompt, careless = f"{letters}>", right[:-2] + right[-1] + right[-2]
    if name == "preferences":
        return {"prompt": prompt, "chosen": right, "rejected": careless}
    if name.endswith("pairs"):
        return {"prompt": prompt, "chosen": right, "rejected": _wrong(right, careless, rng)}
    if name in ("demonstrations", "feedback"):
        written = careless if rng.random() < CARELESS[len(letters)] else right
        label = {"label": written == right} if name == "feedback" else {}
        return {"prompt": prompt, "completion": written, **label}
    return {"prompt": prompt, "solution": right}


def _wrong(right: str, careless: str, rng: random.Random) -> str:
    """The careless answer, one with a letter left out, or one with two letters swapped, a letter written twice, or a
    letter that was not asked for."""
    i, j = sorted(rng.sample(range(len(right)), 2))
    short = right[:i] + right[i + 1 :]
    swapped = right[:i] + right[j] + right[i + 1 : j] + right[i] + right[j + 1 :]
    foreign = right[:i] + rng.choice([x for x in LETTERS if x not in right]) + right[i + 1 :]
    other = rng.choice((swapped, right[:i] + right[i] + right[i:], foreign))
    return rng.choice((careless, short, other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("data/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    write_data(arguments.directory, arguments.seed)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers asks DeepSpeed, which would look for a GPU and say so
    from workers.engines.hf_models import character_tokenizer, create_model

    create_model(arguments.directory / "model", MODEL, character_tokenizer(ALPHABET), arguments.seed)
    print(f"wrote an untrained model and {sum(SIZES.values())} rows to {arguments.directory}")


if __name__ == "__main__":
    main()
