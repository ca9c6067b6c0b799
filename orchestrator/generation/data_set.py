"""Data set of a run: what remains of the parts after filters, in the order of the prompts.

parts/step-N.parquet ──► vote ──► filters ──► equal ──► evaluations ──► near duplicates ──► best of the prompt
                                                                                                  │
                              data/{rows,pairs,dropped}.parquet, data/summary.json  ◄────────────┘

The result depends on the parts, the prompts and the config alone, to the bit. One part at a time is in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.config import RunConfig
from orchestrator.data.formats import as_read
from orchestrator.errors import BadInput, Problem
from orchestrator.generation.abstention import knowledge, unpaired
from orchestrator.generation.completions import Completion, read_part
from orchestrator.generation.duplicates import EvaluationText, NearDuplicates
from orchestrator.generation.filters import Filters, outvoted
from orchestrator.generation.rows import Rows, Table
from workers.config import GenerateConfig
from workers.conversation import as_text
from workers.types import Prompt

ROWS, PAIRS, DROPPED, SUMMARY = "rows.parquet", "pairs.parquet", "dropped.parquet", "summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A prompt's completions, and the reason for which each is dropped, by sample; empty: it is kept."""

    prompt: Prompt
    completions: Sequence[Completion]
    reasons: Mapping[int, str]

    @property
    def kept(self) -> list[Completion]:
        return [completion for completion in self.completions if not self.reasons[completion.sample]]

    @property
    def dropped(self) -> list[Completion]:
        return [completion for completion in self.completions if self.reasons[completion.sample]]


