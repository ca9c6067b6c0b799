"""Read the rows that a recipe names, as the run uses them, and collect remarks: findings that are not errors.

data.KEY ──read──► rows ──data.equal_pairs, data.special_tokens──► rows of the run ──remarks──► one line each
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from orchestrator.config.mixture import SourceConfig
from orchestrator.config.rounds import prompts_per_round
from orchestrator.config.run import RunConfig
from orchestrator.data import lengths, read_examples, read_prompts
from orchestrator.data.audit import RowKeys, contradicting, listed, listed_pairs, repeated, row_number, trained_on
from orchestrator.data.examples import require_both_labels
from orchestrator.data.formats import is_blank
from orchestrator.data.remarks import remarks as remarks_on_labels
from orchestrator.data.rows import SHOWN, RowProblems
from orchestrator.data.sources import local
from orchestrator.data.tokens import TokenCounter
from orchestrator.errors import BadInput, Problem
from orchestrator.preflight import tokenization
from orchestrator.preflight.critique import with_requests
from orchestrator.preflight.mixture import problems_of_shares, remarks_on_shares, with_objective
from orchestrator.preflight.reward_rows import check_reward_rows, with_common_columns
from orchestrator.preflight.source import Source, prompt_of
from workers.codec import NO_COLUMNS
from workers.config import DpoConfig
from workers.types import Example, Prompt

KEYS = ("prompts", "dataset", "eval_prompts", "eval_harmful", "eval_benign", "eval_dataset")


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
    sources = config.data.sources(name)
    read = [
        _read_one(config, name, source, tokens, max_rows=max_rows, max_bytes=max_bytes, alone=len(sources) == 1)
        for source in sources
    ]
    if len(read) < 2:
        return read[0] if read else None
    rows = [row for one in read for row in one.rows]
    is_complete = all(one.is_complete for one in read)
    whole = ", ".join(one.source for one in read)
    if is_complete and name == "dataset" and config.algorithm.needs.dataset == "labels":
        require_both_labels(rows, RowProblems(whole))
    return Source(
        key=f"data.{name}",
        source=whole,
        rows=rows if name.endswith("dataset") else with_common_columns(rows),
        files={one.source: len(one.rows) for one in read},
        is_complete=is_complete,
        remarks=tuple(remark for one in read for remark in one.remarks),
        num_dropped=sum(one.num_dropped for one in read),
    )


def _read_one(
    config: RunConfig,
    name: str,
    given: SourceConfig,
    tokens: TokenCounter | None,
    *,
    max_rows: int | None,
    max_bytes: float,
    alone: bool,
) -> Source:
    """Read the rows of one source, see `read_source`. `alone`: it is the only one of its key."""
    source, is_complete = given.path, max_rows is None
    if given.max_rows is not None and (max_rows is None or given.max_rows <= max_rows):
        max_rows, is_complete = given.max_rows, True
    split = config.data.eval_split if name.startswith("eval_") else config.data.split
    dropped = RowProblems(source)
    rows: Sequence[Any]
    if name.endswith("dataset"):
        equal_pairs = dropped if config.data.equal_pairs == "drop" else None
        algorithm = config.algorithm.type
        rows = read_examples(
            source, algorithm=algorithm, split=split, max_rows=max_rows, equal_pairs=equal_pairs, contrast=alone
        )
    else:
        gold = config.algorithm.pairs.gold if name == "prompts" and isinstance(config.algorithm, DpoConfig) else "never"
        rows = with_common_columns(read_prompts(source, split=split, max_rows=max_rows, gold=gold))
        rows = with_requests(config, source, rows) if name == "prompts" else rows
    remarks = [f"dropped (data.equal_pairs): {remark}" for remark in dropped.remarks()]
    rows, further = _special_tokens(config, source, rows, tokens)
    remarks += further
    remarks += tokenization.check_rows(config, name, source, rows, tokens)
    num_dropped = 0
    if tokens is not None:
        too_long, further = _lengths(config, name, source, rows, tokens, is_complete=is_complete, max_bytes=max_bytes)
        remarks += further
        if is_complete and too_long:
            rows, num_dropped = [row for i, row in enumerate(rows) if i not in too_long], len(too_long)
    if name.endswith("dataset"):
        remarks += _preferences(rows)
    if given.objective is not None:
        rows = with_objective(rows, given.objective)
    return Source(
        key=f"data.{name}",
        source=source,
        rows=rows,
        files={source: len(rows)},
        is_complete=is_complete,
        remarks=tuple(remarks),
        num_dropped=num_dropped,
    )


def read_whole(config: RunConfig, name: str, tokens: TokenCounter | None) -> Source | None:
    """Read all rows of `data.NAME` into memory, see `read_source`."""
    return read_source(config, name, tokens, max_bytes=math.inf)


ReadKey: TypeAlias = Callable[[RunConfig, str, TokenCounter | None], Source | None]


def read_all(config: RunConfig, tokens: TokenCounter | None, read: ReadKey = read_whole) -> dict[str, Source]:
    """Read all rows of every source that the recipe gives, by key. `read`: reads one key.

    Raises:
        BadInput: with the rows of the first source that cannot be used.
    """
    by_name = {name: read(config, name, tokens) for name in KEYS}
    sources = {name: source for name, source in by_name.items() if source is not None}
    if problems := problems_of_rows(config, sources):
        raise BadInput(problems)
    return sources


def problems_of_rows(config: RunConfig, sources: Mapping[str, Source]) -> list[Problem]:
    """Return the problems of rows that are valid by themselves: unscorable ones, and too few for what they are for."""
    problems = [*scored_rows(config, sources), *prompts_of_rounds(config, sources)]
    for name, source in sources.items():
        problems += problems_of_shares(config, name, source.files) if source.is_complete else ()
    return problems


def scored_rows(config: RunConfig, sources: Mapping[str, Source]) -> list[Problem]:
    """Return the problems of rows that the rewards cannot score."""
    problems = []
    answered = ("prompts", "eval_prompts") if config.algorithm.needs.trains else ("prompts",)
    for source in (sources[name] for name in answered if name in sources and sources[name].facts is None):
        first = 0
        for file, count in source.files.items():
            problems += check_reward_rows(config.reward, file, source.rows[first : first + count])
            first += count
    return problems


def prompts_of_rounds(config: RunConfig, sources: Mapping[str, Source]) -> list[Problem]:
    """Return the problems of prompts that are too few for the rounds: disjoint parts, or files of single rounds."""
    source, kind = sources.get("prompts"), config.rounds.prompts
    if source is None or not source.is_complete or kind in ("stream", "fixed"):
        return []
    where, files, sizes = f"rounds.prompts = {kind}", list(source.files.items()), prompts_per_round(config)
    total = sum(sizes)
    if kind == "disjoint" and total > len(source.rows):
        what, why = f"{source.source} has {len(source.rows)} prompts", f"the rounds sample {total}, none of them twice"
        fix = "give more prompts or fewer rounds, lower algorithm.prompts_per_step, or set rounds.prompts to stream"
        return [Problem(what=what, where=where, why=why, fix=fix)]
    by_round = [(*files[i % len(files)], size) for i, size in enumerate(sizes)] if kind != "disjoint" else []
    return [
        Problem(
            what=f"{file} has {count} prompts",
            where=where,
            why=f"round {i + 1} samples {size} of this file, each at most once",
            fix="give it more prompts, or lower algorithm.prompts_per_step",
        )
        for i, (file, count, size) in enumerate(by_round)
        if size > count
    ]


def remarks(config: RunConfig, sources: Mapping[str, Source]) -> list[str]:
    """Return the remarks on the data of a run, one line each."""
    found = [f"{source.key}: {remark}" for source in sources.values() for remark in source.remarks]
    if not config.algorithm.needs.trains:  # such rows are dropped, and counted
        return found
    for name in ("eval_prompts", "eval_harmful", "eval_benign", "eval_dataset"):
        if name not in sources:
            continue
        held_out = sources[name].rows
        trained = (keys for key in ("prompts", "dataset") if key in sources for keys in sources[key].prompt_keys())
        if both := trained_on(np.concatenate([*sources[name].prompt_keys()]), trained):
            which = listed([prompt_of(held_out[i]) for i in both[:SHOWN]], count=len(both))
            found.append(f"data.{name}: {len(both)} of {len(held_out)} held-out prompts are also trained on: {which}")
    for name, source in sources.items():
        found += remarks_on_shares(config, name, source.files) if source.is_complete else ()
    if "dataset" in sources and sources["dataset"].is_complete:
        found += remarks_on_labels(sources["dataset"].labels(), config.algorithm)
    return found


def tokens_of(path: str | None, arguments: Mapping[str, Any] = NO_COLUMNS) -> TokenCounter | None:
    """Return the tokenizer of a model directory or of a cached Hub model; None: it cannot be read here.

    Args:
        arguments: arguments of the chat template that the recipe gives.
    """
    directory = None if path is None else tokenizer_directory(path)
    return None if directory is None else TokenCounter.of(directory, arguments)


def tokenizer_directory(path: str) -> Path | None:
    """Return the directory of a model, or of a Hub model in the cache; None: it is no name that the Hub accepts."""
    directory = local(path)
    if not directory.is_dir() and "/" in path:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(path, "tokenizer.json")
        except HFValidationError:
            return None
        directory = Path(cached).parent if isinstance(cached, str) else directory
    return directory


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
    contained = [tokens.special_in(prompt_of(row).text).union(*map(tokens.special_in, _answers(row))) for row in rows]
    affected = [prompt_of(row) for row, special in zip(rows, contained, strict=True) if special]
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
        key, limit = "data.max_length", config.data.max_length
        if tokens.max_positions is not None and tokens.max_positions < limit:
            key, limit = "the model's positions", tokens.max_positions
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
            why, more = "there is nothing left to train on", "give a model with more positions"
            fix = f"{f'raise {key}' if key.startswith(('data.', 'rollout.')) else more}, or shorten the texts"
            raise BadInput(Problem(what=f"all {len(rows)} rows {what}", where=source, why=why, fix=fix))
        if indices:
            of = f"{len(rows)} rows" if is_complete else f"the first {found.measured} rows"
            remarks.append(f"{len(indices)} of {of} {what}: {listed([prompt_of(rows[i]) for i in indices])}")
    return frozenset(found.dropped), remarks


def _preferences(rows: Sequence[Example]) -> list[str]:
    remarks, keys = [], RowKeys.of(rows)
    if again := repeated(keys):
        remarks.append(f"{len(again)} of {len(rows)} rows repeat an earlier one: {listed_pairs(again, rows)}")
    if disputed := contradicting(keys):
        what = "contradict an earlier one, and the two cancel out"
        remarks.append(f"{len(disputed)} of {len(rows)} rows {what}: {listed_pairs(disputed, rows)}")
    if blank := [prompt_of(row) for row in rows if len(row.completions) == 2 and is_blank(row.completions[1])]:
        remarks.append(f"{len(blank)} of {len(rows)} rows reject an answer without text: {listed(blank)}")
    return remarks


def _answers(row: Prompt | Example) -> Sequence[Any]:
    if isinstance(row, Example):
        return row.completions
    return () if row.gold is None else (row.gold,)
