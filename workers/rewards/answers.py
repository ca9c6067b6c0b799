r"""Parsing of answers: separate them from the text around them and normalise them to LaTeX for math-verify.

    \sqrt{2}, $\sqrt{2}$, √2, \boxed{\sqrt{2}}, … #### \sqrt{2}       →  \sqrt{2}
    \text{Yes}, **yes**, "Yes."                                       →  the words `yes`
    (B), \textbf{(B)}, B., (B) 12                                     →  the choice B

Words are compared as words: as a product of letters, `listen` would equal `silent`. Units beside a number are removed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
WHOLE = (re.compile(r"\$\$(.+)\$\$", re.DOTALL), re.compile(r"\\\[(.+)\\\]", re.DOTALL), re.compile(r"\\\((.+)\\\)"))
INLINE = re.compile(r"(?<!\\)\$[^$]+(?<!\\)\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
GSM8K = re.compile(r"####\s*(\S[^\n]*)\s*\Z")
ANNOUNCEMENT = re.compile(r"\b(?:answer|result|solution)\b[*_]*\s*(?:is|=|:)[*_]*\s*:?\s*", re.IGNORECASE)
BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|and|or|,\s*and|,\s*or)?[\s$]*")

CHOICE = re.compile(r"\(?([A-Z])\)?[.:]?")
LABEL = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.:)](?=\s))\s*(\S.*)", re.DOTALL)
OTHER_CHOICE = re.compile(r"\([A-Z]\)")
WORD = re.compile(r"[^\W\d_]{3,}")
NOT_WORDS = re.compile(r"[\\^_=<>+*{}|]|[≤≥≠√π∞±×÷·²³°]|\d\s*/\s*\d")
SHORT_WORDS = frozenset(["no", "on", "up", "so", "ok"])
MATHS = frozenset({
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "arcsin", "arccos", "arctan", "max", "min", "gcd", "lcm",
    "mod", "sqrt", "inf", "infinity", "percent", "and",
})  # fmt: skip
PRODUCT = re.compile(r"[abcxyz]+")
NUMBERS: Mapping[str, str] = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15",
    "sixteen": "16", "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20",
}  # fmt: skip

CURRENCY = re.compile(r"\\\$|[$€£¥₹]|\b(?:USD|EUR|GBP)\b\s*(?=[-\d])")
NUMBER = r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?"
WITH_UNIT = re.compile(
    rf"({NUMBER})\s+(?!and\b|or\b|percent\b)([A-Za-z]{{2,}}(?:[ /.]*[A-Za-z]+)*(?:\^?\{{?[23]\}}?)?\.?)"
)
GROUPS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\\[,;: ]|~|\{,\}| )\d{3})+(?![\d])")
MIXED = re.compile(r"([-+]?\d+)\s+(\d+)\s*/\s*(\d+)")
SCIENTIFIC = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+))[eE]([-+]?\d+)")
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
FRACTION = re.compile(r"\\([dtc]?frac)\s*([A-Za-z0-9])\s*([A-Za-z0-9])(?![{])")
FRACTION_OF_LETTER = re.compile(r"\\([dtc]?frac)\s+([A-Za-z])\s*([A-Za-z0-9])")
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+|[A-Za-z]))")
SPACED = re.compile(r"\d\s+\d")
OF_BASE = re.compile(r"[0-9A-Fa-f]*[0-9][0-9A-Fa-f]*_\{?(\d+)\}?")
SIGNS: Mapping[str, str] = {
    "−": "-", "–": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "±": r"\pm ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "∅": r"\emptyset ", "\u222a": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "\u211d": r"\mathbb{R}", "\u00a0": " ",
    "\u202f": " ", "\u2009": " ", r"\varnothing": r"\emptyset", r"\lbrace": r"\{", r"\rbrace": r"\}",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    r"""Parsed answer. Example: `\textbf{(B) }12` has the choice "B", the rest "12" and the LaTeX "(B) 12"."""

    latex: str  # normalised LaTeX
    words: str | None  # normalised words; None: it is mathematics
    choice: str | None = None  # letter of a multiple-choice answer; None: there is none
    rest: str | None = None  # text after the letter; None: nothing follows it
    base: str | None = None  # base of a number such as 101_2; None: the base is not given


def parse(text: str) -> Answer:
    """Parse `text`, which is an answer without a sentence around it."""
    text = _bare(text)
    plain = _plain(text)
    letter, rest = _choice(plain)
    of_base = OF_BASE.fullmatch(text.replace(" ", ""))
    return Answer(
        latex=_latex(text),
        words=_words(plain),
        choice=letter,
        rest=rest,
        base=of_base[1] if of_base else None,
    )


def wrong_solution(value: object) -> str:
    """Return why a dataset's solution cannot be compared with an answer, or an empty string if it can."""
    if isinstance(value, dict | list | tuple):
        return f"is {'an object' if isinstance(value, dict) else 'a list'}, not one answer"
    answer = marked_answer(text := str(value))
    return "" if _plain(_bare(text if answer is None else answer)) else "contains no answer"


def marked_answer(text: str) -> str | None:
    """Return the answer that is marked in the text, by a box or by `####`. None: no answer is marked."""
    if (boxed := _boxed(text)) is not None:
        return boxed
    marked = GSM8K.search(text)
    return marked[1].strip() if marked else None


def final_statement(text: str) -> tuple[str, bool]:
    """Return the text after the last "answer is" and True, or the whole text and False."""
    *_, last = [None, *ANNOUNCEMENT.finditer(text)]
    tail = text if last is None else text[last.end() :]
    return tail.strip().strip("*`").strip(), last is not None


