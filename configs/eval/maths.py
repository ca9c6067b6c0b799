"""Held-out mathematics with exact answers: 20 kinds of problem, 10 of each, made from a seed.

The answers are computed, most of them by counting, and have one form: an integer or a reduced fraction.

    python configs/eval/maths.py        write configs/eval/maths.jsonl
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from math import comb, factorial, prod
from pathlib import Path

PER_KIND = 10
SEED = 13
WORDS = ("banana", "letter", "pepper", "cheese", "coffee", "ballad", "settee", "tattoo", "puzzle", "arrear", "deeded")
NAMES = ("Ada", "Bruno", "Chidi", "Dana", "Emre", "Farah", "Goran", "Hana")

Problem = tuple[str, int | Fraction]
"""Question and answer."""


# ------------------------------------------------------------------------------------------------ numbers


def power_remainder(rng: random.Random) -> Problem:
    base, exponent, modulus = rng.randint(3, 19), rng.randint(30, 90), rng.randint(11, 41)
    return f"What is the remainder when {base}^{exponent} is divided by {modulus}?", pow(base, exponent, modulus)


def trailing_zeros(rng: random.Random) -> Problem:
    n = rng.randint(40, 400)
    digits = str(factorial(n))
    return f"How many zeros are at the end of {n}! (factorial)?", len(digits) - len(digits.rstrip("0"))


def divisors(rng: random.Random) -> Problem:
    n = prod(prime ** rng.randint(0, 3) for prime in (2, 3, 5, 7)) * rng.choice((11, 13, 17))
    return f"How many positive divisors does {n} have?", sum(n % d == 0 for d in range(1, n + 1))


def exactly_one(rng: random.Random) -> Problem:
    first, second, last = rng.randint(3, 9), rng.randint(10, 16), rng.randint(150, 600)
    count = sum((n % first == 0) != (n % second == 0) for n in range(1, last + 1))
    return f"How many integers from 1 to {last} are divisible by {first} or by {second}, but not by both?", count


def digit_sum(rng: random.Random) -> Problem:
    base, exponent = rng.choice((2, 3, 5, 7)), rng.randint(9, 16)
    return f"What is the sum of the decimal digits of {base}^{exponent}?", sum(map(int, str(base**exponent)))


def remainders(rng: random.Random) -> Problem:
    moduli = rng.choice(((4, 5, 7), (3, 7, 8), (5, 6, 11), (4, 9, 5), (7, 8, 9)))
    rests = [rng.randint(1, modulus - 1) for modulus in moduli]
    answer = next(n for n in range(1, prod(moduli) + 1) if all(n % m == r for m, r in zip(moduli, rests, strict=True)))
    conditions = ", ".join(f"{rest} when divided by {modulus}" for modulus, rest in zip(moduli, rests, strict=True))
    return f"What is the smallest positive integer that leaves the remainders {conditions}?", answer


def other_base(rng: random.Random) -> Problem:
    base = rng.randint(4, 9)
    digits = [rng.randint(1, base - 1), *(rng.randint(0, base - 1) for _ in range(3))]
    text = "".join(map(str, digits))
    return f"Which number in the decimal system is written as {text} in the system with base {base}?", int(text, base)


# ------------------------------------------------------------------------------------------------ algebra


def sum_of_unknowns(rng: random.Random) -> Problem:
    a, b, c, d = (rng.randint(2, 9) for _ in range(4))
    d += a * d == b * c  # otherwise the two equations are one
    x, y = rng.randint(-9, 9), rng.randint(-9, 9)
    equations = f"{a}x + {b}y = {a * x + b * y} and {c}x + {d}y = {c * x + d * y}"
    return f"The numbers x and y satisfy {equations}. What is x + y?", x + y


def squares_of_roots(rng: random.Random) -> Problem:
    total, product_ = rng.randint(7, 15), rng.randint(2, 9)
    equation = f"x^2 - {total}x + {product_} = 0"
    return f"What is the sum of the squares of the two roots of {equation}?", total**2 - 2 * product_


def arithmetic_sum(rng: random.Random) -> Problem:
    start, step, count = rng.randint(-20, 20), rng.randint(3, 12), rng.randint(15, 40)
    question = (
        f"An arithmetic sequence starts with {start}, {start + step}. What is the sum of its first {count} terms?"
    )
    return question, sum(start + step * i for i in range(count))


def recurrence(rng: random.Random) -> Problem:
    p, q, first, second, index = (rng.randint(*r) for r in ((2, 3), (2, 3), (1, 4), (1, 4), (7, 9)))
    terms = [first, second]
    while len(terms) < index:
        terms.append(p * terms[-1] + q * terms[-2])
    rule = f"a_1 = {first}, a_2 = {second} and a_n = {p} a_(n-1) + {q} a_(n-2) for n > 2"
    return f"A sequence is given by {rule}. What is a_{index}?", terms[-1]


def together(rng: random.Random) -> Problem:
    (one, other), (a, b) = rng.sample(NAMES, 2), rng.sample(range(3, 16), 2)
    question = (
        f"{one} paints a fence in {a} hours, {other} paints the same fence in {b} hours. How many hours do they need "
        "together, if neither slows the other down? Give a fraction."
    )
    return question, Fraction(a * b, a + b)


# ------------------------------------------------------------------------------------------------ counting and chance


def committees(rng: random.Random) -> Problem:
    women, men, size = rng.randint(4, 7), rng.randint(4, 7), rng.randint(3, 5)
    count = sum(comb(women, k) * comb(men, size - k) for k in range(2, size + 1))
    question = f"From {women} women and {men} men a committee of {size} is chosen. In how many ways, "
    return question + "if at least two of its members have to be women?", count


def arrangements(rng: random.Random) -> Problem:
    word = rng.choice(WORDS)
    count = factorial(len(word)) // prod(factorial(word.count(letter)) for letter in set(word))
    return f"In how many different ways can the letters of the word {word.upper()} be arranged?", count


def two_dice(rng: random.Random) -> Problem:
    sides, least = rng.choice((6, 8, 10, 12)), rng.randint(7, 11)
    rolls = [a + b >= least for a, b in product(range(1, sides + 1), repeat=2)]
    question = f"Two fair dice with {sides} sides each, numbered from 1, are rolled. What is the probability that "
    return question + f"their sum is at least {least}? Give a reduced fraction.", Fraction(sum(rolls), len(rolls))


def same_colour(rng: random.Random) -> Problem:
    red, blue, green = (rng.randint(2, 8) for _ in range(3))
    same = sum(comb(n, 2) for n in (red, blue, green))
    question = f"A bag holds {red} red, {blue} blue and {green} green balls. Two are drawn at once. What is the "
    answer = Fraction(same, comb(red + blue + green, 2))
    return question + "probability that both have the same colour? Give a reduced fraction.", answer


def lattice_paths(rng: random.Random) -> Problem:
    x, y, right, up = rng.randint(2, 4), rng.randint(2, 4), rng.randint(2, 4), rng.randint(2, 4)
    question = f"A path goes from (0, 0) to ({x + right}, {y + up}) by steps of one unit to the right or up. How many "
    return question + f"such paths pass through ({x}, {y})?", comb(x + y, x) * comb(right + up, up)


# ------------------------------------------------------------------------------------------------ functions, geometry


def integral(rng: random.Random) -> Problem:
    a, b, c, end = rng.randint(2, 7), rng.randint(1, 9), rng.randint(1, 9), rng.randint(2, 5)
    question = f"What is the integral of {a}x^2 + {b}x + {c} from x = 0 to x = {end}? Give an integer or a fraction."
    return question, Fraction(a * end**3, 3) + Fraction(b * end**2, 2) + c * end


def largest_value(rng: random.Random) -> Problem:
    a, b, c = rng.randint(2, 6), rng.randint(3, 15), rng.randint(1, 20)
    question = (
        f"What is the largest value of -{a}x^2 + {b}x + {c} over the real numbers? Give an integer or a fraction."
    )
    return question, c + Fraction(b**2, 4 * a)


def triangle(rng: random.Random) -> Problem:
    points = [(rng.randint(-8, 8), rng.randint(-8, 8)) for _ in range(3)]
    (ax, ay), (bx, by), (cx, cy) = points
    area = Fraction(abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)), 2)
    listed = ", ".join(map(str, points[:2])) + f" and {points[2]}"
    return f"What is the area of the triangle with the corners {listed}?", area


KINDS: tuple[Callable[[random.Random], Problem], ...] = (
    power_remainder, trailing_zeros, divisors, exactly_one, digit_sum, remainders, other_base, sum_of_unknowns,
    squares_of_roots, arithmetic_sum, recurrence, together, committees, arrangements, two_dice, same_colour,
    lattice_paths, integral, largest_value, triangle,
)  # fmt: skip


def rows() -> Iterator[dict[str, object]]:
    """Yield the rows of maths.jsonl, in turn one of each kind, so that any beginning is a fair sample."""
    rng, seen = random.Random(SEED), set[str]()
    for kind in KINDS * PER_KIND:
        question, answer = kind(rng)
        while question in seen or not answer:
            question, answer = kind(rng)
        seen.add(question)
        prompt = [{"role": "user", "content": question}]
        yield {"prompt": prompt, "solution": str(answer), "category": kind.__name__.replace("_", " ")}


def main() -> None:
    path = Path(__file__).with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
    print(f"wrote {len(KINDS) * PER_KIND} problems to {path}")


if __name__ == "__main__":
    main()
