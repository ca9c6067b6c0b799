"""Requests of a constitution as prompts: each asks for a critique of an answer, or for its revision after a critique.

prompt, completion                            ──critique──► prompt, answer, request for a critique
prompt, criticised, principle, critique, …    ──revision──► the same, the critique, request for a revision

Conversations get the requests as messages, texts the templates of the constitution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config.constitution import ConstitutionConfig, PrincipleConfig, filled, read_constitution
from orchestrator.config.run import RunConfig
from orchestrator.data.audit import row_number
from orchestrator.data.rows import RowProblems
from workers.config import GenerateConfig
from workers.types import Prompt, Text

NEEDED = {"critique": ("completion",), "revision": ("criticised", "principle", "critique")}
"""Columns of a row that a request is made of, by the rows that the run writes."""
FROM = {"critique": "answers: rows completion or revision", "revision": "critiques: rows critique"}


def with_requests(config: RunConfig, source: str, rows: Sequence[Prompt]) -> Sequence[Prompt]:
    """Return the prompts that a run samples from: the rows, or requests about the answers in them.

    A request has the columns of its row, and with them what the rows of the run are made of: the `prompt` of the
    answer, its `prompt_id`, the answer as `criticised`, the first answer before any round as `initial`, `principle`,
    `round`, `answer_model`, and in a revision `critique` and `critique_model`.

    Raises:
        BadInput: with every row that lacks what a request is made of.
    """
    own = config.algorithm
    if not isinstance(own, GenerateConfig) or own.constitution is None:
        return rows
    constitution = read_constitution(own.constitution)
    problems, made = RowProblems(source), []
    for row in rows:
        if absent := [f"`{name}`" for name in NEEDED[own.rows] if row.columns.get(name) is None]:
            fix = f"give the data set of a stage that writes {FROM[own.rows]}"
            problems.add(row_number(row), f"no {', '.join(absent)}, of which a request is made", fix=fix)
        elif own.rows == "critique":
            answer = _text_of(row.columns["completion"])
            if answer is None:
                fix = "give answers that are a text, or one message of the assistant with a text"
                problems.add(row_number(row), "`completion` is not one answer", fix=fix)
            else:
                made.append(critique_request(row, answer, constitution, seed=config.seed))
        elif (principle := constitution.principle(row.columns["principle"])) is None:
            what = f"`principle` {row.columns['principle']} is not in {own.constitution}"
            problems.add(row_number(row), what, fix="give both stages the same algorithm.constitution")
        else:
            made.append(revision_request(row, principle, constitution))
    problems.raise_if_any()
    return made


def critique_request(row: Prompt, answer: str, constitution: ConstitutionConfig, *, seed: int) -> Prompt:
    """Return the request for a critique of an answer, by a principle drawn from the seed, the row and the round."""
    before = row.columns if row.columns.get("criticised") is not None else {}  # else an answer of no round yet
    number = int(before.get("round") or 0) + 1
    principle = drawn(constitution.principles, seed=seed, id=row.id, round=number)
    columns = {
        **row.columns,
        "prompt": row.text,
        "prompt_id": row.columns.get("prompt_id") or row.id,
        "criticised": answer,
        "initial": before.get("initial") or answer,
        "principle": principle.name,
        "round": number,
        "answer_model": row.columns.get("model"),
    }
    return Prompt(id=row.id, text=_request(columns, principle, constitution), columns=columns)


def revision_request(row: Prompt, principle: PrincipleConfig, constitution: ConstitutionConfig) -> Prompt:
    """Return the request for a revision of an answer, after its critique."""
    columns = {
        **row.columns,
        "prompt": row.text,
        "prompt_id": row.columns.get("prompt_id") or row.id,
        "initial": row.columns.get("initial") or row.columns["criticised"],
        "round": int(row.columns.get("round") or 1),
        "answer_model": row.columns.get("answer_model"),
        "critique_model": row.columns.get("model"),
    }
    text = _request(columns, principle, constitution, critique=str(row.columns["critique"]))
    return Prompt(id=row.id, text=text, columns=columns)


def drawn(principles: Sequence[PrincipleConfig], *, seed: int, id: str, round: int) -> PrincipleConfig:
    """Draw the principle of an answer, always the same one for the same arguments."""
    digest = hashlib.sha256(f"{seed}:{round}:{id}".encode()).digest()
    return principles[int.from_bytes(digest[:8], "big") % len(principles)]


def _request(
    columns: Mapping[str, Any],
    principle: PrincipleConfig,
    constitution: ConstitutionConfig,
    *,
    critique: str | None = None,
) -> Text:
    """Return the prompt of a critique, or of the revision after `critique`."""
    prompt, answer = columns["prompt"], columns["criticised"]
    if isinstance(prompt, str):
        fields = {"prompt": prompt, "answer": answer, "critique_request": principle.critique}
        if critique is None:
            return filled(constitution.templates.critique, **fields)
        fields |= {"critique": critique, "revision_request": principle.revision}
        return filled(constitution.templates.revision, **fields)
    turns = [("assistant", answer), ("user", principle.critique)]
    turns += [] if critique is None else [("assistant", critique), ("user", principle.revision)]
    return [*prompt, *({"role": role, "content": content} for role, content in turns)]


def _text_of(answer: Any) -> str | None:
    """Return an answer as text; None: it is not one text."""
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], Mapping):
        answer = answer[0].get("content")
    return answer if isinstance(answer, str) else None
