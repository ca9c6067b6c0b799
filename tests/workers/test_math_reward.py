"""Math reward: solutions in the formats of datasets, with right and wrong answers."""

from __future__ import annotations

import numpy as np
import pytest

from workers.rewards.answers import final_statement, marked_answer, parse, wrong_solution
from workers.rewards.base import Completed
from workers.rewards.math import MathScorer, is_right
from workers.types import Prompt

SOLUTIONS: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    # solution, answers that are right, answers that are wrong; all of them in a box
    (r"\frac{1}{2}", (r"\frac{1}{2}", "0.5", "1/2", r"\frac12", r"\dfrac{2}{4}"), (r"\frac{1}{3}", "2", "1")),
    (r"-\frac{3}{4}", (r"-\frac{3}{4}", "-0.75", "-3/4"), ("0.75", r"\frac34")),
    (r"\sqrt{2}", (r"\sqrt{2}", r"\sqrt 2", "2^{1/2}"), ("2", r"\sqrt{3}", "1.41")),
    (r"3\sqrt{5}", (r"3\sqrt{5}", r"\sqrt{45}"), ("5", "3", r"\sqrt5")),
    (r"\frac{\sqrt{3}}{2}", (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt3}2"), (r"\frac{3}{2}", "2")),
    ("2^{10}", ("1024", "2^{10}"), ("2", "10", "20")),
    ("x^2", ("x^2", "x^{2}"), ("2", "x")),
    ("(1,2)", ("(1,2)", "(1, 2)", r"\left(1,2\right)"), ("(2,1)", "1", "12", "(1,3)")),
    (r"\left(3, \frac{\pi}{2}\right)", (r"(3, \pi/2)", r"\left(3,\frac{\pi}{2}\right)"), ("3", r"\frac{\pi}{2}")),
    (r"(-\infty, 2)", (r"(-\infty,2)",), (r"(-\infty,2]", "2", r"(-\infty,3)")),
    ("[0,1)", ("[0,1)",), ("(0,1)", "[0,1]", "0")),
    (r"(-\infty,-2)\cup(2,\infty)", (r"(-\infty,-2)\cup(2,\infty)",), (r"(-\infty,-2)", "2")),
    (r"\{1,2,3\}", (r"\{1,2,3\}", r"\{3,2,1\}"), ("3", r"\{1,2\}")),
    (r"\text{yes}", (r"\text{yes}", "yes", "Yes"), (r"\text{no}", "no")),
    (r"\text{no}", (r"\text{no}", "No"), ("yes",)),
    ("Yes", ("Yes", "yes", r"\text{Yes}"), ("No", "no")),
    ("No", ("No", r"\text{No}"), ("Yes",)),
    (r"\text{(B)}", (r"\text{(B)}", "B", "(B)"), ("A", "(C)")),
    ("A", ("A", r"\text{A}", "(A)"), ("B", "C")),
    ("(C)", ("C", "(C)", r"\text{C}"), ("B",)),
    (r"\text{east}", (r"\text{east}", "east"), ("west",)),
    (r"\text{Evelyn}", (r"\text{Evelyn}", "Evelyn"), ("Briana",)),
    ("even", ("even", r"\text{even}"), ("odd",)),
    (r"50\%", (r"50\%", "50%", "0.5", r"\frac12"), (r"60\%",)),
    ("50%", (r"50\%", "50%"), (r"60\%", "5")),
    (r"\$18.90", ("18.90", r"\$18.90", "18.9"), ("18.91", "18")),
    ("$18.90", ("18.90", r"\$18.90"), ("18.91", "18")),
    ("$5", ("5", r"\$5"), ("6",)),
    (r"5\text{ cm}", ("5", r"5\text{ cm}", r"5 \text{ cm}", r"5\,\text{cm}"), ("6", r"6\text{ cm}")),
    ("12 km/h", ("12", r"12\text{ km/h}"), ("13",)),
    (r"15\text{ cm}^2", ("15", r"15\text{ cm}^2"), ("16", "2")),
    (r"90^\circ", ("90", r"90^\circ"), ("45",)),
    ("1,000", ("1000", "1,000", "1{,}000"), ("1", "100", "0")),
    ("1{,}000", ("1000", "1,000"), ("1",)),
    ("-5", ("-5",), ("5",)),
    ("3.14", ("3.14",), ("3.15", "3")),
    (".5", ("0.5", r"\frac12"), ("5",)),
    ("7", ("7", "7.0"), ("8",)),
    ("7.", ("7",), ("8",)),
    (r"\pi", (r"\pi",), ("3", r"2\pi")),
    (r"2\pi", (r"2\pi",), (r"\pi", "2")),
    ("x=5", ("5", "x=5"), ("6", "x=6")),
    ("x = 5", ("5", "x=5"), ("6",)),
    ("y=2x+3", ("y=2x+3", "2x+3"), ("y=2x+4", "3")),
    ("2x+3", ("2x+3", "3+2x"), ("2x", "3", "2x-3")),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
        (r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", "1", "4"),
    ),
    (
        r"\begin{pmatrix} -1 \\ 2 \end{pmatrix}",
        (r"\begin{pmatrix} -1 \\ 2 \end{pmatrix}",),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",),
    ),
    ("1, 2", ("1, 2", "1,2", "2,1"), ("1", "2", "1,3")),
    ("1,2,3", ("1,2,3",), ("1", "123", "3")),
    ("-2, 3", ("-2,3", "-2, 3"), ("3", "-2")),
    (r"1 \pm \sqrt{2}", (r"1 \pm \sqrt{2}",), ("1",)),
    ("i", ("i",), ("1", "-i")),
    ("3+4i", ("3+4i", "4i+3"), ("3", "4i", "3-4i")),
    (r"\log_2 3", (r"\log_2 3", r"\log_{2}{3}"), ("3", "2")),
    (r"\binom{5}{2}", ("10", r"\binom{5}{2}"), ("5",)),
    ("5!", ("120", "5!"), ("5",)),
    ("10^{-3}", ("0.001", "10^{-3}"), ("10", "1000")),
    (r"1.5 \times 10^3", ("1500", r"1.5\times 10^3"), ("1.5", "10")),
    ("3:4", ("3:4",), ("4:3", "3", "4")),
    ("10:30", ("10:30",), ("10", "30", "10:31")),
    ("x>3", ("x>3",), ("x<3", "3")),
    (r"x \le 2", (r"x \le 2", r"x\leq 2"), ("2", r"x\ge 2")),
    ("1 < x < 3", ("1<x<3",), ("1", "3")),
    (r"0.\overline{3}", (r"0.\overline{3}", r"\frac13"), ("0.3", "3")),
    (r"2\frac{1}{2}", (r"2\frac{1}{2}", "2.5", r"\frac52"), ("1", "2")),
    (r"\emptyset", (r"\emptyset",), ("0",)),
    (r"\mathbb{R}", (r"\mathbb{R}",), ("0",)),
    ("11_2", ("11_2",), ("11_3",)),
    ("True", ("True", "true", r"\text{True}"), ("False",)),
    ("False", ("False",), ("True",)),
    ("Paris", ("Paris", r"\text{Paris}"), ("London",)),
    (r"\infty", (r"\infty",), (r"-\infty", "0")),
    ("0", ("0",), ("1",)),
    (r"\boxed{5}", ("5",), ("6",)),
    ("$5$", ("5",), ("6",)),
    (r"\(\frac12\)", ("0.5",), ("2",)),
    ("$$x^2$$", ("x^2",), ("x",)),
    ("Therefore 5+3=8. #### 8", ("8",), ("5", "3")),
    ("#### 8", ("8",), ("5",)),
    (r"The answer is $\frac{3}{4}$.", ("0.75",), ("3", "4")),
    ("5 dollars", ("5", "5 dollars"), ("6",)),
    ("two", ("two",), ("three",)),
    ("none", ("none",), ("0",)),
    (r"\text{Monday}", ("Monday",), ("Tuesday",)),
    ("f(x)=x^2+1", ("x^2+1", "f(x)=x^2+1"), ("x^2", "1")),
    ("a+b", ("a+b", "b+a"), ("a-b", "a")),
    (r"\frac{x}{y}", (r"\frac{x}{y}", "x/y"), (r"\frac{y}{x}",)),
    (r"\sin x", (r"\sin x", r"\sin(x)"), (r"\cos x",)),
    (r"30^\circ", ("30",), ("60",)),
    (r"\frac{1}{2}, \frac{1}{3}", (r"\frac{1}{2}, \frac{1}{3}",), (r"\frac12",)),
    (r"(2,-3) \text{ and } (1,5)", (r"(2,-3) \text{ and } (1,5)",), ("(2,-3)",)),
    (r"\sqrt[3]{2}", (r"\sqrt[3]{2}", "2^{1/3}"), ("2", r"\sqrt{2}")),
    (r"\sqrt{2+\sqrt{3}}", (r"\sqrt{2+\sqrt{3}}",), (r"\sqrt{2}",)),
    (r"2 \cdot 3^2", ("18", r"2 \cdot 3^2"), ("6", "12")),
    ("(x+1)(x-2)", ("(x+1)(x-2)", "x^2-x-2"), ("x+1", "x^2+x-2")),
    ("xy", ("xy", "yx"), ("x", "y")),
    (r"\left\{1,2\right\}", (r"\{1,2\}", r"\{2,1\}"), ("1",)),
    ("{1,2}", (r"\{1,2\}",), ("1", "2")),
    (r"\left(-\infty, 3\right]", (r"(-\infty,3]",), (r"(-\infty,3)", "3")),
    ("(1,2,3)", ("(1,2,3)",), ("(1,2)", "(3,2,1)", "123")),
    (r"\pm 3", (r"\pm 3", "3,-3"), ("3", "-3")),
    (r"x = \pm 2", (r"\pm 2", r"x=\pm2"), ("2",)),
    (r"x=1 \text{ or } x=2", ("1,2", r"x=1 \text{ or } x=2"), ("1", "2")),
    ("1 or 2", ("1,2", r"1 \text{ or } 2", "1 or 2"), ("1", "2")),
    ("1 and 2", ("1,2", r"1 \text{ and } 2"), ("1", "2", "12")),
    ("x=1, y=2", ("x=1, y=2",), ("1", "2", "x=2, y=1")),
    ("1 1/2", ("1.5", r"\frac32", r"1\frac12"), ("1", "11/2")),
    (r"1\dfrac12", ("1.5",), ("0.5",)),
    (r"1\,000", ("1000",), ("1", "0")),
    ("1 000 000", ("1000000",), ("1", "0")),
    ("12,345.67", ("12345.67",), ("12", "345.67")),
    (r"\$1,234.50", ("1234.5", r"\$1234.50"), ("1", "234.5")),
    ("€5", ("5", "€5"), ("6",)),
    ("5€", ("5",), ("6",)),
    ("-$5", ("-5", r"-\$5"), ("5",)),
    (r"\frac{-1}{2}", ("-0.5", r"-\frac12"), ("0.5",)),
    (r"\frac12", ("0.5", r"\frac{1}{2}"), ("2", "1")),
    (r"\tfrac{3}{8}", ("0.375",), ("3",)),
    ("5 %", (r"5\%", "5%"), (r"6\%",)),
    ("50 percent", (r"50\%", "50", r"50\text{ percent}"), ("60",)),
    ("0.05", (r"5\%", "0.05"), ("0.5", "5")),
    ("A, C", ("A, C", "A,C"), ("A", "C", "B")),
    ("A and C", ("A, C", r"\text{A and C}"), ("A",)),
    ("3/4", ("0.75", r"\frac34"), ("3", "4")),
    ("-3/4", ("-0.75",), ("0.75",)),
    ("x^3-1", ("x^3-1", "-1+x^3"), ("x^3", "x^3+1")),
    (r"y = -\frac{1}{2}x + 3", (r"y = 3-\frac{x}{2}", r"-\frac{1}{2}x + 3"), (r"y = \frac{1}{2}x + 3", "3")),
    ("x≥3", (r"x \ge 3", "x≥3"), (r"x\le 3", "3")),
    ("√2", (r"\sqrt2", "√2"), ("2",)),
    ("2√3", (r"2\sqrt3",), ("2", "3")),
    ("√(x+1)", (r"\sqrt{x+1}",), ("x+1",)),
    ("π", (r"\pi",), ("3",)),
    ("2π", (r"2\pi",), ("2",)),
    ("½", ("0.5",), ("2", "1")),
    ("2×3", ("6",), ("2", "3")),
    ("−5", ("-5",), ("5",)),
    ("x²", ("x^2",), ("x", "2")),
    ("∞", (r"\infty",), ("8",)),
    ("90°", ("90", r"90^\circ"), ("9",)),
    (
        r"\begin{bmatrix}1\\2\end{bmatrix}",
        (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("1", "2"),
    ),
    (r"\langle 1,2\rangle", (r"\langle 1,2\rangle",), ("1", "2")),
    (r"\sin^2 x", (r"\sin^2 x", r"1-\cos^2 x"), (r"\sin x",)),
    ("no solution", ("no solution", r"\text{no solution}", r"\text{No solution}"), ("0", r"\text{one solution}")),
    (r"\text{no solution}", ("no solution",), ("0",)),
    ("DNE", ("DNE", r"\text{DNE}"), ("0",)),
    ("undefined", ("undefined",), ("0",)),
    ("east", ("East",), ("seat", "west")),
    ("no", ("no", "No."), ("on", "yes")),
    ("listen", ("listen",), ("silent",)),
    ("1e-5", ("0.00001", "10^{-5}", "1e-5"), ("1", "5")),
    ("1.5e3", ("1500",), ("1.5",)),
    ("2E10", (r"2\times 10^{10}",), ("2",)),
    ("|x|", ("|x|",), ("x",)),
    (r"\varnothing", (r"\emptyset", r"\varnothing"), ("0",)),
    (r"\mathbb{Z}", (r"\mathbb{Z}",), (r"\mathbb{R}",)),
    (r"\ln 2", (r"\ln 2", r"\ln(2)"), ("2",)),
    (r"\frac{\ln 3}{\ln 2}", (r"\frac{\ln 3}{\ln 2}", r"\log_2 3"), ("3",)),
    (r"5\text{ meters}", ("5", r"5 \text{ m}"), ("6",)),
    (r"5\,\mathrm{m/s}", ("5",), ("6",)),
    (r"20\text{ degrees}", ("20",), ("2",)),
    (r"36^\circ\text{C}", ("36",), ("63",)),
    ("2 hours", ("2", r"2\text{ hours}"), ("3",)),
    ("3 apples", ("3", "3 apples"), ("4",)),
    ("10:30 a.m.", (r"10:30 \text{ a.m.}", "10:30 a.m."), ("10", "11:30 a.m.")),
    ("March 5", ("March 5", r"\text{March 5}"), ("5", "April 5")),
    (r"\text{(A)}", ("A", r"\textbf{(A) }5", r"\text{(A)}"), ("B", r"\textbf{(B) }5")),
    ("B", ("B. Paris", "(B) 12", r"\mathrm{B}"), ("A+B", "C")),
    ("(B) 12", ("B", r"\textbf{(B) }12"), ("C",)),
    ("a_1", ("a_1",), ("a_2", "a")),
    ("101_2", ("101_2", "101_{2}"), ("101_3", "5")),
    (r"0.1\overline{6}", (r"\frac16", r"0.1\overline{6}"), ("0.16",)),
    ("[2,5]", ("[2,5]",), ("(2,5)", "2")),
    ("(2,5)", ("(2,5)",), ("[2,5]",)),
    ("5+i", ("5+i", "i+5"), ("5",)),
    ("e", ("e",), ("1",)),
    ("e^2", ("e^2",), ("2",)),
    ("2.50", ("2.5", "2.50"), ("2.05",)),
    ("100,000", ("100000", "100,000"), ("100",)),
    ("0.333", ("0.333",), ("0.334", "0.34")),
    ("1/3", (r"\frac13",), ("0.3",)),
    ("12", ("12", "12.0", "12."), ("1", "2", "120", "112")),
    ("-12", ("-12",), ("12",)),
    ("+12", ("12",), ("-12",)),
    (r"p \in (0,1)", (r"p \in (0,1)",), ("1",)),
    ("n^2+n", ("n(n+1)", "n^2+n"), ("n^2",)),
    (r"\frac{n(n+1)}{2}", (r"\frac{n^2+n}{2}",), ("n",)),
    (r"\dfrac{a}{b}", (r"\frac ab", "a/b"), ("ab",)),
    ("Infinitely many", ("infinitely many",), ("one",)),
    (r"6 \text{ and } 8", ("6,8", r"6 \text{ and } 8"), ("6", "8")),
    ("6:5", ("6:5",), ("5:6",)),
    (r"\overline{AB}", (r"\overline{AB}",), (r"\overline{CD}",)),
    (r"4\sqrt{2} + 2", (r"2+4\sqrt{2}",), (r"4\sqrt{2}",)),
]


@pytest.mark.parametrize(("solution", "right", "wrong"), SOLUTIONS, ids=[case[0] for case in SOLUTIONS])
def test_answers_in_a_box(solution: str, right: tuple[str, ...], wrong: tuple[str, ...]) -> None:
    for answer in right:
        assert is_right(solution, f"At first 1234. So it is $\\boxed{{{answer}}}$."), f"{answer} is right"
    for answer in wrong:
        assert not is_right(solution, f"At first {right[0]}. So it is $\\boxed{{{answer}}}$."), f"{answer} is wrong"


PROSE = [
    ("5", "I think it's 5.", True),
    ("5", "The answer is 4, not 5", False),
    ("5", "2+3=5", True),
    ("5", "2+2=4", False),
    ("5", "The answer is 2 + 3 = 5", True),
    ("5", "Let $x=5$. So \\boxed{yes}", False),  # what stands in the box is the answer, and nothing before it
    ("5", "Let $x=5$. So \\boxed{}", False),
    ("5", "\\boxed{5", True),
    ("5", "", False),
    ("-5", "-5", True),
    ("5", "-5", False),
    ("1,2", "$\\boxed{1}$ and $\\boxed{2}$", True),
    ("2", "first \\boxed{1}, later on \\boxed{2}", True),
    ("\\sqrt{2}", "so we get $x=\\sqrt{2}$", True),
    ("\\sqrt{2}", "so we get $x=\\sqrt{3}$", False),
    ("\\sqrt{2}", "\\sqrt{2}", True),
    ("x^2", "The answer is x^2.", True),
    ("x^2", "The answer is x^3.", False),
    ("101_2", "101_3", False),
    ("$18.90", "It costs $18.90", True),
    ("18", "3*6=18\n#### 18", True),
    ("18", "3*6=18\n#### 17", False),
    ("Yes", "Yes, because 2 is even.", True),
    ("Yes", "No, because yes would be odd.", False),
    ("Yes", "The answer is **Yes**.", True),
    ("B", "The answer is (B).", True),
    ("B", "**Answer:** B", True),
    ("B", "B) Paris", True),
    ("B", "The answer is C.", False),
    ("B", "\\boxed{(B) or (C)}", False),
    ("Paris", "The answer is Paris, the capital of France.", True),
    ("Paris", "The capital is Paris.", False),  # it sets no answer apart
]


@pytest.mark.parametrize(("solution", "completion", "right"), PROSE)
def test_answers_in_a_text(solution: str, completion: str, right: bool) -> None:
    assert is_right(solution, completion) == right


WORKED = [
    ("48/2 = <<48/2=24>>24 in May.\n#### 24", "24", "48"),  # GSM8K
    ("We see that $x=3$, so it is $\\boxed{\\frac{3}{4}}$.", "0.75", "3"),  # MATH
    ("The answer is $\\frac{3}{4}$.", "0.75", "3"),
    ("The answer is 5", "5", "6"),
]


@pytest.mark.parametrize(("solution", "right", "wrong"), WORKED)
def test_solutions_that_are_worked_out(solution: str, right: str, wrong: str) -> None:
    assert is_right(solution, f"\\boxed{{{right}}}")
    assert not is_right(solution, f"\\boxed{{{wrong}}}")


@pytest.mark.parametrize("value", ["5", 5, 5.0, True, "\\sqrt{2}", "?", "\\boxed{x}", "#### 7", "$5", "{}"])
def test_a_solution_that_can_be_compared(value: object) -> None:
    assert wrong_solution(value) == ""


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("", "contains no answer"),
        ("  . ", "contains no answer"),
        ("\\boxed{}", "contains no answer"),
        ("$$", "contains no answer"),
        (["1", "2"], "is a list, not one answer"),
        ({"value": 1}, "is an object, not one answer"),
    ],
)
def test_a_solution_that_cannot(value: object, wrong: str) -> None:
    assert wrong_solution(value) == wrong


