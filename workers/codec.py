"""Rows as tokens: by the same rules in the actors, which learn from them, and in `rlhf validate`, which looks at them.

    strings         start + tokens of the prompt  |  tokens of the completion + end of sequence
    conversations   tokens of the rendered prompt  |  what the rendered conversation has behind that

A prompt and a completion that are strings are encoded apart, as sampling has them: no token spans the boundary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from workers.conversation import TextError, after_an_answer, arguments_of, write
from workers.types import Text

NO_COLUMNS: Mapping[str, Any] = {}
ANCHORS = ("\n", "=", ":", "a", "0")  # what a completion may be written behind, to see its tokens inside a text


class Tokenizer(Protocol):
    """What texts are encoded with."""

    eos: int
    stops: frozenset[int]  # every token that ends a completion, `eos` among them
    added: frozenset[int]  # tokens that stand for themselves: special ones, and further ones that were added

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens; with `special` those, too, that the tokenizer adds to a text of its own accord. Raises TextError."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text with special tokens, and without any tidying up."""
        ...

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **arguments: Any) -> str:
        """By the chat template. Raises TextError."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A prompt with its completions as tokens.

    `moved`: the prompt is not all of the prompt as sampling has it, but the beginning that it shares with the rendered
    conversations. `left_out`: the template does not write all of an answer.
    """

    prompt: list[int]
    completions: list[list[int]]
    moved: bool = False
    left_out: bool = False


