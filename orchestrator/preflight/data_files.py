"""The rows that a recipe names, as the run takes them, and what is worth saying of them though it is no error.

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
from orchestrator.preflight.reward_rows import alike, check_reward_rows
from workers.codec import NO_COLUMNS
from workers.types import Example, Prompt

KEYS = ("prompts", "dataset", "eval_prompts", "eval_harmful", "eval_benign", "eval_dataset")
Row = Prompt | Example


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What one key of `data` holds. `whole` is False when only its beginning was read."""

    key: str  # "data.prompts"
    source: str
    rows: Sequence[Any]  # of Prompt, or of Example where the key ends in `dataset`
    whole: bool = True
    remarks: tuple[str, ...] = ()
    left_out: int = 0  # rows whose prompt is too long

    @property
    def prompts(self) -> list[Prompt]:
        return [_prompt(row) for row in self.rows]


def read_source(
    config: RunConfig,
    name: str,
    tokens: TokenCounter | None,
    *,
    max_rows: int | None = None,
    max_bytes: float = lengths.MEASURED_BYTES,
) -> Source | None:
    """The rows of `data.NAME`; None when the recipe does not give it. `tokens`: the policy's, where they can be read.
    Rows whose prompt is too long are left out before batches are made of the others: no step is short of them, or
    empty. `max_bytes`: of text whose tokens are counted.

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
        told = dropped if config.data.equal_pairs == "drop" else None
        rows = read_examples(source, algorithm=config.algorithm.type, split=split, max_rows=max_rows, equal_pairs=told)
    else:
        rows = alike(read_prompts(source, split=split, max_rows=max_rows))
    found = [f"left out, as data.equal_pairs has it: {remark}" for remark in dropped.remarks()]
    rows, remarks = _special_tokens(config, source, rows, tokens)
    found += remarks
    left_out = 0
    found += tokenization.look(config, name, source, rows, tokens)
    if tokens is not None:
        too_long, remarks = _lengths(config, name, source, rows, tokens, whole=max_rows is None, max_bytes=max_bytes)
        found += remarks
        if max_rows is None and too_long:
            rows, left_out = [row for i, row in enumerate(rows) if i not in too_long], len(too_long)
    if name.endswith("dataset"):
        found += _preferences(rows)
    return Source(
        key=f"data.{name}", source=source, rows=rows, whole=max_rows is None, remarks=tuple(found), left_out=left_out
    )


def read_all(config: RunConfig, tokens: TokenCounter | None) -> dict[str, Source]:
    """Every row of every source that the recipe gives, by the name of its key.

    Raises:
        BadInput: with the rows of the first source that cannot be used.
    """
    found = {name: read_source(config, name, tokens, max_bytes=math.inf) for name in KEYS}
    sources = {name: source for name, source in found.items() if source is not None}
    if problems := scored_rows(config, sources):
        raise BadInput(problems)
    return sources


def scored_rows(config: RunConfig, sources: Mapping[str, Source]) -> list[Problem]:
    """What keeps the rewards from reading the rows that they score."""
    scored = [sources[name] for name in ("prompts", "eval_prompts") if name in sources]
    return [p for source in scored for p in check_reward_rows(config.reward, source.source, source.rows)]


def remarks(config: RunConfig, sources: Mapping[str, Source]) -> list[str]:
    """What is worth saying once of the data of a run, a line each."""
    found = [f"{source.key}: {remark}" for source in sources.values() for remark in source.remarks]
    trained = [prompt for name in ("prompts", "dataset") if name in sources for prompt in sources[name].prompts]
    for name in ("eval_prompts", "eval_harmful", "eval_benign", "eval_dataset"):
        if name in sources and (both := trained_on(held_out := sources[name].prompts, trained)):
            them = listed([held_out[i] for i in both])
            found.append(f"data.{name}: {len(both)} of {len(held_out)} held-out prompts are trained on, too: {them}")
    if "dataset" in sources and sources["dataset"].whole:
        found += remarks_on_labels(sources["dataset"].rows, config.algorithm)
    return found


def tokens_of(path: str | None, arguments: Mapping[str, Any] = NO_COLUMNS) -> TokenCounter | None:
    """Of a model directory, or of a hub model that was downloaded before; None: not known here. `arguments`: the chat
    template's, as the recipe gives them."""
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
    """The rows that `data.special_tokens` leaves, and what is to be said of the others."""
    policy = config.data.special_tokens
    if tokens is None:
        if policy != "keep":
            raise BadInput(
                Problem(
                    what="the tokenizer's special tokens cannot be known",
                    where=f"data.special_tokens = {policy}",
                    why=f"there is no tokenizer.json of model.path = {config.model.path} on this machine",
                    fix="download the model first, or set data.special_tokens to keep",
                )
            )
        return rows, []
    held = [tokens.special_in(_prompt(row).text).union(*map(tokens.special_in, _answers(row))) for row in rows]
    affected = [_prompt(row) for row, special in zip(rows, held, strict=True) if special]
    if not affected:
        return rows, []
    which = ", ".join(sorted(set().union(*held))[:6])
    what = f"{len(affected)} of {len(rows)} rows hold special tokens in their text ({which})"
    kept = [row for row, special in zip(rows, held, strict=True) if not special]
    if policy == "fail" or (policy == "drop" and not kept):
        raise BadInput(
            Problem(
                what=f"{what}: {listed(affected)}",
                where=f"{source}:{row_number(affected[0])}",
                why="the tokenizer takes them for its own: a text can end a turn, or begin one of another role",
                fix="remove them from the text; or set data.special_tokens to keep, where the text is a rendered chat",
            )
        )
    said = "left out, as data.special_tokens has it" if policy == "drop" else "the tokenizer takes them for its own"
    return kept if policy == "drop" else rows, [f"{what}; {said}: {listed(affected)}"]


