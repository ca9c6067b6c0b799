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
import math
import os
import random
from collections.abc import Callable
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
SPOILT = 0.5  # share of the pairs of an objective in which one note is wrong
SURENESS = 6.0  # of the annotators of an objective: difference of scores times this is the log-odds of their label
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
    "notes": 9600,
    "thorough_pairs": 6144,
    "brief_pairs": 6144,
    "heldout_thorough_pairs": 256,
    "heldout_brief_pairs": 256,
    "comparisons": 9600,
    "heldout_comparisons": 256,
    "test_thorough_pairs": 256,
    "test_brief_pairs": 256,
    "test_comparisons": 256,
}
HELD_OUT = ("heldout", "test", "answerable", "unanswerable")  # beginnings of the names of sets that are evaluated on
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


def thorough(prompts: list[str], completions: list[str], solution: list[str], **_: object) -> list[float]:
    """Return 1 − (1 − share)² for a note with that share of the letters: the first ones say most."""
    shares = map(_noted, completions, solution)
    return [0.0 if share is None else 1 - (1 - share) ** 2 for share in shares]


def brief(prompts: list[str], completions: list[str], solution: list[str], **_: object) -> list[float]:
    """Return 1 − share² for a note with that share of the letters: the last ones tire most."""
    shares = map(_noted, completions, solution)
    return [0.0 if share is None else 1 - share**2 for share in shares]


def _noted(completion: str, right: str) -> float | None:
    """Return the share of the letters after the first that a note has, in order; None if it is no note.

    A note is the beginning of the sorted letters. Of `abcfh` the share of `a` is 0, that of `abc` a half.
    """
    return (len(completion) - 1) / (len(right) - 1) if completion and right.startswith(completion) else None


def write_data(directory: Path, seed: int) -> None:
    """Write all sets. Sets named `test` are never used to choose a setting.

    Sets of one task share no prompt. From `notes` on the task is another one, whose sets may have prompts of the sets
    that sorting is trained on, or there would be none of four letters left.
    """
    rng = random.Random(seed)
    seen, held_out = set[str](), set[str]()
    for name, size in SIZES.items():
        rows = []
        if name == "notes":
            seen = held_out.copy()
        while len(rows) < size:
            letters = "".join(rng.sample(LETTERS, rng.choice(LENGTHS.get(name, [4, 5, 6]))))
            if letters in seen:
                continue
            seen.add(letters)
            if name.startswith(HELD_OUT):
                held_out.add(letters)
            right = "".join(sorted(letters))
            rows.append(_row(name, letters, right, rng))
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(name: str, letters: str, right: str, rng: random.Random) -> dict[str, str | bool]:
    """Make one row of the set `name`, from the right answer and the demonstrator's careless one."""
    prompt, careless = f"{letters}>", right[:-2] + right[-1] + right[-2]
    if name == "preferences":
        return {"prompt": prompt, "chosen": right, "rejected": careless}
    if name == "notes":
        return {"prompt": prompt, "completion": right[: rng.randint(1, len(right))]}
    if name.endswith(("thorough_pairs", "brief_pairs")):
        return {"prompt": prompt, **_preferred(right, thorough if "thorough" in name else brief, rng)}
    if name.endswith("comparisons"):
        return _comparison(prompt, right, careless, rng)
    if name.endswith("pairs"):
        return {"prompt": prompt, "chosen": right, "rejected": _wrong(right, careless, rng)}
    if name in ("demonstrations", "feedback"):
        written = careless if rng.random() < CARELESS[len(letters)] else right
        label = {"label": written == right} if name == "feedback" else {}
        return {"prompt": prompt, "completion": written, **label}
    if name == "lessons":
        return _lesson(letters, right, careless, rng)
    return {"prompt": prompt, "solution": right}


def _preferred(right: str, objective: Callable[..., list[float]], rng: random.Random) -> dict[str, str]:
    """Make a pair of two notes, one of them often wrong, labelled by an annotator who follows one objective.

    The label is drawn by Bradley–Terry, P(a preferred) = σ(SURENESS (score of a − score of b)), so that a reward model
    can learn the objective with its shape, and not its order alone.
    """
    notes = [right[:length] for length in rng.sample(range(1, len(right) + 1), 2)]
    if rng.random() < SPOILT:
        notes[0] = _spoilt(notes[0], right, rng)
    a, b = objective([""] * 2, notes, [right] * 2)
    first = rng.random() < 1 / (1 + math.exp(-SURENESS * (a - b)))
    return {"chosen": notes[0 if first else 1], "rejected": notes[1 if first else 0]}


def _spoilt(note: str, right: str, rng: random.Random) -> str:
    """Make a wrong note: with another letter in the place of one, or with one to four letters too many."""
    if rng.random() < 0.5:
        following = right[len(note) : len(note) + 1]
        return note + "".join(rng.choices(LETTERS.replace(following, ""), k=rng.randint(1, 4)))
    i = rng.randrange(len(note))
    return note[:i] + rng.choice(LETTERS.replace(note[i], "")) + note[i + 1 :]


def _comparison(prompt: str, right: str, wrong: str, rng: random.Random) -> dict[str, str]:
    """Make the question which of two answers is the right one, and its answer, A or B."""
    choice = rng.choice("AB")
    a, b = (right, wrong) if choice == "A" else (wrong, right)
    return {"prompt": f"{prompt}{a}|{b}?", "completion": choice, "solution": choice}


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
