"""Scored groups of a round as a parquet file, from which its pairs are made again without a model. Light at import.

    prompt_id, prompt   row of the prompt; text, or messages (null where the prompt is text among messages)
    row                 the prompt and the other fields of its row, which scorers read, as JSON
    prompt_tokens       tokens of the rendered prompt
    completions, completion_tokens   texts without the token that ends them, and all tokens
    reward, scores      reward trained on, and the score of each scorer (NaN: it abstained)
    version, finish     weights that sampled the completion (null: a gold answer), and why it ended

A row is a group; the columns from `completions` on hold a list with an entry per completion. The metadata of the file
holds the seed of the round's random choices and the weights of the scorers. Log-probabilities are not stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workers.files import durable
from workers.files.pairs_file import Decoder, as_rows
from workers.gold import NOT_SAMPLED
from workers.ragged import Ragged
from workers.types import Experience, Finish, Prompt, ScoredBatch, Text

GROUPS = "groups.parquet"  # name of the file, beside that of the pairs
FACTS = b"facts"  # key of the file's metadata for everything that is not a column
GROUPS_PER_PART = 1024  # rows that a reader decompresses at a time


def write_groups(path: Path, scored: ScoredBatch, decoder: Decoder) -> None:
    """Write one row per group to `path`, durably."""
    experience = scored.experience
    assert scored.rewards is not None
    texts = decoder.decode_batch((tokens.tolist() for tokens in experience.completions), skip_special_tokens=False)
    by_scorer = scored.by_scorer or {}
    columns = {
        "prompt_id": pa.array([prompt.id for prompt in experience.prompts], pa.string()),
        "prompt": _prompts([prompt.text for prompt in experience.prompts]),
        "row": pa.array([_row(prompt) for prompt in experience.prompts], pa.large_string()),
        "prompt_tokens": _ragged(experience.prompt_tokens),
        "completions": _grouped(experience, pa.array(texts, pa.large_string())),
        "completion_tokens": _grouped(experience, _ragged(experience.completions)),
        "reward": _grouped(experience, pa.array(scored.rewards)),
        "version": _grouped(experience, pa.array(experience.versions, mask=experience.versions == NOT_SAMPLED)),
        "finish": _grouped(experience, pa.array([Finish(int(f)).name for f in experience.finish], pa.string())),
    }
    if by_scorer:
        scores = pa.StructArray.from_arrays([pa.array(values) for values in by_scorer.values()], names=list(by_scorer))
        columns["scores"] = _grouped(experience, scores)
    facts = {"seed": scored.seed, "temperature": experience.temperature, "weights": dict(scored.weights)}
    table = pa.table(columns).replace_schema_metadata({FACTS: json.dumps(facts).encode()})
    durable.make_directory(path.parent)
    durable.replace_by(
        path, lambda aside: pq.write_table(table, aside, compression="zstd", row_group_size=GROUPS_PER_PART)
    )


class GroupsError(RuntimeError):
    """A file does not hold the scored groups of a round."""


class StoredTexts:
    """Texts of stored completions by their tokens: a decoder that needs no tokenizer."""

    def __init__(self, texts: Mapping[tuple[int, ...], str]) -> None:
        self._texts = texts

    def decode_batch(self, sequences: Iterable[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Return the text of each completion, with its special tokens."""
        assert not skip_special_tokens, "the stored texts have their special tokens"
        return [self._texts[tuple(tokens)] for tokens in sequences]


def read_groups(path: Path) -> tuple[ScoredBatch, StoredTexts]:
    """Read the scored groups of a round, and the texts of their completions.

    The log-probabilities are NaN, and those of the reference are absent.

    Raises:
        GroupsError: the file is missing, damaged, or holds something else.
    """
    try:
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[FACTS])
        experience = _experience(table, facts["temperature"])
        texts = _values(table["completions"]).to_pylist()
        scores = _values(table["scores"]) if "scores" in table.column_names else None
        rewards = _values(table["reward"]).to_numpy()
        scored = ScoredBatch(
            experience=experience,
            rewards=rewards,
            reference_logprobs=None,
            values=None,
            seed=facts["seed"],
            by_scorer=scores and {name.name: scores.field(i).to_numpy() for i, name in enumerate(scores.type)},
            weights=facts["weights"],
        )
    except FileNotFoundError:
        raise GroupsError(f"{path}: no such file") from None
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise GroupsError(f"{path}: not the scored groups of a round: {error}") from error
    return scored, StoredTexts({tuple(t.tolist()): text for t, text in zip(experience.completions, texts, strict=True)})


def _experience(table: pa.Table, temperature: float) -> Experience:
    rows = [json.loads(row) for row in table["row"].to_pylist()]
    completions = _read_ragged(_values(table["completion_tokens"]))
    versions = _values(table["version"]).fill_null(NOT_SAMPLED).to_numpy(zero_copy_only=False)
    finish = [Finish[name].value for name in _values(table["finish"]).to_pylist()]
    return Experience(
        prompts=tuple(
            Prompt(id=id, text=row["prompt"], columns=row["columns"])
            for id, row in zip(table["prompt_id"].to_pylist(), rows, strict=True)
        ),
        prompt_tokens=_read_ragged(_whole(table["prompt_tokens"])),
        completions=completions,
        group_offsets=_offsets(_whole(table["completions"])),
        logprobs=np.full(len(completions.values), np.nan, np.float32),
        versions=versions.astype(np.int32),
        finish=np.asarray(finish, np.int32),
        temperature=temperature,
    )


# ------------------------------------------------------------------------------------------------ columns


def _prompts(texts: Sequence[Text]) -> pa.Array:
    """Return the prompts as text or, if any are messages, as lists of messages: a column has one type."""
    conversations = [None if isinstance(text, str) else text for text in texts]
    if not any(conversations):
        return pa.array(texts, pa.large_string())
    return pa.array([None if text is None else as_rows(text) for text in conversations])


def _row(prompt: Prompt) -> str:
    row = {"prompt": prompt.text, "columns": dict(prompt.columns)}
    return json.dumps(row, ensure_ascii=False, default=str)  # a parquet file may hold dates


def _ragged(tokens: Ragged) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(tokens.offsets, pa.int64()), pa.array(tokens.values, pa.int32()))


def _grouped(experience: Experience, values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(experience.group_offsets, pa.int64()), values)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array that starts at offset 0."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _values(column: pa.ChunkedArray) -> pa.Array:
    """Return the entries of all lists of a column, in a row."""
    return _whole(column).flatten()


def _offsets(lists: pa.Array) -> NDArray[np.int64]:
    lengths: Any = lists.value_lengths().to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _read_ragged(lists: pa.Array) -> Ragged:
    return Ragged(values=lists.flatten().to_numpy().astype(np.int32), offsets=_offsets(lists))
