"""Task of the quickstart: sort distinct letters. The demonstrator is careless about the last two.

    prompt `hcafb>`   right `abcfh`   careless `abchf`

The demonstrations contain right and careless answers, so the base model produces both, and feedback selects the right
ones. Training teaches no new skill, so minutes on a laptop are enough.

    python configs/quickstart/task.py        write data/quickstart/: untrained models, demonstrations, prompts,
                                             pairs of a right and a wrong answer, answers with feedback, and
                                             questions that the model can and cannot answer
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

LETTERS = "abcdefghijkl"
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 >+-*/=().,:;!?'\"#%&@[]{}<|~^_$"
CARELESS = {4: 0.25, 5: 0.65, 6: 0.65}  # probability that the last two letters are swapped, by length
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
SMALL = {**MODEL, "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 3}
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
    "questions": 1536,
    "answerable": 256,
    "unanswerable": 256,
    "test_answerable": 256,
    "test_unanswerable": 256,
    "lessons": 8192,
}
LENGTHS = {
    # letters of a prompt; of more than 6 letters there is no demonstration, and the model does not know the answer
    "questions": [4, 4, 4, 5, 6, 8, 9],
    "answerable": [4],
    "unanswerable": [8, 9],
    "test_answerable": [4],
    "test_unanswerable": [8, 9],
}


def exact_sort(prompts: list[str], completions: list[str], solution: list[str], **_: object) -> list[float]:
    """Return 1 if a completion is exactly the sorted letters, else 0."""
    return [float(completion == answer) for completion, answer in zip(completions, solution, strict=True)]


def given_letters(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Return 0 if a completion has the letters of its prompt, each once, and −1 if it has others."""
    return [
        0.0 if sorted(completion) == sorted(prompt.removesuffix(">")) else -1.0
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def abstains(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Return 1 if a completion says that the model does not know, else 0."""
    return [float(completion == "?") for completion in completions]


def right_if_answered(
    prompts: list[str], completions: list[str], solution: list[str], **_: object
) -> list[float | None]:
    """Return 1 if a completion is exactly the sorted letters, 0 if it is not, and no score if it abstains."""
    return [
        None if completion == "?" else float(completion == answer)
        for completion, answer in zip(completions, solution, strict=True)
    ]


def write_data(directory: Path, seed: int) -> None:
    """Write all sets. They share no prompt. Sets named `test` are never used to choose a setting."""
    rng = random.Random(seed)
    seen: set[str] = set()
    for name, size in SIZES.items():
        rows = []
        while len(rows) < size:
            letters = "".join(rng.sample(LETTERS, rng.choice(LENGTHS.get(name, [4, 5, 6]))))
            if letters in seen:
                continue
            seen.add(letters)
            right = "".join(sorted(letters))
            rows.append(_row(name, letters, right, rng))
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(name: str, letters: str, right: str, rng: random.Random) -> dict[str, str | bool]:
    """Make one row of the set `name`, from the right answer and the demonstrator's careless one."""
    prompt, careless = f"{letters}>", right[:-2] + right[-1] + right[-2]
    if name == "preferences":
        return {"prompt": prompt, "chosen": right, "rejected": careless}
    if name.endswith("pairs"):
        return {"prompt": prompt, "chosen": right, "rejected": _wrong(right, careless, rng)}
    if name in ("demonstrations", "feedback"):
        written = careless if rng.random() < CARELESS[len(letters)] else right
        label = {"label": written == right} if name == "feedback" else {}
        return {"prompt": prompt, "completion": written, **label}
    if name == "lessons":
        return _lesson(letters, right, careless, rng)
    return {"prompt": prompt, "solution": right}


def _wrong(right: str, careless: str, rng: random.Random) -> str:
    """Make a wrong answer: careless, one letter short, or with two letters swapped, a doubled or a foreign letter."""
    i, j = sorted(rng.sample(range(len(right)), 2))
    short = right[:i] + right[i + 1 :]
    swapped = right[:i] + right[j] + right[i + 1 : j] + right[i] + right[j + 1 :]
    foreign = right[:i] + rng.choice([x for x in LETTERS if x not in right]) + right[i + 1 :]
    other = rng.choice((swapped, right[:i] + right[i] + right[i:], foreign))
    return rng.choice((careless, short, other))


def _lesson(letters: str, right: str, careless: str, rng: random.Random) -> dict[str, str | bool]:
    """Make a demonstration of a critique or of a revision, by one of the two principles of `constitution.yaml`.

    A critique names the letters that break the principle, or is `ok`, and the revision mends what it names, no more.
    """
    i = rng.randrange(len(right))
    foreign = right[:i] + rng.choice([x for x in LETTERS if x not in right]) + right[i + 1 :]
    answer = rng.choice((careless, right, foreign))
    if rng.random() < 0.5:
        request, revision = "!", "".join(sorted(answer))
        named = [x for x, in_order in zip(answer, revision, strict=True) if x != in_order]
    else:
        request, revision = "?", right if answer == foreign else answer
        named = [x for x in answer if x not in letters]
    asked, critique = f"{letters}>{answer}{request}", "".join(named) or "ok"
    if rng.random() < 0.5:
        return {"prompt": asked, "completion": critique}
    return {"prompt": f"{asked}{critique}~", "completion": revision}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("data/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    write_data(arguments.directory, arguments.seed)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed, once imported, looks for a GPU and logs it
    from tiny import character_tokenizer, create_model

    create_model(arguments.directory / "model", MODEL, character_tokenizer(ALPHABET), arguments.seed)
    create_model(arguments.directory / "small", SMALL, character_tokenizer(ALPHABET), arguments.seed)
    print(f"wrote two untrained models and {sum(SIZES.values())} rows to {arguments.directory}")


if __name__ == "__main__":
    main()
