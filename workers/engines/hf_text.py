"""Text to tokens and back, with the tokenizers and chat templates of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import transformers

from workers.config import ModelConfig
from workers.engines.hf_models import ModelError
from workers.types import Text
from workers.vocabulary import first_difference


class TextCodec:
    """Text to tokens and back, for plain strings and conversations alike.

    A string prompt gets the tokenizer's own start token (if it has one); a completion ends with end-of-sequence. A
    conversation goes through the chat template, which does both.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(config.path)
        self._template_kwargs: dict[str, Any] = dict(config.chat_template_kwargs)
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"{config.path}: the tokenizer has no end-of-sequence token, so a completion could never stop; "
                "set eos_token in its tokenizer_config.json"
            )

    @property
    def eos_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def encode_prompt(self, text: Text) -> list[int]:
        if isinstance(text, str):
            return cast("list[int]", self.tokenizer(text)["input_ids"])
        return self._template(text, add_generation_prompt=True)

    def encode_completion(self, prompt: Text, completion: Text) -> list[int]:
        """The tokens that follow `encode_prompt(prompt)`."""
        if isinstance(prompt, str) and isinstance(completion, str):
            tokens = cast("list[int]", self.tokenizer(completion, add_special_tokens=False)["input_ids"])
            return [*tokens, self.eos_token_id]
        if isinstance(prompt, str) or isinstance(completion, str):
            raise ModelError("prompt and completion must both be strings or both be conversations")
        head = self._template(prompt, add_generation_prompt=True)
        whole = self._template([*prompt, *completion], add_generation_prompt=False)
        if whole[: len(head)] != head:
            raise ModelError(
                "the chat template does not render a conversation as a continuation of its prompt, so the completion's "
                "tokens cannot be told from the prompt's; use a template whose generation prompt is a prefix"
            )
        return whole[len(head) :]

    def _template(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ModelError(
                "the data are conversations, but the tokenizer has no chat template; add chat_template.jinja to the "
                "model directory, or use plain-string prompts"
            )
        rendered = self.tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=True,
            **self._template_kwargs,
        )
        return [int(t) for t in rendered["input_ids"]]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens."""
        return cast(str, self.tokenizer.decode(tokens, skip_special_tokens=True))

    def decode_batch(self, sequences: Iterable[Sequence[int]]) -> list[str]:
        listed = list(sequences)
        # transformers takes an empty list for one empty text.
        return cast("list[str]", self.tokenizer.batch_decode(listed, skip_special_tokens=True)) if listed else []


def require_same_tokenizer(model: ModelConfig, teacher: ModelConfig) -> None:
    """Raises ModelError, naming the first token that differs: distributions are compared token by token."""
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(m.path).get_vocab() for m in (model, teacher))
    if difference := first_difference(ours, theirs):
        raise ModelError(
            f"teacher.model {teacher.path} has another tokenizer than model {model.path}: {difference}; "
            "give a teacher of the same family"
        )


def stop_token_ids(path: str, tokenizer_eos: int) -> list[int]:
    """Every token that ends a completion: the generation config's and the tokenizer's end-of-sequence."""
    ids = {tokenizer_eos}
    if (Path(path) / "generation_config.json").exists():
        declared = transformers.GenerationConfig.from_pretrained(path).eos_token_id
        ids.update([declared] if isinstance(declared, int) else declared or [])
    return sorted(ids)
