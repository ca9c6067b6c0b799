"""Text to tokens and back, with the tokenizers and chat templates of transformers."""

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
from workers.engines.hf_models import ModelError
from workers.types import Text
from workers.vocabulary import first_difference


class HfTokenizer:
    """A tokenizer of transformers, as `codec.Tokenizer` has it. `today`: what `strftime_now` tells templates; None: the
    time it is."""

    def __init__(self, path: str, today: datetime | None = None) -> None:
        self.known: Any = transformers.AutoTokenizer.from_pretrained(path)
        self._today = today
        if self.known.eos_token_id is None:
            raise ModelError(
                f"{path}: the tokenizer has no end-of-sequence token, so a completion could never stop; "
                "set eos_token in its tokenizer_config.json"
            )
        self.eos = int(self.known.eos_token_id)
        self.stops = frozenset(stop_token_ids(path, self.eos))
        self.added = frozenset({*self.known.all_special_ids, *self.known.added_tokens_decoder})

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        try:
            return cast("list[int]", self.known(text, add_special_tokens=special)["input_ids"])
        except Exception as error:  # the library raises nothing more particular
            raise unencodable(error) from error

    def decode(self, tokens: Sequence[int]) -> str:
        told = self.known.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast(str, told)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **arguments: Any) -> str:
        if not self.known.chat_template:
            raise TextError(
                "the data are conversations, but the tokenizer has no chat template",
                "add chat_template.jinja to the model directory, or use plain-string prompts",
            )
        if self._today is not None:
            arguments = {"strftime_now": self._today.strftime, **arguments}
        try:
            rendered = self.known.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=add_generation_prompt, tokenize=False, **arguments
            )
        except Exception as error:  # whatever a template raises, or what it calls
            raise refused(error) from error
        return cast(str, rendered)


class TextCodec:
    """Text to tokens and back, for plain strings and conversations alike: the rules of `codec.Codec`."""

    def __init__(self, config: ModelConfig) -> None:
        assert config.path is not None
        today = None if config.template_date is None else datetime.fromisoformat(config.template_date)
        self._tokenizer = HfTokenizer(config.path, today)
        self.tokenizer: Any = self._tokenizer.known
        self._codec = Codec(self._tokenizer, config.chat_template_kwargs)

    @property
    def eos_token_id(self) -> int:
        return self._tokenizer.eos

    def stop_tokens(self, *, conversational: bool) -> list[int]:
        """Every token that ends a completion; of a conversation the one, too, that the template ends a turn with."""
        end = self._codec.turn_end if conversational and self.tokenizer.chat_template else None
        return sorted(self._tokenizer.stops | ({end} if end is not None else set()))

    def encode_prompt(self, text: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
        """Raises ModelError."""
        try:
            return self._codec.encode_prompt(text, columns)
        except TextError as error:
            raise ModelError(str(error)) from error

    def encode_completion(self, prompt: Text, completion: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
        """The tokens that follow the prompt's in a row of the two. Raises ModelError."""
        return self.encode_row(prompt, [completion], columns).completions[0]

    def encode_row(self, prompt: Text, completions: Sequence[Text], columns: Mapping[str, Any] = NO_COLUMNS) -> Encoded:
        """A prompt with each of its completions. Raises ModelError."""
        try:
            return self._codec.row(prompt, completions, columns)
        except TextError as error:
            raise ModelError(str(error)) from error

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens."""
        return cast(str, self.tokenizer.decode(tokens, skip_special_tokens=True))

    def decode_batch(self, sequences: Iterable[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Text of each. With its special tokens, the one that ends a completion is still left out."""
        listed = [list(sequence) for sequence in sequences]
        if not skip_special_tokens:
            ends = set(self.stop_tokens(conversational=True))
            listed = [tokens[:-1] if tokens and tokens[-1] in ends else tokens for tokens in listed]
        # transformers takes an empty list for one empty text.
        told = self.tokenizer.batch_decode(listed, skip_special_tokens=skip_special_tokens) if listed else []
        return cast("list[str]", told)


def require_same_tokenizer(model: ModelConfig, teacher: ModelConfig) -> None:
    """Raises ModelError, naming the first token that differs: distributions are compared token by token."""
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(m.path).get_vocab() for m in (model, teacher))
    if difference := first_difference(ours, theirs):
        raise ModelError(
            f"teacher.model {teacher.path} has another tokenizer than model {model.path}: {difference}; "
            "give a teacher of the same family"
        )


def stop_token_ids(path: str, tokenizer_eos: int) -> list[int]:
    """Every token that ends a completion: the generation config's and the tokenizer's end-of-sequence. `path`: a model
    directory or a hub id."""
    file = cached_file(
        path,
        "generation_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    told = None if file is None else json.loads(Path(file).read_text("utf-8"))
    return sorted({tokenizer_eos, *end_tokens(told)})