def _lengths(
    config: RunConfig,
    name: str,
    source: str,
    rows: Sequence[Any],
    tokens: TokenCounter,
    *,
    whole: bool,
    max_bytes: float,
) -> tuple[frozenset[int], list[str]]:
    """The rows whose prompt is too long, by index, and what is to be said. Raises BadInput when all rows are too long,
    or no preference is left of any."""
    if name.endswith("dataset"):
        key, limit = "data.max_length", min(config.data.max_length, tokens.max_positions or config.data.max_length)
        found = lengths.of_examples(rows, tokens, max_tokens=limit, max_bytes=max_bytes)
    else:
        key, limit = "rollout.max_prompt_length", config.rollout.max_prompt_length
        found = lengths.of_prompts(rows, tokens, max_tokens=limit, max_bytes=max_bytes)
    whole = whole and found.measured == len(rows)
    told = []
    for indices, fatal, what in (
        (found.dropped, True, f"have a prompt that is too long for {limit} tokens ({key}) and will be dropped"),
        (found.cut, False, f"are longer than {limit} tokens ({key}) and lose the end of a completion"),
        (
            found.equal,
            True,
            f"are cut at {limit} tokens ({key}), where their completions still agree: no preference",
        ),
    ):
        if fatal and whole and len(indices) == len(rows):
            why, fix = "there is nothing left to learn from", f"raise {key}, or shorten the texts"
            raise BadInput(Problem(what=f"all {len(rows)} rows {what}", where=source, why=why, fix=fix))
        if indices:
            of = f"{len(rows)} rows" if whole else f"the first {found.measured} rows"
            told.append(f"{len(indices)} of {of} {what}: {listed([_prompt(rows[i]) for i in indices])}")
    return frozenset(found.dropped), told


def _preferences(rows: Sequence[Example]) -> list[str]:
    found = []
    if twice := repeated(rows):
        found.append(f"{len(twice)} of {len(rows)} rows repeat an earlier one: {listed_pairs(twice, rows)}")
    if disputed := contradicting(rows):
        said = "say the opposite of an earlier one, and the two cancel out"
        found.append(f"{len(disputed)} of {len(rows)} rows {said}: {listed_pairs(disputed, rows)}")
    return found


def _prompt(row: Row) -> Prompt:
    return row.prompt if isinstance(row, Example) else row


def _answers(row: Row) -> Sequence[Any]:
    return row.completions if isinstance(row, Example) else ()
