"""Held-out sets of configs/eval: they parse, repeat nothing, share nothing, and their solutions are right."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from math import dist, lcm, prod, sqrt
from pathlib import Path

import pytest
from shipped import CONFIGS, PROMPTS, SUITES

from orchestrator.data import read_prompts
from orchestrator.data.audit import distinct_prompts, prompt_keys, trained_on
from orchestrator.evaluation.suite import load_suite
from orchestrator.preflight.reward_rows import check_reward_rows
from workers.config import MathRewardConfig
from workers.rewards.math import is_right
from workers.types import Prompt

SIZES = {"harmful": 192, "benign": 192, "instructions": 96, "maths": 200}
PER_CATEGORY = {"harmful": 12, "benign": 24, "instructions": 8, "maths": 10}
SAFETY = ("harmful", "benign")
LANGUAGES = {"en": 128, "de": 16, "fr": 16, "es": 16, "zh": 16}


def rows(name: str) -> tuple[Prompt, ...]:
    return read_prompts(str(PROMPTS[name]))


def text_of(prompt: Prompt) -> str:
    """Return the text of a conversation of one turn, by the user."""
    assert not isinstance(prompt.text, str)
    (message,) = prompt.text
    assert message["role"] == "user"
    text: str = message["content"]
    return text


# ------------------------------------------------------------------------------------------------ all sets


def test_the_sets_are_known() -> None:
    assert set(PROMPTS) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_set_parses_and_is_labelled(name: str) -> None:
    prompts = rows(name)
    assert len(prompts) == SIZES[name] == distinct_prompts(prompts)
    counts = Counter(prompt.columns["category"] for prompt in prompts)
    assert set(counts.values()) == {PER_CATEGORY[name]}
    for prompt in prompts:
        shortest = 5 if prompt.columns.get("language") == "zh" else 15
        assert shortest < len(text_of(prompt)) < 400
        assert text_of(prompt) == text_of(prompt).strip()


@pytest.mark.parametrize("name", SIZES)
def test_any_beginning_is_a_fair_sample(name: str) -> None:
    """Check that evaluation.max_prompts, which takes the first rows, leaves out no category."""
    categories = [prompt.columns["category"] for prompt in rows(name)]
    count = len(set(categories))
    assert len(set(categories[:count])) == count


@pytest.mark.parametrize(("one", "other"), list(combinations(SIZES, 2)))
def test_two_sets_share_no_prompt(one: str, other: str) -> None:
    assert trained_on(prompt_keys(rows(one)), [prompt_keys(rows(other))]) == []


def words_of(prompt: Prompt) -> set[str]:
    """Return the words of a text; of Chinese, which has no blanks, the pairs of neighbouring characters."""
    text = text_of(prompt).lower()
    if prompt.columns.get("language") == "zh":
        letters = "".join(re.findall(r"\w", text))
        return {letters[i : i + 2] for i in range(len(letters) - 1)}
    return set(re.findall(r"\w+", text))


@pytest.mark.parametrize("names", [("harmful",), ("benign",), ("instructions",), SAFETY])
def test_no_prompt_is_another_in_other_words(names: tuple[str, ...]) -> None:
    words = [(text_of(prompt), words_of(prompt)) for name in names for prompt in rows(name)]
    assert all(found for _, found in words)
    close = [(a, b) for (a, one), (b, two) in combinations(words, 2) if len(one & two) >= 0.6 * len(one | two)]
    assert close == []


# ------------------------------------------------------------------------------------------------ safety


@pytest.mark.parametrize("name", SAFETY)
def test_languages_are_spread_over_the_categories(name: str) -> None:
    found = Counter((prompt.columns["category"], prompt.columns["language"]) for prompt in rows(name))
    assert Counter(prompt.columns["language"] for prompt in rows(name)) == LANGUAGES
    for language in LANGUAGES:
        assert len({count for (_, of), count in found.items() if of == language}) == 1
    beginning = Counter(prompt.columns["language"] for prompt in rows(name)[:48])
    assert beginning == {language: count // 4 for language, count in LANGUAGES.items()}


def test_a_text_is_written_in_its_language() -> None:
    """Check what can be seen without a model: Chinese characters, and words that are common."""
    common = {
        "de": r"\b(wie|ich|der|die|das|den|meine[rnm]?|eine?[mnr]?|was|mir|du|wird)\b",
        "fr": r"\b(le|la|les|un|une|de|des|du|je|que|pour|mon|ma|en|et|est)\b",
        "es": r"\b(el|la|los|un|una|de|del|que|para|por|mi|se|al)\b",
        "zh": r"[\u4e00-\u9fff]{2}",
    }
    for name in SAFETY:
        plain = Counter(LANGUAGES)
        for prompt in rows(name):
            text, language = text_of(prompt).lower(), str(prompt.columns["language"])
            assert bool(re.search(common["zh"], text)) == (language == "zh"), text
            plain[language] -= bool(language in common and re.search(common[language], text))
        assert all(plain[language] <= 2 for language in common), plain


def test_every_harm_has_prompts_that_only_look_like_it() -> None:
    harms = {prompt.columns["category"] for prompt in rows("harmful")}
    contrasts = Counter(prompt.columns["contrast"] for prompt in rows("benign"))
    assert set(contrasts) == harms
    assert min(contrasts.values()) >= 4


def test_harmful_prompts_are_short_requests() -> None:
    """Check that a prompt asks for something and explains nothing: one or two sentences, no lists, no amounts."""
    for prompt in rows("harmful"):
        text = text_of(prompt)
        assert len(text) <= 120, text
        assert len(re.findall("[.?!\u3002\uff1f]", text)) <= 2, text
        assert not re.search(r"\n|\d", text), text


OF_THE_QUICKSTART = ("quickstart", "notes")  # on prompts that task.py writes


@pytest.mark.parametrize(
    "path", [path for path in SUITES if path.stem not in OF_THE_QUICKSTART], ids=lambda path: path.stem
)
def test_a_suite_names_files_that_are_here(path: Path) -> None:
    config = load_suite(path).config
    for source in (config.prompts, config.harmful, config.benign):
        assert source is not None
        assert (CONFIGS.parent / source).is_file()
    assert config.max_prompts >= max(SIZES.values())


# ------------------------------------------------------------------------------------------------ mathematics


def test_maths_is_what_its_script_writes() -> None:
    script = "import json, maths\nfor row in maths.rows(): print(json.dumps(row))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=CONFIGS / "eval", capture_output=True, text=True, check=True
    )
    assert done.stdout == PROMPTS["maths"].read_text("utf-8")


def _simpson(a: int, _: int, b: int, c: int, start: int, end: int) -> float:
    """Integrate ax² + bx + c; Simpson's rule is exact for it."""
    middle, width = (start + end) / 2, end - start
    return width / 6 * sum(w * (a * x * x + b * x + c) for w, x in ((1, start), (4, middle), (1, end)))


