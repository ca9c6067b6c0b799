"""Preference pairs of a step as a parquet file: a preference dataset, with the scores and the origin of each side.

    prompt, chosen, rejected   text, or messages where the prompt is a list of messages (TRL's preference format)
    margin                     score of chosen minus score of rejected, after the length penalty
    prompt_id                  row of the prompt
    tools, chat_template_kwargs   arguments of the prompt's chat template as JSON, where it has any
    SIDE_score, SIDE_rank      reward, and 1 + the number of completions of the group with a higher one
    SIDE_version               weights that sampled the completion; null: not sampled now (a gold answer, a given pair)
    SIDE_tokens, SIDE_finish   tokens including the end of sequence; `length`: truncated

SIDE is chosen or rejected. `data.dataset` reads the file, and so does `datasets.load_dataset("parquet", …)` for TRL. A
text lacks only the token that ends the completion. Encoded again, it has the tokens of the sample if those are how the
tokenizer divides the text, if the template changes nothing in it, and if it is not truncated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workers.files import durable
from workers.types import Finish, Prompt, ScoredBatch, Text

ARGUMENTS = ("tools", "chat_template_kwargs")  # columns of a prompt that its chat template reads
TEXTS = "_text"  # suffix of the file of pairs whose prompt is text, where others are messages: a column has one type


class Decoder(Protocol):
    """Interface of what turns the tokens of completions into texts."""

    def decode_batch(self, sequences: Iterable[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]: ...


def write_pairs(
    path: Path,
    chosen: NDArray[np.int64],
    rejected: NDArray[np.int64],
    margins: NDArray[np.float32],
    scored: ScoredBatch,
    decoder: Decoder,
) -> None:
    """Write one row per pair to `path`. If only some prompts are messages, the others go to another file beside it.

    Args:
        chosen: completions of the experience that are chosen: [P].
        rejected: those that are rejected: [P].
        margins: score of chosen minus score of rejected: [P].
    """
    rows = _rows(chosen, rejected, margins, scored, decoder)
    conversations = [row for row in rows if not isinstance(row["prompt"], str)]
    texts = [row for row in rows if isinstance(row["prompt"], str)]
    durable.make_directory(path.parent)
    _write(path, conversations or texts)
    if conversations and texts:
        _write(path.with_stem(path.stem + TEXTS), texts)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    durable.replace_by(path, lambda aside: pq.write_table(pa.Table.from_pylist(rows), aside))


def _rows(
    chosen: NDArray[np.int64],
    rejected: NDArray[np.int64],
    margins: NDArray[np.float32],
    scored: ScoredBatch,
    decoder: Decoder,
) -> list[dict[str, Any]]:
    experience = scored.experience
    prompts = [experience.prompts[group] for group in experience.group_of[chosen]]
    arguments = [name for name in ARGUMENTS if any(prompt.columns.get(name) for prompt in prompts)]
    sides = [_side(name, side, scored, decoder) for name, side in (("chosen", chosen), ("rejected", rejected))]
    rows = []
    for prompt, margin, first, second in zip(prompts, margins.tolist(), *sides, strict=True):
        answers = {name: _answer(prompt, side.pop(name)) for name, side in (("chosen", first), ("rejected", second))}
        given = {name: _json(prompt.columns.get(name)) for name in arguments}
        row = {"prompt_id": prompt.id, "prompt": as_rows(prompt.text), **answers, "margin": margin}
        rows.append(row | given | first | second)
    return rows


def _side(name: str, picked: NDArray[np.int64], scored: ScoredBatch, decoder: Decoder) -> list[dict[str, Any]]:
    """Return the text and the facts of one completion of each pair."""
    experience = scored.experience
    texts = decoder.decode_batch((experience.completions[i].tolist() for i in picked), skip_special_tokens=False)
    scores, ranks = scored.rewards, None if scored.rewards is None else _ranks(scored.rewards, experience.group_offsets)
    sampled = experience.logprobs is not None
    return [
        {
            name: text,
            f"{name}_score": None if scores is None else float(scores[i]),
            f"{name}_rank": None if ranks is None else int(ranks[i]),
            f"{name}_version": version if sampled and (version := int(experience.versions[i])) >= 0 else None,
            f"{name}_tokens": int(experience.completions.lengths[i]),
            f"{name}_finish": Finish(int(experience.finish[i])).name,
        }
        for text, i in zip(texts, picked.tolist(), strict=True)
    ]


def _ranks(scores: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 1 + the number of completions of the same group with a higher score: [N]."""
    groups = [scores[start:end] for start, end in pairwise(offsets)]
    ranks = [1 + (group[None, :] > group[:, None]).sum(1) for group in groups]
    return np.concatenate([np.zeros(0, np.int64), *ranks])


def _answer(prompt: Prompt, text: str) -> Text:
    return text if isinstance(prompt.text, str) else [{"role": "assistant", "content": text}]


def as_rows(text: Text) -> Text:
    """Return a prompt for a parquet file, in which the arguments of all tool calls cannot share one type."""
    return text if isinstance(text, str) else [_message(message) for message in text]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    calls: Sequence[Mapping[str, Any]] = message.get("tool_calls") or ()
    return {**message, "tool_calls": [_call(call) for call in calls]} if calls else dict(message)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(function := call.get("function"), Mapping):
        return {**call, "function": _call(function)}
    arguments = call.get("arguments")
    return dict(call) if arguments is None else {**call, "arguments": _json(arguments)}


def _json(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
