"""Tokenizer of a model directory without torch or transformers, to encode rows and find special tokens in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.template import ChatTemplate, named_tokens, read_object
from workers.codec import NO_COLUMNS, Codec, end_tokens
from workers.conversation import TextError, arguments_of, message_text, unencodable
from workers.positions import positions_of
from workers.types import Text

NO_END = -1  # id of the end of sequence if the files do not name one


class FileTokenizer:
    """Implementation of `codec.Tokenizer` by `tokenizer.json` and the chat template of a model directory.

    Args:
        library: the tokenizer of the `tokenizers` library; None: it cannot be read, and characters stand for tokens.
    """

    def __init__(self, directory: Path, library: Any) -> None:
        self.library = library
        self.template = ChatTemplate.of(directory)
        eos = named_tokens(directory).get("eos_token")
        number = library.token_to_id(eos) if library is not None and eos is not None else None
        self.eos = NO_END if number is None else int(number)
        listed = end_tokens(read_object(directory / "generation_config.json")) if library is not None else ()
        self.stops = frozenset({self.eos, *listed})
        self.added = frozenset(library.get_added_tokens_decoder()) if library is not None else frozenset()

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        if self.library is None:
            return [ord(character) for character in text]
        try:
            return list(self.library.encode(text, add_special_tokens=special).ids)
        except Exception as error:  # the library raises nothing more specific
            raise unencodable(error) from error

    def decode(self, tokens: Sequence[int]) -> str:
        numbers = [token for token in tokens if token >= 0]
        if self.library is None:
            return "".join(map(chr, numbers))
        return str(self.library.decode(numbers, skip_special_tokens=False))

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **arguments: Any) -> str:
        if self.template is None:
            raise TextError("there is no chat template", "put a chat_template.jinja into the model directory")
        return self.template.render(messages, add_generation_prompt=add_generation_prompt, **arguments)


class TokenCounter:
    """Tokenizer of a model directory, to count tokens before any actor is started.

    `codec` encodes rows as the actors do. If `is_exact` is False there is no readable `tokenizer.json`, and characters
    stand for tokens.

    Args:
        special: texts of the special tokens: "<|im_start|>", "</s>", …
        max_positions: context length of the model; None: unknown.
        arguments: `chat_template_kwargs` of the recipe.
    """

    def __init__(
        self,
        tokenizer: FileTokenizer,
        special: tuple[str, ...],
        max_positions: int | None = None,
        arguments: Mapping[str, Any] = NO_COLUMNS,
    ) -> None:
        self.tokenizer, self.max_positions = tokenizer, max_positions
        self.codec, self.arguments = Codec(tokenizer, arguments), arguments
        self.special = special
        longest_first = sorted(special, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if special else None

    @classmethod
    def of(cls, directory: Path, arguments: Mapping[str, Any] = NO_COLUMNS) -> TokenCounter | None:
        """Return the tokenizer of a model directory; None: it has no readable `tokenizer.json`."""
        from tokenizers import Tokenizer

        try:
            raw = (directory / "tokenizer.json").read_text("utf-8")
            library = Tokenizer.from_str(raw)
            added = json.loads(raw).get("added_tokens") or ()
        except Exception:  # the library raises nothing more specific
            return None
        library.no_truncation()
        library.no_padding()
        special = tuple(token["content"] for token in added if token.get("special") and token["content"])
        return cls(
            FileTokenizer(directory, library), special, positions_of(read_object(directory / "config.json")), arguments
        )

    @classmethod
    def of_template(cls, directory: Path, arguments: Mapping[str, Any] = NO_COLUMNS) -> TokenCounter | None:
        """Return a tokenizer with only the chat template, which cannot count tokens; None: there is no template."""
        tokenizer = FileTokenizer(directory, None)
        return None if tokenizer.template is None else cls(tokenizer, (), None, arguments)

    @property
    def is_exact(self) -> bool:
        return self.tokenizer.library is not None

    def size(self, text: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> int:
        """Return the bytes of a rendered prompt, an upper bound of its tokens in nearly all cases."""
        if isinstance(text, str) or self.tokenizer.template is None:
            return num_bytes(text)
        try:
            rendered = self.tokenizer.render(
                text, add_generation_prompt=True, **{**self.arguments, **arguments_of(columns)}
            )
        except TextError:
            return num_bytes(text)
        return num_bytes(rendered)

    def prompt(self, text: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
        """Return the tokens of a prompt, or those of its messages if the template cannot render it."""
        if isinstance(text, str) or self.tokenizer.template is not None:
            try:
                return self.codec.encode_prompt(text, columns)
            except TextError:
                pass
        return self._plain(text)

    def completion(self, text: Text) -> list[int]:
        """Return the tokens of a completion, without those of a chat template."""
        return self._plain(text)

    def special_in(self, text: Text) -> set[str]:
        """Return the special tokens that a text contains; the tokenizer encodes them as such."""
        if self._pattern is None:
            return set()
        return {token for part in _parts(text) for token in self._pattern.findall(part)}

    def _plain(self, text: Text) -> list[int]:
        return [token for part in _parts(text) for token in self.tokenizer.encode(part)]


def _parts(text: Text) -> Iterator[str]:
    if isinstance(text, str):
        yield text
    else:
        yield from (message["content"] for message in text if isinstance(message.get("content"), str))


def num_bytes(text: Text) -> int:
    """Return the bytes of a text. Texts hardly ever have more tokens than bytes, so short ones need no tokenising."""
    parts = (text,) if isinstance(text, str) else map(message_text, text)
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in parts)
