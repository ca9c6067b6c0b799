"""Find rows that are too long for a run: those it drops, and those whose completions it truncates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.data.tokens import TokenCounter, num_bytes
from workers.types import Example, Prompt

MEASURED_BYTES = 2 * 2**20  # text to tokenise: a second or two on one core
EXTRA_TOKENS = 8  # tokens that a tokenizer may add to a text, or a template to a completion


@dataclass(kw_only=True, slots=True)
class Lengths:
    """Rows by index that are too long."""

    measured: int = 0  # rows checked, from the first on
    dropped: list[int] = field(default_factory=list)  # the prompt alone is too long
    truncated: list[int] = field(default_factory=list)  # a completion loses its end
    equal: list[int] = field(default_factory=list)  # truncated rows whose completions have become equal


def measure_prompts(
    prompts: Sequence[Prompt], tokens: TokenCounter, *, max_tokens: int, max_bytes: float = MEASURED_BYTES
) -> Lengths:
    """Find the prompts of more than `max_tokens`. `max_bytes`: text after which no more rows are checked."""
    found, spent = Lengths(), 0
    for i, prompt in enumerate(prompts):
        if spent > max_bytes:
            break
        found.measured += 1
        size = tokens.size(prompt.text, prompt.columns)
        spent += _rendered(prompt, size)
        if size + EXTRA_TOKENS > max_tokens:
            spent += size
            if len(tokens.prompt(prompt.text, prompt.columns)) > max_tokens:
                found.dropped.append(i)
    return found


def measure_examples(
    examples: Sequence[Example], tokens: TokenCounter, *, max_tokens: int, max_bytes: float = MEASURED_BYTES
) -> Lengths:
    """Find the examples that the dataset role drops or truncates.

    It drops a row whose prompt leaves no room for a token, and truncates completions to the rest of `max_tokens`.
    """
    found, spent = Lengths(), 0
    for i, example in enumerate(examples):
        if spent > max_bytes:
            break
        found.measured += 1
        prompt = example.prompt
        size = tokens.size(prompt.text, prompt.columns) + max(map(num_bytes, example.completions))
        spent += _rendered(prompt, size)
        if size + EXTRA_TOKENS <= max_tokens:
            continue
        spent += size
        room = max_tokens - len(tokens.prompt(prompt.text, prompt.columns))
        completions = [tokens.completion(completion) for completion in example.completions]
        if room <= 0:
            found.dropped.append(i)
        elif any(len(completion) + 1 > room for completion in completions):  # 1: end of turn or sequence
            found.truncated.append(i)
            if len(completions) > 1 and len({tuple(c[:room]) for c in completions}) == 1:
                found.equal.append(i)
    return found


def _rendered(prompt: Prompt, size: int) -> int:
    """Return the cost of rendering a conversation, in bytes of text that could be tokenised instead."""
    return 0 if isinstance(prompt.text, str) else size // 4