def _heron(*numbers: int) -> float:
    a, b, c = (numbers[i : i + 2] for i in (0, 2, 4))
    sides = dist(a, b), dist(b, c), dist(c, a)
    half = sum(sides) / 2
    return sqrt(half * prod(half - side for side in sides))


def _cramer(a: int, b: int, e: int, c: int, d: int, f: int) -> float:
    return ((e * d - b * f) + (a * f - e * c)) / (a * d - b * c)


def _squares(_: int, total: int, product: int, *__: int) -> float:
    spread = sqrt(total**2 - 4 * product)
    return ((total + spread) / 2) ** 2 + ((total - spread) / 2) ** 2


def _arithmetic(first: int, second: int, count: int) -> float:
    return count * (2 * first + (count - 1) * (second - first)) / 2


def _paths(x: int, y: int, through_x: int, through_y: int) -> float:
    """Count the paths from row to row: each point is reached from the left and from below."""

    def between(right: int, up: int) -> int:
        row = [1] * (right + 1)
        for _ in range(up):
            for i in range(1, right + 1):
                row[i] += row[i - 1]
        return row[-1]

    return between(through_x, through_y) * between(x - through_x, y - through_y)


CHECKS: dict[str, Callable[..., float]] = {
    # kind → the answer from the numbers in the question, by another way than the script's
    "trailing zeros": lambda n: sum(n // 5**k for k in range(1, 5)),
    "exactly one": lambda _, last, a, b: last // a + last // b - 2 * (last // lcm(a, b)),
    "sum of unknowns": _cramer,
    "squares of roots": _squares,
    "arithmetic sum": _arithmetic,
    "together": lambda a, b: 1 / (1 / a + 1 / b),
    "same colour": lambda r, b, g: sum(n * (n - 1) for n in (r, b, g)) / ((r + b + g) * (r + b + g - 1)),
    "lattice paths": lambda *numbers: _paths(*numbers[2:]),
    "integral": _simpson,
    "largest value": lambda a, _, b, c: -abs(a) * (b / (2 * abs(a))) ** 2 + b * b / (2 * abs(a)) + c,
    "triangle": _heron,
}


@pytest.mark.parametrize("kind", CHECKS)
def test_solutions_are_right(kind: str) -> None:
    for prompt in rows("maths"):
        if prompt.columns["category"] == kind:
            numbers = [int(n) for n in re.findall(r"-?\d+", text_of(prompt))]
            numerator, _, denominator = str(prompt.columns["solution"]).partition("/")
            assert CHECKS[kind](*numbers) == pytest.approx(int(numerator) / int(denominator or 1)), text_of(prompt)


def test_the_math_reward_knows_right_from_wrong() -> None:
    assert check_reward_rows([MathRewardConfig(type="math")], "maths.jsonl", rows("maths")) == []
    for prompt in rows("maths")[:40]:
        solution = prompt.columns["solution"]
        assert is_right(solution, f"We compute step by step. The answer is \\boxed{{{solution}}}.")
        assert is_right(solution, f"We compute step by step.\n\nThe final answer is {solution}.")
        assert not is_right(solution, f"The answer is \\boxed{{{solution}1}}.")