class DataSet:
    """Data set of a run that generates one."""

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt], evaluations: Iterable[Prompt] = ()) -> None:
        """Prepare the columns; nothing is read yet.

        Args:
            evaluations: prompts that must not be in the data.

        Raises:
            BadInput: some prompts are texts and some conversations, which one column cannot hold; or a library that the
                filters need is not installed.
        """
        assert isinstance(config.algorithm, GenerateConfig)
        _require_libraries(config.algorithm)
        self._config, self._own = config, config.algorithm
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._rows = Rows(config, prompts)
        self._evaluations = EvaluationText((as_text(p.text) for p in evaluations), length=self._own.duplicates.ngram)

    def write(self, parts: Iterable[Path], target: Path, *, fence: Callable[[], None] = lambda: None) -> None:
        """Write the data set to the directory of the file `target`, which it replaces.

        Args:
            parts: parts of all steps, in order.
            fence: raises Superseded if another driver has taken over the run meanwhile.

        Raises:
            BadInput: no row is left.
        """
        aside, counts, reasons = disk.fresh(target.parent), Counter[str](), Counter[str]()
        names = (target.name, PAIRS, DROPPED)
        with ExitStack() as stack:
            rows, pairs, dropped = (stack.enter_context(Table(aside / name, self._rows.types)) for name in names)
            for judged in self._judged(parts):
                made = self._made(judged)
                rows.add(made)
                changed = self._rows.pairs(judged.prompt, made) if self._own.rows == "revision" else []
                pairs.add(changed)
                left_out = self._rows.single(judged.prompt, judged.dropped)
                why = [judged.reasons[completion.sample] for completion in judged.dropped]
                dropped.add([{**row, "reason": reason} for row, reason in zip(left_out, why, strict=True)])
                counts.update(completions=len(judged.completions), rows=len(made), prompts=int(bool(made)))
                counts.update(pairs=len(changed), unchanged=len(made) - len(changed))
                reasons.update(why)
        if not counts["rows"]:
            raise BadInput(_nothing_left(counts["completions"], reasons))
        if self._own.rows == "revision" and not counts["pairs"]:
            raise BadInput(_nothing_changed(counts["rows"]))
        revised = {key: counts[key] for key in ("pairs", "unchanged") if self._own.rows == "revision"}
        summary = {
            "rows": counts["rows"],
            **revised,
            "completions": counts["completions"],
            "prompts": len(self._prompts),
            "prompts_without_rows": len(self._prompts) - counts["prompts"],
            "dropped": dict(reasons.most_common()),
        }
        disk.write(aside / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        fence()
        disk.publish(target.parent)

    def _made(self, judged: Judged) -> list[dict[str, Any]]:
        match self._own.rows:
            case "ratings":
                return self._rows.rated(judged.prompt, judged.kept)
            case "abstention":
                known, share = knowledge(judged.completions, self._own.abstention)
                return [
                    self._rows.abstaining(judged.prompt, c, self._own.abstention.answer, known=bool(known), share=share)
                    for c in judged.kept
                ]
        return self._rows.single(judged.prompt, judged.kept)

    def _judged(self, parts: Iterable[Path]) -> Iterator[Judged]:
        """Yield the prompts with the reasons for which their completions are dropped."""
        filters = Filters(self._own.filters)
        threshold = None if self._own.rows == "critique" else self._own.duplicates.near  # one fits many answers
        near = None if threshold is None else NearDuplicates(threshold, seed=self._config.seed)
        for part in parts:
            for completions in read_part(part):
                prompt = self._prompts[completions[0].prompt_id]
                yield Judged(
                    prompt=prompt, completions=completions, reasons=self._reasons(prompt, completions, filters, near)
                )

    def _reasons(
        self, prompt: Prompt, completions: Sequence[Completion], filters: Filters, near: NearDuplicates | None
    ) -> dict[int, str]:
        own, lost = self._own, outvoted(completions, self._own)
        reasons = {c.sample: "vote" if c.sample in lost else filters.reason(c) for c in completions}
        seen, left, text = set[str](), list[int](), as_text(self._rows.question(prompt))
        exact = own.duplicates.exact == "drop" or own.rows == "ratings"  # equal completions cannot be rated differently
        best = sorted(completions, key=lambda c: (-(c.score or 0.0), c.sample))  # of duplicates, the best one stays
        for completion in [c for c in best if not reasons[c.sample]]:
            read = str(as_read(completion.text)[0])
            if exact and read in seen:
                reasons[completion.sample] = "duplicate"
            elif self._evaluations.is_in(text, completion.text):
                reasons[completion.sample] = "evaluation"
            elif len(left) == own.per_prompt:
                reasons[completion.sample] = "per_prompt"
            elif near is not None and not near.add(completion.text):
                reasons[completion.sample] = "near duplicate"
            else:
                left.append(completion.sample)
            seen.add(read)
        if own.rows == "ratings" and len(left) == 1:
            reasons[left[0]] = "alone"  # there is nothing to compare it with
        if own.rows == "abstention":
            reasons |= unpaired(completions, left, own.abstention)
        return reasons


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Return the summary of a data set; None if it is missing or damaged."""
    try:
        body = json.loads((directory / SUMMARY).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def _require_libraries(config: GenerateConfig) -> None:
    """Check before anything is sampled that what filters the samples is there. Raises BadInput."""
    needed = {"rensa": config.duplicates.near is not None, "py3langid": bool(config.filters.languages)}
    where = {"rensa": "algorithm.duplicates.near", "py3langid": "algorithm.filters.languages"}
    problems = [
        Problem(
            what=f"{library} is not installed",
            where=where[library],
            why="the samples could not be filtered",
            fix="pip install 'rlhf-orchestrator[data]', or set it to " + ("null" if library == "rensa" else "[]"),
        )
        for library, is_needed in needed.items()
        if is_needed and find_spec(library) is None
    ]
    if problems:
        raise BadInput(problems)


def _nothing_changed(num_revisions: int) -> Problem:
    return Problem(
        what=f"each of {num_revisions} revisions is the answer before it",
        where="algorithm.constitution",
        why="a pair is a revision and an answer that it changed",
        fix="read the critiques in the data set before this one; ask for them more clearly, or of a more capable model",
    )


def _nothing_left(num_completions: int, reasons: Counter[str]) -> Problem:
    why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    return Problem(
        what=f"no row is left of {num_completions} completions",
        where="algorithm.filters, algorithm.duplicates",
        why=f"dropped by {why}" if why else "no prompt fits rollout.max_prompt_length",
        fix="look at parts/ in the run directory, and start over (--fresh) with filters that keep something",
    )
