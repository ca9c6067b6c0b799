"""An open-ended task: invent a word that sounds good and uses three given letters.

    prompt `kor>`   good `koreta`   careless `kkotr`

There is no single right answer: many words are equally good, and quality is a smooth number. The demonstrator strings
letters together with little care, so a base model that imitates it produces every kind of word, but few good ones.

    python configs/quickstart/words/words.py     write data/words/: an untrained model, demonstrations, prompts, and
                                                 pairs of the demonstrator's words, labelled by their quality
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import sys
from pathlib import Path

VOWELS, CONSONANTS = "aeiou", "bdfgklmnprstv"
BEST_LENGTH = 6
SIZES = {"demonstrations": 9600, "prompts": 4096, "heldout": 256, "test": 256, "preferences": 2048}
SHARPNESS = 8.0  # of labels: of two words whose quality differs by 0.1, the better is chosen with σ(0.8) = 69 %


def quality(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Rate each word from 0 to 1.

    Good words alternate vowels and consonants, have about six letters, repeat few and use those of the prompt.
    """
    return [_quality(prompt.rstrip(">"), word) for prompt, word in zip(prompts, completions, strict=True)]


def _quality(wanted: str, word: str) -> float:
    if not word or set(word) - set(VOWELS + CONSONANTS):
        return 0.0
    turns = [(a in VOWELS) != (b in VOWELS) for a, b in itertools.pairwise(word)]
    alternation = sum(turns) / len(turns) if turns else 0.0
    length = math.exp(-(((len(word) - BEST_LENGTH) / 2.5) ** 2))
    variety = len(set(word)) / len(word)
    used = len(set(word) & set(wanted)) / len(set(wanted))
    return 0.35 * alternation + 0.2 * length + 0.15 * variety + 0.3 * used


def write_data(directory: Path, seed: int) -> None:
    """Write all sets. `heldout` and `test` share no prompt with others. `test` is never used to choose a setting."""
    rng = random.Random(seed)
    letters = VOWELS + CONSONANTS
    # Three letters in any order, repeated or not: there are fewer prompts than rows, so demonstrations repeat them.
    all_prompts = [a + b + c for a in letters for b in letters for c in letters if len({a, b, c}) == 3]
    rng.shuffle(all_prompts)
    held = SIZES["heldout"] + SIZES["test"]
    parts = {"heldout": all_prompts[: SIZES["heldout"]], "test": all_prompts[SIZES["heldout"] : held]}
    for name, size in SIZES.items():
        some = parts.get(name) or [rng.choice(all_prompts[held:]) for _ in range(size)]
        rows = [json.dumps(_row(name, wanted, rng)) + "\n" for wanted in some]
        (directory / f"{name}.jsonl").write_text("".join(rows))


def _row(name: str, wanted: str, rng: random.Random) -> dict[str, str]:
    prompt = f"{wanted}>"
    if name == "demonstrations":
        return {"prompt": prompt, "completion": _careless(wanted, rng)}
    if name != "preferences":
        return {"prompt": prompt}
    first, second = _careless(wanted, rng), _careless(wanted, rng)
    while second == first:
        second = _careless(wanted, rng)
    gap = _quality(wanted, first) - _quality(wanted, second)
    prefers_first = rng.random() < 1 / (1 + math.exp(-SHARPNESS * gap))
    chosen, rejected = (first, second) if prefers_first else (second, first)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _careless(wanted: str, rng: random.Random) -> str:
    """Draw three to nine letters. About every other one alternates with the previous letter or is from the prompt."""
    word = ""
    for _ in range(rng.randint(3, 9)):
        if rng.random() < 0.25:
            word += rng.choice(wanted)
        else:
            turn = bool(word) and rng.random() < 0.5
            kind = (CONSONANTS if word[-1] in VOWELS else VOWELS) if turn else VOWELS + CONSONANTS
            word += rng.choice(kind)
    return word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("data/words"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    write_data(arguments.directory, arguments.seed)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed, once imported, looks for a GPU and logs it
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the quickstart's folder: its model and its alphabet
    from task import ALPHABET, MODEL
    from tiny import character_tokenizer, create_model

    create_model(arguments.directory / "model", MODEL, character_tokenizer(ALPHABET), arguments.seed)
    print(f"wrote an untrained model and {sum(SIZES.values())} rows to {arguments.directory}")


if __name__ == "__main__":
    main()
