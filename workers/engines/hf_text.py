"""Encoding and decoding of text with the tokenizers and chat templates of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import transformers
from transformers.utils import cached_file

from workers.codec import NO_COLUMNS, Codec, Encoded, end_tokens
from workers.config import ModelConfig
from workers.conversation import TextError, refused, unencodable
from workers.engines.base import ModelError
from workers.types import Text
from workers.vocabulary import first_difference


class HfTokenizer:
    """A tokenizer of transformers with the interface `codec.Tokenizer`."""

    def __init__(self, path: str, today: datetime | None = None) -> None:
        """Load a tokenizer. `today`: the date that `strftime_now` gives to templates; None: the current date."""
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        self._today = today
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"{path}: the tokenizer has no end-of-sequence token, so a completion could never stop; "
                "set eos_token in its tokenizer_config.json"
            )
        self.eos = int(self.tokenizer.eos_token_id)
        self.stops = frozenset(stop_token_ids(path, self.eos))
        self.added = frozenset({*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder})

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        try:
            return cast("list[int]", self.tokenizer(text, add_special_tokens=special)["input_ids"])
        except Exception as error:  # the library raises nothing more specific
            raise unencodable(error) from error

    def decode(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **arguments: Any) -> str:
        if not self.tokenizer.chat_template:
            raise TextError(
                "the data are conversations, but the tokenizer has no chat template",
                "add chat_template.jinja to the model directory, or use plain-string prompts",
            )
        if self._today is not None:
            arguments = {"strftime_now": self._today.strftime, **arguments}
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=add_generation_prompt, tokenize=False, **arguments
            )
        except Exception as error:  # a template may raise anything
            raise refused(error) from error
        return cast(str, rendered)


class TextCodec:
    """Encoder and decoder of strings and conversations, by the rules of `codec.Codec`."""

    def __init__(self, config: ModelConfig) -> None:
        assert config.path is not None
        today = None if config.template_date is None else datetime.fromisoformat(config.template_date)
        self._tokenizer = HfTokenizer(config.path, today)
        self.tokenizer: Any = self._tokenizer.tokenizer
        self._codec = Codec(self._tokenizer, config.chat_template_kwargs)

    @property
    def eos_token_id(self) -> int:
        return self._tokenizer.eos

    def stop_tokens(self, *, conversational: bool) -> list[int]:
        """Return the tokens that end a completion; in conversations also the one that ends a turn in the template."""
        end = self._codec.turn_end if conversational and self.tokenizer.chat_template else None
        return sorted(self._tokenizer.stops | ({end} if end is not None else set()))

    def encode_prompt(self, text: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
        """Encode a prompt. Raises ModelError."""
        try:
            return self._codec.encode_prompt(text, columns)
        except TextError as error:
            raise ModelError(str(error)) from error

    def encode_completion(self, prompt: Text, completion: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
        """Encode a completion: the tokens that follow those of the prompt. Raises ModelError."""
        return self.encode_row(prompt, [completion], columns).completions[0]

    def encode_row(self, prompt: Text, completions: Sequence[Text], columns: Mapping[str, Any] = NO_COLUMNS) -> Encoded:
        """Encode a prompt and its completions. Raises ModelError."""
        try:
            return self._codec.row(prompt, completions, columns)
        except TextError as error:
            raise ModelError(str(error)) from error

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode tokens, without special tokens."""
        return cast(str, self.tokenizer.decode(tokens, skip_special_tokens=True))

    def decode_batch(self, sequences: Iterable[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Decode each sequence. The token that ends a completion is left out even if special tokens are not skipped."""
        listed = [list(sequence) for sequence in sequences]
        if not skip_special_tokens:
            ends = set(self.stop_tokens(conversational=True))
            listed = [tokens[:-1] if tokens and tokens[-1] in ends else tokens for tokens in listed]
        # transformers decodes an empty list as one empty text.
        texts = self.tokenizer.batch_decode(listed, skip_special_tokens=skip_special_tokens) if listed else []
        return cast("list[str]", texts)


def require_same_tokenizer(model: ModelConfig, other: ModelConfig, *, key: str = "teacher.model") -> None:
    """Raise ModelError if the tokenizers differ, because distributions are compared token by token.

    `key` is the setting of the `other` model.
    """
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(m.path).get_vocab() for m in (model, other))
    if difference := first_difference(ours, theirs):
        raise ModelError(
            f"{key} {other.path} has another tokenizer than model {model.path}: {difference}; "
            "use a model of the same family"
        )


def stop_token_ids(path: str, tokenizer_eos: int) -> list[int]:
    """Return the tokens that end a completion: the end-of-sequence tokens of generation config and tokenizer.

    `path` is a model directory or a Hub id.
    """
    file = cached_file(
        path,
        "generation_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    generation_config = None if file is None else json.loads(Path(file).read_text("utf-8"))
    return sorted({tokenizer_eos, *end_tokens(generation_config)})
