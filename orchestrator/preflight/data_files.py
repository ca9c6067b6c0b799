"""Read the rows that a recipe names, as the run uses them, and collect remarks: findings that are not errors.

data.KEY ──read──► rows ──data.equal_pairs, data.special_tokens──► rows of the run ──remarks──► one line each
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.run import RunConfig
from orchestrator.data import lengths, read_examples, read_prompts
from orchestrator.data.audit import contradicting, listed, listed_pairs, repeated, row_number, trained_on
from orchestrator.data.remarks import remarks as remarks_on_labels
from orchestrator.data.rows import RowProblems
from orchestrator.data.sources import local
from orchestrator.data.tokens import TokenCounter
from orchestrator.errors import BadInput, Problem
from orchestrator.preflight import tokenization
from orchestrator.preflight.reward_rows import check_reward_rows, with_common_columns
from workers.codec import NO_COLUMNS
from workers.types import Example, Prompt

KEYS = ("prompts", "dataset", "eval_prompts", "eval_harmful", "eval_benign", "eval_dataset")
Row = Prompt | Example


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Rows of one key of `data`."""

    key: str  # "data.prompts"
    source: str
    rows: Sequence[Any]  # of Prompt, or of Example where the key ends in `dataset`
    is_complete: bool = True  # False: only the beginning of the source was read
    remarks: tuple[str, ...] = ()
    num_dropped: int = 0  # rows whose prompt is too long

    @property
    def prompts(self) -> list[Prompt]:
        return [_prompt(row) for row in self.rows]

    def summary(self) -> SourceSummary:
        first = self.prompts[0]
        return SourceSummary(
            key=self.key,
            source=self.source,
            count=len(self.rows) + self.num_dropped,
            is_complete=self.is_complete,
            conversational=not isinstance(first.text, str),
            columns=tuple(first.columns),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSummary:
    """Summary of one data source.

    Example: `SourceSummary(key="data.prompts", source="./prompts.jsonl", count=8, is_complete=True,
    conversational=False, columns=("solution",))`.
    """

    key: str
    source: str
    count: int  # rows read
    is_complete: bool  # False: only the beginning of the source was read
    conversational: bool  # prompts are lists of messages
    columns: tuple[str, ...]  # beside the prompt and its completions


def read_source(
    config: RunConfig,
    name: str,
    tokens: TokenCounter | None,
    *,
    max_rows: int | None = None,
    max_bytes: float = lengths.MEASURED_BYTES,
) -> Source | None:
    """Read the rows of `data.NAME`; None: the recipe does not give it.

    Rows whose prompt is too long are dropped here, before batches are formed, so that every step is full.

    Args:
        tokens: the policy's tokenizer; None: it cannot be read here.
        max_rows: rows to read; None: all.
        max_bytes: bytes of text whose tokens are counted.

    Raises:
        BadInput: with every row that cannot be used.
    """
    source: str | None = getattr(config.data, name)
    if source is None:
        return None
    split = config.data.eval_split if name.startswith("eval_") else config.data.split
    dropped = RowProblems(source)
    rows: Sequence[Any]
    if name.endswith("dataset"):
        equal_pairs = dropped if config.data.equal_pairs == "drop" else None
        algorithm = config.algorithm.type
        rows = read_examples(source, algorithm=algorithm, split=split, max_rows=max_rows, equal_pairs=equal_pairs)
    else:
        rows = with_common_columns(read_prompts(source, split=split, max_rows=max_rows))
    remarks = [f"dropped (data.equal_pairs): {remark}" for remark in dropped.remarks()]
    rows, further = _special_tokens(config, source, rows, tokens)
    remarks += further
    remarks += tokenization.check_rows(config, name, source, rows, tokens)
    num_dropped, is_complete = 0, max_rows is None
    if tokens is not None:
        too_long, further = _lengths(config, name, source, rows, tokens, is_complete=is_complete, max_bytes=max_bytes)
        remarks += further
        if is_complete and too_long:
            rows, num_dropped = [row for i, row in enumerate(rows) if i not in too_long], len(too_long)
    if name.endswith("dataset"):
        remarks += _preferences(rows)
    return Source(
        key=f"data.{name}",
        source=source,
        rows=rows,
        is_complete=is_complete,
        remarks=tuple(remarks),
        num_dropped=num_dropped,
    )


def read_all(config: RunConfig, tokens: TokenCounter | None) -> dict[str, Source]:
    """Read all rows of every source that the recipe gives, by key.

    Raises:
        BadInput: with the rows of the first source that cannot be used.
    """
    by_name = {name: read_source(config, name, tokens, max_bytes=math.inf) for name in KEYS}
    sources = {name: source for name, source in by_name.items() if source is not None}
    if problems := scored_rows(config, sources):
        raise BadInput(problems)
    return sources


def scored_rows(config: RunConfig, sources: Mapping[str, Source]) -> list[Problem]:
    """Return the problems of rows that the rewards cannot score."""
    scored = [sources[name] for name in ("prompts", "eval_prompts") if name in sources]
    return [p for source in scored for p in check_reward_rows(config.reward, source.source, source.rows)]


def remarks(config: RunConfig, sources: Mapping[str, Source]) -> list[str]:
    """Return the remarks on the data of a run, one line each."""
    found = [f"{source.key}: {remark}" for source in sources.values() for remark in source.remarks]
    trained = [prompt for name in ("prompts", "dataset") if name in sources for prompt in sources[name].prompts]
    for name in ("eval_prompts", "eval_harmful", "eval_benign", "eval_dataset"):
        if name in sources and (both := trained_on(held_out := sources[name].prompts, trained)):
            which = listed([held_out[i] for i in both])
            found.append(f"data.{name}: {len(both)} of {len(held_out)} held-out prompts are also trained on: {which}")
    if "dataset" in sources and sources["dataset"].is_complete:
        found += remarks_on_labels(sources["dataset"].rows, config.algorithm)
    return found


def tokens_of(path: str | None, arguments: Mapping[str, Any] = NO_COLUMNS) -> TokenCounter | None:
    """Return the tokenizer of a model directory or of a cached Hub model; None: it cannot be read here.

    Args:
        arguments: arguments of the chat template that the recipe gives.
    """
    if path is None:
        return None
    directory = local(path)
    if not directory.is_dir() and "/" in path:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(path, "tokenizer.json")
        except HFValidationError:
            return None
        directory = Path(cached).parent if isinstance(cached, str) else directory
    return TokenCounter.of(directory, arguments)


# ------------------------------------------------------------------------------------------------ one source


def _special_tokens(
    config: RunConfig, source: str, rows: Sequence[Any], tokens: TokenCounter | None
) -> tuple[Sequence[Any], list[str]]:
    """Return the rows that `data.special_tokens` keeps, and remarks on the others. Raises BadInput if it is `fail`."""
    policy = config.data.special_tokens
    if tokens is None:
        if policy != "keep":
            raise BadInput(
                Problem(
                    what="the tokenizer's special tokens are unknown",
                    where=f"data.special_tokens = {policy}",
                    why=f"there is no tokenizer.json of model.path = {config.model.path} on this machine",
                    fix="download the model first, or set data.special_tokens to keep",
                )
            )
        return rows, []
    contained = [tokens.special_in(_prompt(row).text).union(*map(tokens.special_in, _answers(row))) for row in rows]
    affected = [_prompt(row) for row, special in zip(rows, contained, strict=True) if special]
    if not affected:
        return rows, []
    which = ", ".join(sorted(set().union(*contained))[:6])
    what = f"{len(affected)} of {len(rows)} rows contain special tokens as text ({which})"
    kept = [row for row, special in zip(rows, contained, strict=True) if not special]
    if policy == "fail" or (policy == "drop" and not kept):
        raise BadInput(
            Problem(
                what=f"{what}: {listed(affected)}",
                where=f"{source}:{row_number(affected[0])}",
                why="they are encoded as special tokens, so that a text can end a turn or begin one of another role",
                fix="remove them from the text; or set data.special_tokens to keep, if the text is a rendered chat",
            )
        )
    outcome = "dropped (data.special_tokens)" if policy == "drop" else "encoded as special tokens"
    return kept if policy == "drop" else rows, [f"{what}; {outcome}: {listed(affected)}"]


def _lengths(
    config: RunConfig,
    name: str,
    source: str,
    rows: Sequence[Any],
    tokens: TokenCounter,
    *,
    is_complete: bool,
    max_bytes: float,
) -> tuple[frozenset[int], list[str]]:
    """Return the indices of rows whose prompt is too long, and remarks.

    Raises:
        BadInput: if all rows are too long, or no row has a preference left after truncation.
    """
    if name.endswith("dataset"):
        key, limit = "data.max_length", min(config.data.max_length, tokens.max_positions or config.data.max_length)
        found = lengths.measure_examples(rows, tokens, max_tokens=limit, max_bytes=max_bytes)
    else:
        key, limit = "rollout.max_prompt_length", config.rollout.max_prompt_length
        found = lengths.measure_prompts(rows, tokens, max_tokens=limit, max_bytes=max_bytes)
    is_complete = is_complete and found.measured == len(rows)
    remarks = []
    for indices, fatal, what in (
        (found.dropped, True, f"are dropped: their prompt is longer than {limit} tokens ({key})"),
        (found.truncated, False, f"are longer than {limit} tokens ({key}) and lose the end of a completion"),
        (found.equal, True, f"have no preference: truncated to {limit} tokens ({key}), their completions are equal"),
    ):
        if fatal and is_complete and len(indices) == len(rows):
            why, fix = "there is nothing left to train on", f"raise {key}, or shorten the texts"
            raise BadInput(Problem(what=f"all {len(rows)} rows {what}", where=source, why=why, fix=fix))
        if indices:
            of = f"{len(rows)} rows" if is_complete else f"the first {found.measured} rows"
            remarks.append(f"{len(indices)} of {of} {what}: {listed([_prompt(rows[i]) for i in indices])}")
    return frozenset(found.dropped), remarks


def _preferences(rows: Sequence[Example]) -> list[str]:
    remarks = []
    if repeats := repeated(rows):
        remarks.append(f"{len(repeats)} of {len(rows)} rows repeat an earlier one: {listed_pairs(repeats, rows)}")
    if disputed := contradicting(rows):
        what = "contradict an earlier one, and the two cancel out"
        remarks.append(f"{len(disputed)} of {len(rows)} rows {what}: {listed_pairs(disputed, rows)}")
    return remarks


def _prompt(row: Row) -> Prompt:
    return row.prompt if isinstance(row, Example) else row


def _answers(row: Row) -> Sequence[Any]:
    return row.completions if isinstance(row, Example) else ()