def is_prose(text: str) -> bool:
    """Return whether the text is prose that contains mathematics between `$` or similar delimiters."""
    text = _without_prices(text).strip()
    return bool(INLINE.search(text)) and _bare(text) == text


def is_set_off(text: str) -> bool:
    """Return whether all of the text is mathematics between delimiters, a price, or LaTeX without delimiters."""
    text = text.strip().rstrip(".")
    return _bare(text) != text or ("\\" in text and is_expression(text))


def is_expression(text: str) -> bool:
    """Return whether the text is one line of mathematics without prose."""
    if "\n" in text or INLINE.search(text) or ("\\" not in text and SPACED.search(text)):
        return False
    plain = _plain(text)
    is_number = plain.casefold() in NUMBERS or WITH_UNIT.fullmatch(_plain(CURRENCY.sub("", text)))
    return bool(is_number) or not any(w.casefold() not in MATHS for w in WORD.findall(_without_commands(text)))


def _boxed(text: str) -> str | None:
    """Return the content of the last box, or of all boxes that follow one another (`\\boxed{1}, \\boxed{2}`)."""
    boxes = [(m.start(), end, text[m.end() : end - 1]) for m in BOX.finditer(text) if (end := _closed(text, m.end()))]
    if not boxes:
        return None
    taken = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if box[1] > taken[0][0] or not BETWEEN_BOXES.fullmatch(text[box[1] : taken[0][0]]):
            break
        taken.insert(0, box)
    return ", ".join(content for _, _, content in taken).strip()


def _closed(text: str, start: int) -> int:
    """Return the position after the brace that closes the one before `start`, or 0 if there is none."""
    depth, i = 1, start
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] in "{}":
            depth += 1 if text[i] == "{" else -1
            if not depth:
                return i + 1
        i += 1
    return 0


def _bare(text: str) -> str:
    """Remove the delimiters of mathematics and a final full stop."""
    text = text.strip().rstrip(".").strip() if not text.strip().endswith("..") else text.strip()
    text = _without_prices(text)
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1].replace("\\$", ""):
        return _bare(text[1:-1])
    for pattern in WHOLE:
        if (match := pattern.fullmatch(text)) and not INLINE.search(match[1]):
            return _bare(match[1])
    return text


def _without_prices(text: str) -> str:
    """Remove the `$` signs if each of them stands before a number: they are prices, not delimiters."""
    signs = [i for i, c in enumerate(text) if c == "$" and text[i - 1 : i] != "\\"]
    prices = [i for i in signs if text[i + 1 : i + 2].isdigit() and not text[:i].rstrip().endswith(("$", "{"))]
    return re.sub(r"(?<!\\)\$", "", text) if signs and len(prices) == len(signs) else text


def _plain(text: str) -> str:
    """Remove text commands and emphasis."""
    while (unwrapped := TEXT.sub(r"\1", text)) != text:
        text = unwrapped
    text = re.sub(r"\\[ ,;:!]|~|\\quad", " ", text).replace("\\left", "").replace("\\right", "")
    return " ".join(text.replace("**", "").replace("$", "").split()).strip("\"'`“”.! ")


def _choice(plain: str) -> tuple[str | None, str | None]:
    if match := CHOICE.fullmatch(plain):
        return match[1], None
    if (match := LABEL.fullmatch(plain)) and not OTHER_CHOICE.search(match[3]):
        return match[1] or match[2], match[3]
    return None, None


def _words(plain: str) -> str | None:
    """Return the normalised words. None: the text is mathematics."""
    text = " ".join(re.sub(r"[,;]?\s+and\s+|[,;]\s*", ", ", plain.casefold()).strip("() ").split())
    if text in NUMBERS or NOT_WORDS.search(text) or WITH_UNIT.fullmatch(text) or PRODUCT.fullmatch(text):
        return None
    words = [word for word in WORD.findall(text) if word not in MATHS]
    return text if words or text in SHORT_WORDS or re.search(r"\d:\d\d ?[ap]\.?m", text) else None


def _without_commands(text: str) -> str:
    return re.sub(r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+", " ", TEXT.sub(" ", text))


def _latex(text: str) -> str:
    if match := TEXT.fullmatch(text.strip()):
        text = match[1].strip()
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    text = ROOT.sub(lambda m: rf"\sqrt{{{next(g for g in m.groups() if g is not None)}}}", text)
    text = CURRENCY.sub("", text).strip()
    text = NUMBERS.get(_plain(text).casefold(), text)
    text = re.sub(r"\binfinity\b", lambda _: r"\infty", text, flags=re.IGNORECASE)
    text = GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    if match := MIXED.fullmatch(text):
        return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}"
    if match := SCIENTIFIC.fullmatch(text):
        return rf"{match[1]} \times 10^{{{int(match[2])}}}"
    text = REPEATING.sub(_as_fraction, text)
    text = FRACTION_OF_LETTER.sub(r"\\\1{\2}{\3}", FRACTION.sub(r"\\\1{\2}{\3}", text))
    if match := WITH_UNIT.fullmatch(_plain(text)):
        return match[1]
    return text


def _as_fraction(match: re.Match[str]) -> str:
    r"""Convert a repeating decimal to a fraction: 0.1\overline{6} = (16 − 1) / 90."""
    whole, start, period = match[1] or "0", match[2], match[3]
    scale = 10 ** len(start)
    value = Fraction(int(whole + start + period) - int(whole + start), scale * (10 ** len(period) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
