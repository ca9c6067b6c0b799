"""Rows of a data set: prompt and completions in TRL's formats, the columns of the prompt, and provenance.

completion   prompt, completion, …            for sft
ratings      prompt, completions, ratings, …  for dpo and reward_model
abstention   prompt, chosen, rejected, …      for dpo
critique     prompt, criticised, critique, …  for a stage of revisions
revision     prompt, completion, …            for sft, and for dpo: prompt, chosen, rejected, …
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from orchestrator.config import RunConfig
from orchestrator.data.formats import COLUMNS, equal_to_a_reader
from orchestrator.errors import BadInput, Problem
from orchestrator.generation.completions import Completion
from workers.config import GenerateConfig
from workers.files.pairs_file import ARGUMENTS, as_rows
from workers.types import Prompt, Text
from workers.writer import SCORE

ROW_GROUP = 4096  # rows that are written together, at least
PROVENANCE = {
    # column → name of its type in Arrow
    "prompt_id": "string", "score": "float32", "model": "string", "temperature": "float64", "top_p": "float64",
    "top_k": "int32", "version": "int32", "seed": "int64", "sample": "int32", "tokens": "int32", "finish": "string",
    "reason": "string", "known": "bool", "right": "float32",
}  # fmt: skip
OF_AN_ANSWER = {"round": "int32", "principle": "string", "criticised": "string", "initial": "string"}
OF_AN_ANSWER |= {"answer_model": "string"}
OF_A_CRITIQUE = {"critique": "string", "critique_model": "string"}
REQUESTS = {"critique": OF_AN_ANSWER, "revision": OF_AN_ANSWER | OF_A_CRITIQUE}
"""Columns of critiques and revisions that come with the request, see `preflight/critique.py`."""
RESERVED = {*PROVENANCE, "seeds", "samples", *(column for columns in COLUMNS.values() for column in columns)}
"""Columns of our own, and those by which a format is detected. A prompt's own column of such a name is left out."""