def test_every_solution_that_can_be_compared_gives_0_or_1() -> None:
    solutions = ["?", "~!@", "\\frac{", "}{", "$", "\\", "\\begin{pmatrix}", "9^{9^{9}}", "1" * 500, "(" * 50]
    given = [value for value in solutions if not wrong_solution(value)]
    prompts = [Prompt(id=f"p.jsonl:{i}", text="", columns={"solution": value}) for i, value in enumerate(given)]
    completed = Completed(prompts=prompts, completions=["\\boxed{0}"] * len(given), completion_ids=[[0]] * len(given))
    assert len(given) == 9  # all but a single `$`
    np.testing.assert_array_equal(MathScorer("solution").score(completed), np.zeros(9, np.float32))


def test_what_an_answer_is_read_as() -> None:
    answer = parse("\\textbf{(B) }12")
    assert (answer.choice, answer.rest) == ("B", "12")
    assert parse("\\text{Yes.}").words == "yes" == parse("**yes**").words
    assert parse("12 km/h").latex == "12"
    assert parse("0.1\\overline{6}").latex == "\\frac{1}{6}"  # (16 - 1) / 90
    assert parse("1 1/2").latex == "1\\frac{1}{2}"
    assert (parse("11_{2}").base, parse("a_1").base) == ("2", None)
    assert marked_answer("\\boxed{\\frac{1}{2}} and \\boxed{3}") == "\\frac{1}{2}, 3"
    assert final_statement("Is the answer 3? The answer is 4") == ("4", True)
