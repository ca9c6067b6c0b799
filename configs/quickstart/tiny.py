"""Tiny, randomly initialised models and their tokenizers, as Hugging Face directories: for laptops and tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()


def create_model(directory: Path, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Write a randomly initialised model and its tokenizer to `directory`.

    `config` is a config.json without vocabulary size and special tokens: `{"model_type": "qwen2", "hidden_size": 192}`.
    """
    torch.manual_seed(seed)
    full = transformers.AutoConfig.for_model(
        **config,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = transformers.AutoModelForCausalLM
    model.from_config(full, dtype=torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character of `alphabet`, and <pad>, <eos> and <unk>."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def bpe_tokenizer(corpus: Iterable[str], vocab_size: int, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on `corpus`, with <s>, </s>, <pad> and chat markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast
