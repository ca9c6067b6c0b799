"""Which rows are too long for a run, before it starts: dropped, cut, or cut until nothing tells two answers apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.data.tokens import TokenCounter, num_bytes
from workers.types import Example, Prompt

MEASURED_BYTES = 2 * 2**20  # of text: a second or two of one core
OWN_TOKENS = 8  # what a tokenizer may add to a text of its own accord, or a template to an answer


@dataclass(kw_only=True, slots=True)
class Lengths:
    """Rows by index. `measured` of them were looked at, from the first on."""

    measured: int = 0
    dropped: list[int] = field(default_factory=list)  # the prompt alone is too long
    cut: list[int] = field(default_factory=list)  # a completion loses its end
    equal: list[int] = field(default_factory=list)  # of these, all completions are the same once they are cut


def of_prompts(
    prompts: Sequence[Prompt], tokens: TokenCounter, *, max_tokens: int, max_bytes: float = MEASURED_BYTES
) -> Lengths:
    """`max_bytes`: of text, after which no more rows are looked at."""
    found, spent = Lengths(), 0
    for i, prompt in enumerate(prompts):
        if spent > max_bytes:
            break
        found.measured += 1
        size = tokens.size(prompt.text, prompt.columns)
        spent += _rendered(prompt, size)
        if size + OWN_TOKENS > max_tokens:
            spent += size
            if len(tokens.prompt(prompt.text, prompt.columns)) > max_tokens:
                found.dropped.append(i)
    return found


def of_examples(
    examples: Sequence[Example], tokens: TokenCounter, *, max_tokens: int, max_bytes: float = MEASURED_BYTES
) -> Lengths:
    """As the dataset role cuts them: a prompt leaves room for at least one token, and completions get the rest."""
    found, spent = Lengths(), 0
    for i, example in enumerate(examples):
        if spent > max_bytes:
            break
        found.measured += 1
        prompt = example.prompt
        size = tokens.size(prompt.text, prompt.columns) + max(map(num_bytes, example.completions))
        spent += _rendered(prompt, size)
        if size + OWN_TOKENS <= max_tokens:
            continue
        spent += size
        room = max_tokens - len(tokens.prompt(prompt.text, prompt.columns))
        completions = [tokens.completion(completion) for completion in example.completions]
        if room <= 0:
            found.dropped.append(i)
        elif any(len(completion) + 1 > room for completion in completions):  # 1: the end of the turn, or sequence
            found.cut.append(i)
            if len(completions) > 1 and len({tuple(c[:room]) for c in completions}) == 1:
                found.equal.append(i)
    return found


def _rendered(prompt: Prompt, size: int) -> int:
    """What a rendered conversation costs: a small part of what its tokens do."""
    return 0 if isinstance(prompt.text, str) else size // 4