class Rows:
    """Maker of rows, for the prompts of one run."""

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt]) -> None:
        """Find the types of the columns.

        Raises:
            BadInput: some prompts are texts and some conversations, which one column cannot hold.
        """
        conversations = sum(not isinstance(prompt.text, str) for prompt in prompts)
        if 0 < conversations < len(prompts):
            what = f"{conversations} of {len(prompts)} prompts are conversations, and the others texts"
            fix = "give all prompts as text, or all as lists of messages"
            raise BadInput(Problem(what=what, where="data.prompts", why="a column has one type", fix=fix))
        rollout = config.rollout
        self._conversational = conversations > 0
        self._sampling = {
            "model": config.model.path,
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "top_k": rollout.top_k,
        }
        assert isinstance(config.algorithm, GenerateConfig)
        self._requested = REQUESTS.get(config.algorithm.rows, {})
        self._text = "critique" if config.algorithm.rows == "critique" else "completion"
        reserved = {*RESERVED, *REQUESTS["revision"], "from_row"} if self._requested else RESERVED
        self._own, self.types = _columns(prompts, reserved)
        self.types["prompt"] = _type_of([as_rows(self.question(prompt)) for prompt in prompts])

    def question(self, prompt: Prompt) -> Text:
        """Return the prompt of a row: that of the answer, where the run's own prompt is a request about an answer."""
        return prompt.columns["prompt"] if self._requested else prompt.text

    def single(self, prompt: Prompt, completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """Return one row per completion."""
        return [
            {
                **self._head(prompt),
                self._text: completion.text if self._text == "critique" else self._answer(completion.text),
                "score": completion.score,
                **{f"{SCORE}{name}": value for name, value in completion.scores.items()},
                **self._sampling,
                "version": completion.version,
                "seed": completion.seed,
                "sample": completion.sample,
                "tokens": completion.tokens,
                "finish": completion.finish,
            }
            for completion in completions
        ]

    def rated(self, prompt: Prompt, completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """Return one row with all completions and their scores; none without completions."""
        if not completions:
            return []
        row = {
            **self._head(prompt),
            "completions": [self._answer(completion.text) for completion in completions],
            "ratings": [completion.score for completion in completions],
            **self._sampling,
            "version": completions[0].version,
            "seeds": [completion.seed for completion in completions],
            "samples": [completion.sample for completion in completions],
        }
        return [row]

    def pairs(self, prompt: Prompt, revisions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a pair of each revision and the answer that it revises, with the columns of the revision.

        A revision that a reader cannot tell from the answer makes none.
        """
        before = self._answer(prompt.columns["criticised"])
        return [
            {
                "prompt": row["prompt"],
                "chosen": row["completion"],
                "rejected": before,
                **{name: value for name, value in row.items() if name not in ("prompt", "completion")},
            }
            for row in revisions
            if not equal_to_a_reader(row["completion"], before)
        ]

    def abstaining(
        self, prompt: Prompt, completion: Completion, abstention: str, *, known: bool, share: float
    ) -> dict[str, Any]:
        """Return a pair of a completion and an abstention. The first is chosen if the model has `known` the answer.

        `share`: of the prompt's completions that are right.
        """
        answers = {"chosen": completion.text, "rejected": abstention}
        if not known:
            answers = {"chosen": abstention, "rejected": completion.text}
        return {
            **self._head(prompt),
            **{side: self._answer(text) for side, text in answers.items()},
            "known": known,
            "right": share,
            **self._sampling,
            "version": completion.version,
            "seed": completion.seed,
            "sample": completion.sample,
        }

    def _head(self, prompt: Prompt) -> dict[str, Any]:
        own = {name: written(prompt.columns.get(name)) for name, written in self._own.items()}
        head = {"prompt": as_rows(self.question(prompt)), **own, "prompt_id": prompt.id}
        if not self._requested:
            return head
        requested = {name: prompt.columns.get(name) for name in self._requested}
        return {**head, "prompt_id": prompt.columns["prompt_id"], "from_row": prompt.id, **requested}

    def _answer(self, text: str) -> Any:
        return [{"role": "assistant", "content": text}] if self._conversational else text


class Table:
    """A parquet file that grows row by row. It is not created before the first row."""

    def __init__(self, path: Path, types: Mapping[str, Any]) -> None:
        """Set where to write. `types`: Arrow types of the columns that are not of our own."""
        self._path, self._types = path, types
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._rows and error[0] is None:
            self._write()
        if self._writer is not None:
            self._writer.close()

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows, which all have the same columns."""
        self._rows += rows
        if len(self._rows) >= ROW_GROUP:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._schema = pa.schema([(name, self._type(name)) for name in self._rows[0]])
            self._writer = pq.ParquetWriter(self._path, self._schema)
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def _type(self, name: str) -> Any:
        import pyarrow as pa

        if name in self._types:
            return self._types[name]
        if name in ("completion", "completions", "chosen", "rejected"):
            message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
            one = pa.string() if pa.types.is_string(self._types["prompt"]) else message
            return pa.list_(one) if name == "completions" else one
        lists = {"ratings": pa.float32(), "seeds": pa.int64(), "samples": pa.int32()}
        if name in lists:
            return pa.list_(lists[name])
        known = {**PROVENANCE, **REQUESTS["revision"], "from_row": "string"}
        return pa.type_for_alias(known.get(name, "float32"))  # else the score of a scorer


def _columns(
    prompts: Sequence[Prompt], reserved: Collection[str]
) -> tuple[dict[str, Callable[[Any], Any]], dict[str, Any]]:
    """Return how the value of each column of the prompts is written, and its Arrow type.

    Values that do not share one type are written as JSON.
    """
    written: dict[str, Callable[[Any], Any]] = {}
    types: dict[str, Any] = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.columns if name not in reserved):
        values = [prompt.columns.get(name) for prompt in prompts]
        found = None if name in ARGUMENTS else _type_of(values)
        written[name] = _as_json if found is None else _as_it_is
        types[name] = _type_of([""]) if found is None else found
    return written, types


def _type_of(values: Sequence[Any]) -> Any:
    """Return the Arrow type that all values share; None: there is none."""
    import pyarrow as pa

    try:
        return pa.array(values).type
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _as_it_is(value: Any) -> Any:
    return value


def _as_json(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
