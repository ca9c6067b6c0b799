"""Encoding of dataset rows as tokens. The workers and `rlhf validate` use the same rules.

    strings         start + tokens of the prompt  |  tokens of the completion + end of sequence
    conversations   tokens of the rendered prompt  |  tokens that the rendered conversation adds to it

Prompt and completion strings are encoded separately, as in sampling: no token spans the boundary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from workers.conversation import TextError, arguments_of, text_after_answer, write
from workers.types import Text

NO_COLUMNS: Mapping[str, Any] = {}
ANCHORS = ("\n", "=", ":", "a", "0")  # texts before a completion, to find its tokens inside a longer text


class Tokenizer(Protocol):
    """Interface of a tokenizer with a chat template."""

    eos: int
    stops: frozenset[int]  # tokens that end a completion, including `eos`
    added: frozenset[int]  # special tokens and other added tokens

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Encode a text. With `special`, add the tokens that the tokenizer puts around texts. Raises TextError."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode tokens, with special tokens and without clean-up."""
        ...

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **arguments: Any) -> str:
        """Render a conversation by the chat template. Raises TextError."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Tokens of a prompt and its completions."""

    prompt: list[int]
    completions: list[list[int]]
    moved: bool = False  # the prompt is shorter than in sampling: the part that it shares with all conversations
    left_out: bool = False  # the template does not render all of an answer


class Codec:
    """Encoder of prompts, completions and rows."""

    def __init__(self, tokenizer: Tokenizer, arguments: Mapping[str, Any] = NO_COLUMNS) -> None:
        """Wrap `tokenizer`. `arguments`: chat template arguments of the recipe, which those of a row override."""
        self._tokenizer, self._arguments = tokenizer, dict(arguments)
        self._start = _start(tokenizer)
        self._spaced = _adds_a_space(tokenizer)
        self._ends = tuple(filter(None, (tokenizer.decode([stop]) for stop in sorted(tokenizer.stops))))

    def encode_prompt(self, text: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
        """Encode a prompt. Raises TextError."""
        if isinstance(text, str):
            tokens = self._tokenizer.encode(text)
            # A text that has already been rendered includes its start. No end is appended: a prompt continues.
            return tokens if self._starts(tokens) else [*self._start, *tokens]
        return self._tokenizer.encode(self._write(text, columns, add_generation_prompt=True))

    def encode_completion(self, prompt: Text, completion: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
        """Encode a completion: the tokens that follow those of the prompt. Raises TextError."""
        return self.row(prompt, [completion], columns).completions[0]

    def row(self, prompt: Text, completions: Sequence[Text], columns: Mapping[str, Any] = NO_COLUMNS) -> Encoded:
        """Encode a prompt and its completions. Raises TextError."""
        if any(isinstance(prompt, str) != isinstance(completion, str) for completion in completions):
            raise TextError("prompt and completion must both be strings or both be conversations", "fix the row")
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
        """Encode a text as it is encoded inside another one, for a tokenizer that puts a space before every text."""
        for anchor in ANCHORS:
            try:
                before, whole = self._tokenizer.encode(anchor), self._tokenizer.encode(anchor + completion)
            except TextError:  # the anchor is not in its vocabulary
                continue
            if whole[: len(before)] == before and self._tokenizer.decode(whole) == anchor + completion:
                return whole[len(before) :]
        return self._tokenizer.encode(completion)

    # ------------------------------------------------------------------------------------------------ conversations

    @property
    def turn_end(self) -> int | None:
        """Token with which the chat template ends the assistant's turn; None: it is not a single token."""
        for tail in text_after_answer(self._render):
            for token in self._tokenizer.encode(tail):
                if token in self._tokenizer.added:
                    return token
                if self._tokenizer.decode([token]).strip():
                    break
        return None

    def _render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        return self._tokenizer.render(messages, add_generation_prompt=add_generation_prompt, **self._arguments)

    def _write(
        self, messages: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], *, add_generation_prompt: bool
    ) -> str:
        arguments = {**self._arguments, **arguments_of(columns)}
        return write(self._tokenizer.render, messages, arguments, add_generation_prompt=add_generation_prompt)

    def _conversations(
        self,
        prompt: Sequence[Mapping[str, Any]],
        completions: Sequence[Sequence[Mapping[str, Any]]],
        columns: Mapping[str, Any],
    ) -> Encoded:
        prompt_text = self._write(prompt, columns, add_generation_prompt=True)
        texts = [self._write([*prompt, *c], columns, add_generation_prompt=False) for c in completions]
        head, wholes = self._tokenizer.encode(prompt_text), [self._tokenizer.encode(text) for text in texts]
        length = min([len(head), *(_common(head, whole) for whole in wholes)])
        if length < len(head):
            self._refuse_rewriting(prompt, columns, prompt_text, texts, length)
        if any(len(whole) <= length for whole in wholes):
            fix = "use a template that renders the assistant's messages, or remove these rows"
            raise TextError("the chat template renders nothing of an answer", fix)
        return Encoded(
            prompt=head[:length],
            completions=[whole[length:] for whole in wholes],
            moved=length < len(head),
            left_out=any(_left_out(c, text) for c, text in zip(completions, texts, strict=True)),
        )

    def _refuse_rewriting(
        self,
        prompt: Sequence[Mapping[str, Any]],
        columns: Mapping[str, Any],
        prompt_text: str,
        texts: Sequence[str],
        length: int,
    ) -> None:
        """Raise TextError if the conversations differ from the prompt in its turns, not only after them."""
        try:
            turns = _common(prompt_text, self._write(prompt, columns, add_generation_prompt=False))
        except TextError:
            turns = 1
        if length == 0 or any(_common(prompt_text, text) < turns for text in texts):
            raise TextError(
                "the chat template does not render a conversation as a continuation of its prompt: it renders earlier "
                "turns differently, so the boundary between prompt and completion is unknown",
                "use a template that leaves earlier turns unchanged, or rows of one question and one answer",
            )


def _start(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that a tokenizer puts before a text. Those that it appends are ignored: a prompt continues."""
    try:
        plain, whole = tokenizer.encode("a"), tokenizer.encode("a", special=True)
    except TextError:
        plain, whole = [], tokenizer.encode("", special=True)
    if not plain:  # "a" is not in its vocabulary
        return list(takewhile(lambda token: token not in tokenizer.stops, whole))
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:at]


def _adds_a_space(tokenizer: Tokenizer) -> bool:
    """Return True if a tokenizer puts a space before every text, like SentencePiece: "a" followed by "b" is "a b"."""
    try:
        tokens = [tokenizer.encode(letter) for letter in ("a", "b")]
    except TextError:  # the letters are not in its vocabulary
        return False
    return all(tokens) and tokenizer.decode(tokens[0] + tokens[1]).strip() == "a b"


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the common beginning of two sequences."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _left_out(completion: Sequence[Mapping[str, Any]], text: str) -> bool:
    """Return True if the text lacks content of an assistant's message, white space aside."""
    written = "".join(text.split())
    return any(
        "".join((message.get("content") or "").split()) not in written
        for message in completion
        if message.get("role") == "assistant"
    )


def end_tokens(generation_config: Mapping[str, Any] | None) -> Collection[int]:
    """Return the end-of-sequence tokens of a generation config, which holds one id or a list of ids."""
    declared = (generation_config or {}).get("eos_token_id")
    listed = declared if isinstance(declared, list) else [declared]
    return [token for token in listed if type(token) is int]