class Codec:
    """Text to tokens. `arguments`: what the recipe gives every chat template; a row's own come on top."""

    def __init__(self, tokenizer: Tokenizer, arguments: Mapping[str, Any] = NO_COLUMNS) -> None:
        self._tokenizer, self._arguments = tokenizer, dict(arguments)
        self._start = _start(tokenizer)
        self._spaced = _adds_a_space(tokenizer)
        self._ends = tuple(filter(None, (tokenizer.decode([stop]) for stop in sorted(tokenizer.stops))))

    def encode_prompt(self, text: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
        """Raises TextError."""
        if isinstance(text, str):
            tokens = self._tokenizer.encode(text)
            # A text that was rendered before brings its start along. Nothing is appended: a prompt has no end.
            return tokens if self._starts(tokens) else [*self._start, *tokens]
        return self._tokenizer.encode(self._write(text, columns, add_generation_prompt=True))

    def encode_completion(self, prompt: Text, completion: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
        """The tokens that follow the prompt's. Raises TextError."""
        return self.row(prompt, [completion], columns).completions[0]

    def row(self, prompt: Text, completions: Sequence[Text], columns: Mapping[str, Any] = NO_COLUMNS) -> Encoded:
        """A prompt with each of its completions. Raises TextError."""
        if any(isinstance(prompt, str) != isinstance(completion, str) for completion in completions):
            raise TextError("prompt and completion must both be strings or both be conversations", "mend the row")
        if isinstance(prompt, str):
            head = self.encode_prompt(prompt)
            return Encoded(prompt=head, completions=[self._continuation(head, prompt, str(c)) for c in completions])
        return self._conversations(prompt, [c for c in completions if not isinstance(c, str)], columns)

    # ------------------------------------------------------------------------------------------------ strings

    def _continuation(self, head: Sequence[int], prompt: str, completion: str) -> list[int]:
        tokens = self._inside(completion) if self._spaced and prompt else self._tokenizer.encode(completion)
        if not prompt and list(head) == self._start and self._starts(tokens):
            tokens = tokens[len(self._start) :]
        return tokens if completion.rstrip().endswith(self._ends) else [*tokens, self._tokenizer.eos]

    def _starts(self, tokens: Sequence[int]) -> bool:
        return bool(self._start) and list(tokens[: len(self._start)]) == self._start

    def _inside(self, completion: str) -> list[int]:
        """The tokens of a text as they are inside another one, by a tokenizer that puts a space before every text."""
        for anchor in ANCHORS:
            try:
                before, whole = (
                    self._tokenizer.encode(anchor),
                    self._tokenizer.encode(anchor + completion),
                )
            except TextError:  # it knows no such letter
                continue
            if whole[: len(before)] == before and self._tokenizer.decode(whole) == anchor + completion:
                return whole[len(before) :]
        return self._tokenizer.encode(completion)

    # ------------------------------------------------------------------------------------------------ conversations

    @property
    def turn_end(self) -> int | None:
        """The token that the chat template ends the assistant's turn with; None: it is no single token of its own."""
        for tail in after_an_answer(self._render):
            for token in self._tokenizer.encode(tail):
                if token in self._tokenizer.added:
                    return token
                if self._tokenizer.decode([token]).strip():
                    break
        return None

    def _render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        return self._tokenizer.render(messages, add_generation_prompt=add_generation_prompt, **self._arguments)

    def _write(self, messages: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], **how: bool) -> str:
        return write(self._tokenizer.render, messages, {**self._arguments, **arguments_of(columns)}, **how)

    def _conversations(
        self,
        prompt: Sequence[Mapping[str, Any]],
        completions: Sequence[Sequence[Mapping[str, Any]]],
        columns: Mapping[str, Any],
    ) -> Encoded:
        asked = self._write(prompt, columns, add_generation_prompt=True)
        answered = [self._write([*prompt, *c], columns, add_generation_prompt=False) for c in completions]
        head, wholes = self._tokenizer.encode(asked), [self._tokenizer.encode(text) for text in answered]
        length = min([len(head), *(_common(head, whole) for whole in wholes)])
        if length < len(head):
            self._refuse_rewriting(prompt, columns, asked, answered, length)
        if any(len(whole) <= length for whole in wholes):
            fix = "use a template that writes what the assistant says, or remove these rows"
            raise TextError("the chat template writes nothing of an answer", fix)
        return Encoded(
            prompt=head[:length],
            completions=[whole[length:] for whole in wholes],
            moved=length < len(head),
            left_out=any(_left_out(c, text) for c, text in zip(completions, answered, strict=True)),
        )

    def _refuse_rewriting(
        self,
        prompt: Sequence[Mapping[str, Any]],
        columns: Mapping[str, Any],
        asked: str,
        answered: Sequence[str],
        length: int,
    ) -> None:
        """Raises TextError where more differs than how an answer begins: the turns before it do."""
        try:
            turns = _common(asked, self._write(prompt, columns, add_generation_prompt=False))
        except TextError:
            turns = 1
        if length == 0 or any(_common(asked, text) < turns for text in answered):
            raise TextError(
                "the chat template does not render a conversation as a continuation of its prompt: it writes earlier "
                "turns otherwise, so the completion's tokens cannot be told from the prompt's",
                "use a template that leaves earlier turns as they are, or give rows of one question and one answer",
            )


def _start(tokenizer: Tokenizer) -> list[int]:
    """What a tokenizer puts before a text of its own accord. What it appends is left out: a prompt goes on."""
    try:
        plain, whole = tokenizer.encode("a"), tokenizer.encode("a", special=True)
    except TextError:
        plain, whole = [], tokenizer.encode("", special=True)
    if not plain:  # it knows no such letter
        return list(takewhile(lambda token: token not in tokenizer.stops, whole))
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:at]


def _adds_a_space(tokenizer: Tokenizer) -> bool:
    """Whether it puts a space before every text, as SentencePiece does: "a" and "b", one after the other, are "a b"."""
    try:
        tokens = [tokenizer.encode(letter) for letter in ("a", "b")]
    except TextError:  # it knows no such letters
        return False
    return all(tokens) and tokenizer.decode(tokens[0] + tokens[1]).strip() == "a b"


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _left_out(completion: Sequence[Mapping[str, Any]], text: str) -> bool:
    """Whether some of what the assistant says is not in the text, white space aside."""
    written = "".join(text.split())
    return any(
        "".join((message.get("content") or "").split()) not in written
        for message in completion
        if message.get("role") == "assistant"
    )


def end_tokens(generation_config: Mapping[str, Any] | None) -> Collection[int]:
    """What a generation config calls an end of sequence: a number, or a list of them."""
    declared = (generation_config or {}).get("eos_token_id")
    listed = declared if isinstance(declared, list) else [declared]
    return [token for token in listed if type(token) is int]
