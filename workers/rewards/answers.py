r"""Answers as people and datasets write them, told apart and put into the one spelling that math-verify reads.

    \sqrt{2}, $\sqrt{2}$, √2, \boxed{\sqrt{2}}, … #### \sqrt{2}       →  \sqrt{2}
    \text{Yes}, **yes**, "Yes."                                       →  the words `yes`
    (B), \textbf{(B)}, B., (B) 12                                     →  the choice B

Words are compared as words: as a product of letters `listen` would equal `silent`. Units stand beside a number and are
left out.
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
TOLD = re.compile(r"\b(?:answer|result|solution)\b[*_]*\s*(?:is|=|:)[*_]*\s*:?\s*", re.IGNORECASE)
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
    r"""One answer, read. Example: of `\textbf{(B) }12` the choice is "B", `rest` "12" and `latex` "(B) 12".

    `words` None: it is mathematics. `choice` None: it names no letter. `rest` None: nothing follows the letter. `base`
    None: its digits have no base.
    """

    latex: str
    words: str | None
    choice: str | None = None
    rest: str | None = None
    base: str | None = None


def read(text: str) -> Answer:
    """The answer that `text` is: the whole of it, without a sentence around it."""
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
    """What keeps a dataset's solution from being compared with anything; empty when nothing does."""
    if isinstance(value, dict | list | tuple):
        return f"is {'an object' if isinstance(value, dict) else 'a list'}, not one answer"
    answer = stated(text := str(value))
    return "" if _plain(_bare(text if answer is None else answer)) else "says nothing"


def stated(text: str) -> str | None:
    """The answer that a text sets apart, in a box or behind `####`; None: it sets none apart."""
    if (boxed := _boxed(text)) is not None:
        return boxed
    found = GSM8K.search(text)
    return found[1].strip() if found else None


def stated_answer(text: str) -> tuple[str, bool]:
    """What is said last: what stands behind the last "answer is", or else the whole text; and whether it does."""
    *_, last = [None, *TOLD.finditer(text)]
    tail = text if last is None else text[last.end() :]
    return tail.strip().strip("*`").strip(), last is not None


def is_prose(text: str) -> bool:
    """Whether mathematics stands in it between other words, set off by `$` or the like."""
    text = _without_prices(text).strip()
    return bool(INLINE.search(text)) and _bare(text) == text


def is_set_off(text: str) -> bool:
    """Whether it is all mathematics between `$` or the like, a price, or LaTeX with nothing to set it off."""
    text = text.strip().rstrip(".")
    return _bare(text) != text or ("\\" in text and is_expression(text))


def is_expression(text: str) -> bool:
    """Whether it is one line of mathematics without a word of prose."""
    if "\n" in text or INLINE.search(text) or ("\\" not in text and SPACED.search(text)):
        return False
    plain = _plain(text)
    known = plain.casefold() in NUMBERS or WITH_UNIT.fullmatch(_plain(CURRENCY.sub("", text)))
    return bool(known) or not any(w.casefold() not in MATHS for w in WORD.findall(_without_commands(text)))


def _boxed(text: str) -> str | None:
    """What the last box holds; of boxes that follow one another (`\\boxed{1}, \\boxed{2}`) all of it."""
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
    """Behind the brace that closes the one before `start`; 0 where none does."""
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
    """Without what sets it off as mathematics, or a full stop behind it."""
    text = text.strip().rstrip(".").strip() if not text.strip().endswith("..") else text.strip()
    text = _without_prices(text)
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1].replace("\\$", ""):
        return _bare(text[1:-1])
    for pattern in WHOLE:
        if (found := pattern.fullmatch(text)) and not INLINE.search(found[1]):
            return _bare(found[1])
    return text


def _without_prices(text: str) -> str:
    """A `$` that stands before a number, as every one in the text does, is a price and no mathematics."""
    signs = [i for i, c in enumerate(text) if c == "$" and text[i - 1 : i] != "\\"]
    prices = [i for i in signs if text[i + 1 : i + 2].isdigit() and not text[:i].rstrip().endswith(("$", "{"))]
    return re.sub(r"(?<!\\)\$", "", text) if signs and len(prices) == len(signs) else text


def _plain(text: str) -> str:
    """As it is read: no text commands, no emphasis."""
    while (unwrapped := TEXT.sub(r"\1", text)) != text:
        text = unwrapped
    text = re.sub(r"\\[ ,;:!]|~|\\quad", " ", text).replace("\\left", "").replace("\\right", "")
    return " ".join(text.replace("**", "").replace("$", "").split()).strip("\"'`“”.! ")


def _choice(plain: str) -> tuple[str | None, str | None]:
    if found := CHOICE.fullmatch(plain):
        return found[1], None
    if (found := LABEL.fullmatch(plain)) and not OTHER_CHOICE.search(found[3]):
        return found[1] or found[2], found[3]
    return None, None


def _words(plain: str) -> str | None:
    """None where it is mathematics."""
    said = " ".join(re.sub(r"[,;]?\s+and\s+|[,;]\s*", ", ", plain.casefold()).strip("() ").split())
    if said in NUMBERS or NOT_WORDS.search(said) or WITH_UNIT.fullmatch(said) or PRODUCT.fullmatch(said):
        return None
    words = [word for word in WORD.findall(said) if word not in MATHS]
    return said if words or said in SHORT_WORDS or re.search(r"\d:\d\d ?[ap]\.?m", said) else None


def _without_commands(text: str) -> str:
    return re.sub(r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+", " ", TEXT.sub(" ", text))


def _latex(text: str) -> str:
    if found := TEXT.fullmatch(text.strip()):
        text = found[1].strip()
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    text = ROOT.sub(lambda m: rf"\sqrt{{{next(g for g in m.groups() if g is not None)}}}", text)
    text = CURRENCY.sub("", text).strip()
    text = NUMBERS.get(_plain(text).casefold(), text)
    text = re.sub(r"\binfinity\b", lambda _: r"\infty", text, flags=re.IGNORECASE)
    text = GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    if found := MIXED.fullmatch(text):
        return rf"{found[1]}\frac{{{found[2]}}}{{{found[3]}}}"
    if found := SCIENTIFIC.fullmatch(text):
        return rf"{found[1]} \times 10^{{{int(found[2])}}}"
    text = REPEATING.sub(_as_fraction, text)
    text = FRACTION_OF_LETTER.sub(r"\\\1{\2}{\3}", FRACTION.sub(r"\\\1{\2}{\3}", text))
    if found := WITH_UNIT.fullmatch(_plain(text)):
        return found[1]
    return text


def _as_fraction(found: re.Match[str]) -> str:
    r"""0.1\overline{6} = (16 − 1) / 90."""
    whole, start, period = found[1] or "0", found[2], found[3]
    scale = 10 ** len(start)
    value = Fraction(int(whole + start + period) - int(whole + start), scale * (10 ** len(period) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
