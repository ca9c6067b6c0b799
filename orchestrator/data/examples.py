"""Read prompts with their completions: preferences, ratings, labels and demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from orchestrator.data.formats import (
    ACCEPTS,
    COLUMNS,
    Format,
    clean,
    common_length,
    detect,
    equal_to_a_reader,
    has_other_turns,
    is_blank,
    is_conversation,
    joined,
    missing,
    nearest,
    starts_before_the_answer,
    wrong_completion,
    wrong_prompt,
    wrong_text,
)
from orchestrator.data.ratings import (
    Scale,
    best_first,
    without_preference,
    wrong_margin,
    wrong_scored,
    wrong_votes,
)
from orchestrator.data.rows import Row, RowProblems, kind_of
from orchestrator.data.sources import label, read_rows
from workers.config import METHODS
from workers.types import Example, Prompt


def read_examples(
    source: str,
    *,
    algorithm: str,
    split: str = "train",
    max_rows: int | None = None,
    equal_pairs: RowProblems | None = None,
    contrast: bool = True,
) -> tuple[Example, ...]:
    """Read a dataset for `algorithm`: pairs for dpo (best completion first), demonstrations for sft.

    All rows have the format of the first one. Scores are (margin, 0.0) for pairs, with margin 1.0 where there is no
    `margin` column; 1.0 or 0.0 for a `label`; the `ratings`; or −rank for `ranks`. Demonstrations have no scores.

    Args:
        max_rows: rows to read; None: all.
        equal_pairs: collects rows whose chosen and rejected are equal, which are then dropped; None: they are problems
            like others.
        contrast: require that some row prefers a completion, and labels of both kinds; False: other sources may have
            them.

    Raises:
        BadInput: with every row that cannot be used, or if the format does not suit the algorithm.
    """
    problems = RowProblems(source)
    usable = [
        *stream_examples(source, problems, algorithm=algorithm, split=split, max_rows=max_rows, equal_pairs=equal_pairs)
    ]
    format, examples = usable[0][0] if usable else None, [example for _, example in usable]
    problems.raise_if_any()
    if not examples and equal_pairs is not None and equal_pairs.problems():
        raise problems.stop("0 rows are left", why=f"in every row {EQUAL}", fix="give rows with a preference")
    if not examples:
        columns = ", ".join(f"`{column}`" for column in COLUMNS[ACCEPTS[algorithm][0]])
        raise problems.stop("0 rows", why="there is nothing to train on", fix=f"write rows with {columns}")
    if max_rows is None and contrast:
        _require_contrast(examples, format, problems)
    return tuple(examples)


def stream_examples(
    source: str,
    problems: RowProblems,
    *,
    algorithm: str,
    split: str = "train",
    max_rows: int | None = None,
    equal_pairs: RowProblems | None = None,
    only: Container[int] | None = None,
    format: Format | None = None,
) -> Iterator[tuple[Format, Example]]:
    """Yield the usable rows of a dataset, each with the format of all rows. The others are added to `problems`.

    The other arguments are those of `read_examples`.

    Args:
        only: numbers of the rows to read, or None for all.
        format: of the rows, or None for that of the first one.

    Raises:
        BadInput: if the source cannot be read at all, or the format does not suit the algorithm.
    """
    name = label(source)
    trains_on_tokens = METHODS[algorithm].needs.head != "scores"  # a reward model is trained on one number per text
    for row in islice(read_rows(source, split, problems, only), max_rows):
        given = [key for key, value in row.values.items() if value is not None]
        format = format or _format(given, row, algorithm, problems)
        if not set(COLUMNS[format]) <= set(given):
            what, fix = missing(given, COLUMNS[format])
            problems.add(row.number, what, why=f"the rows before it are in {format} format", fix=fix)
            continue
        wrong, example = _READERS[format](row.values, f"{name}:{row.number}")
        if example is not None and trains_on_tokens and any(map(has_other_turns, example.completions)):
            fix = "give a row for each answer, with the messages before it in `prompt`"
            problems.add(row.number, OTHER_TURNS, why=OTHER_TURNS_WHY, fix=fix)
        elif wrong == EQUAL:
            fix = "remove these rows, or drop them with data.equal_pairs: drop"
            (problems if equal_pairs is None else equal_pairs).add(row.number, wrong, fix=fix)
        elif example is None:
            problems.add(row.number, wrong, fix="fix or remove these rows")
        else:
            yield format, example


def _require_contrast(examples: Sequence[Example], format: Format | None, problems: RowProblems) -> None:
    """Raise BadInput if the dataset has only one label, or no row prefers a completion to another."""
    if format in (Format.rated, Format.ranked) and without_preference([example.scores for example in examples]):
        what = f"the {COLUMNS[format][-1]} of every row are equal, so there is no preference"
        raise problems.stop(what, fix="give rows in which some completions are better than others")
    if format == Format.unpaired:
        require_both_labels(examples, problems)


def require_both_labels(examples: Sequence[Example], problems: RowProblems) -> None:
    """Raise BadInput if all of these completions with labels have the same one."""
    good = sum(example.scores == (1.0,) for example in examples)
    if good in (0, len(examples)):
        what = f"{good} rows with `label` true, {len(examples) - good} with `label` false"
        why = "the method contrasts good with bad completions"
        raise problems.stop(what, why=why, fix="add rows with the other label, or use sft for good completions only")


def _format(columns: list[str], row: Row, algorithm: str, problems: RowProblems) -> Format:
    """Return the format of the first row. Raise BadInput if the algorithm cannot be trained on it."""
    format = detect(columns)
    accepted = ACCEPTS[algorithm]
    if format in accepted:
        return format
    why = f"{algorithm} trains on {_listed(accepted)} data"
    if format is None or (format == Format.prompt_only and set(columns) != {"prompt"}):
        what, fix = missing(columns, COLUMNS[nearest(columns, accepted)])
        raise problems.stop(what, row=row.number, why=why, fix=fix)
    fix = "give data in one of these formats, or choose another algorithm"
    if format == Format.prompt_only:
        fix = "to sample completions for prompts give data.prompts instead of data.dataset (dpo, grpo, ppo)"
    elif format == Format.stepwise:
        fix = f"{format} data are not supported by any algorithm yet: " + fix
    raise problems.stop(f"the rows are in {format} format", row=row.number, why=why, fix=fix)


def _listed(formats: tuple[Format, ...]) -> str:
    return " or ".join(part for part in (", ".join(formats[:-1]), formats[-1]) if part)


Read = tuple[str, Example | None]
"""Result of reading a row: what is wrong (empty: nothing), and the example."""
OTHER_TURNS = "a completion contains messages of users or tools"
OTHER_TURNS_WHY = "the policy is trained on every token of a completion"
EQUAL = "`chosen` and `rejected` are equal, so there is no preference"


def _preference(values: Mapping[str, Any], id: str) -> Read:
    chosen, rejected = values["chosen"], values["rejected"]
    if not (starts_before_the_answer(chosen) and starts_before_the_answer(rejected)):
        return _pair(values, id, values["prompt"], chosen, rejected)
    # In many Hub datasets `prompt` repeats the start of both sides, or has the part of it that they lack.
    wrong = wrong_text(values["prompt"], "prompt") or wrong_text(chosen, "chosen") or wrong_text(rejected, "rejected")
    if wrong:
        return wrong, None
    both = joined(values["prompt"], chosen), joined(values["prompt"], rejected)
    if both[0] is None or both[1] is None:
        side = "chosen" if both[0] is None else "rejected"
        return f"`{side}` starts with another message than `prompt`, so the two contradict each other", None
    return _implicit({**values, "chosen": both[0], "rejected": both[1]}, id)


def split_pair(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what is wrong with a preference row, and its prompt, chosen and rejected as a method on pairs has them."""
    wrong, example = (_preference if values.get("prompt") is not None else _implicit)(values, "")
    if example is not None:
        chosen, rejected = example.completions
        return "", {"prompt": example.prompt.text, "chosen": chosen, "rejected": rejected}
    if wrong == EQUAL and is_conversation(values["chosen"]):  # no preference, but a prompt
        prompt, answer = values["chosen"][:-1], values["chosen"][-1:]
        wrong = wrong_prompt(prompt, "the common start") if prompt else "no prompt"
        return wrong, {"prompt": prompt, "chosen": answer, "rejected": answer}
    return wrong, {}


def _implicit(values: Mapping[str, Any], id: str) -> Read:
    chosen, rejected = values["chosen"], values["rejected"]
    if wrong := wrong_text(chosen, "chosen") or wrong_text(rejected, "rejected"):
        return wrong, None
    if isinstance(chosen, str) != isinstance(rejected, str):
        return "one of `chosen` and `rejected` is text, the other a list of messages", None
    if equal_to_a_reader(chosen, rejected):
        return EQUAL, None
    length = common_length(chosen, rejected)
    while (
        length == min(len(chosen), len(rejected))
        and is_conversation(chosen)
        and length
        and (chosen[length - 1].get("role") == "assistant")
    ):
        length -= 1  # one side is the start of the other: its last message is its completion
    if not length:
        return "no `prompt`, and `chosen` and `rejected` have no common start to take it from", None
    prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    return _pair(values, id, prompt, chosen, rejected, prompt_is="the common start")


def _pair(
    values: Mapping[str, Any], id: str, prompt: Any, chosen: Any, rejected: Any, *, prompt_is: str = "prompt"
) -> Read:
    conversational, margin = is_conversation(prompt), values.get("margin")
    wrong = wrong_prompt(prompt, prompt_is)
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        if side == "rejected" and is_blank(text) and is_conversation(text) == conversational:
            continue  # a sampled answer may end at once
        if text != "" or prompt_is == "prompt":  # without a prompt, one text may be the start of the other
            wrong = wrong or wrong_completion(text, side, conversational=conversational)
    if not wrong and equal_to_a_reader(chosen, rejected):
        wrong = EQUAL
    if not wrong and margin is not None:
        wrong = wrong_margin(margin)
    wrong = wrong or wrong_votes(values.get("votes"))
    if wrong:
        return wrong, None
    example = Example(
        prompt=_prompt(values, id, prompt, "chosen", "rejected"),
        completions=(clean(chosen), clean(rejected)),
        scores=(1.0 if margin is None else float(margin), 0.0),
    )
    return "", example


def _prompt_completion(values: Mapping[str, Any], id: str) -> Read:
    prompt, completion = values["prompt"], values["completion"]
    wrong = wrong_prompt(prompt)
    wrong = wrong or wrong_completion(completion, "completion", conversational=is_conversation(prompt))
    if wrong:
        return wrong, None
    return "", Example(prompt=_prompt(values, id, prompt, "completion"), completions=(clean(completion),))


def _unpaired(values: Mapping[str, Any], id: str) -> Read:
    prompt, completion, label = values["prompt"], values["completion"], values["label"]
    wrong = wrong_prompt(prompt)
    wrong = wrong or wrong_completion(completion, "completion", conversational=is_conversation(prompt))
    if not wrong and not isinstance(label, bool):
        wrong = f"`label` is {kind_of(label)}, not true or false"
    if wrong:
        return wrong, None
    example = Example(
        prompt=_prompt(values, id, prompt, "completion", "label"),
        completions=(clean(completion),),
        scores=(float(label),),
    )
    return "", example


def _scored(scale: Scale) -> Callable[[Mapping[str, Any], str], Read]:
    def read(values: Mapping[str, Any], id: str) -> Read:
        if wrong := wrong_scored(values, scale):
            return wrong, None
        completions, scores = best_first(values, scale)
        prompt = _prompt(values, id, values["prompt"], "completions", scale)
        return "", Example(prompt=prompt, completions=completions, scores=scores)

    return read


def _messages(values: Mapping[str, Any], id: str) -> Read:
    """Read `messages`: the last message is the completion, all before it the prompt."""
    messages = values["messages"]
    if isinstance(messages, str):
        return "`messages` is text, not a list of messages", None
    wrong = wrong_text(messages, "messages")
    if not wrong and len(messages) < 2:
        wrong = "`messages` has only one message: a question and an answer are needed"
    wrong = wrong or wrong_prompt(messages[:-1], "messages before the last")
    wrong = wrong or wrong_completion(messages[-1:], "messages", conversational=True)
    if wrong:
        return wrong, None
    return "", Example(prompt=_prompt(values, id, messages[:-1]), completions=(clean(messages[-1:]),))


def _text(values: Mapping[str, Any], id: str) -> Read:
    """Read `text`: there is no prompt, every token is trained on."""
    text = values["text"]
    wrong = wrong_text(text, "text") or ("" if isinstance(text, str) else "`text` is a list; call it `messages`")
    return (wrong, None) if wrong else ("", Example(prompt=_prompt(values, id, ""), completions=(text,)))


def _prompt(values: Mapping[str, Any], id: str, text: Any, *completions: str) -> Prompt:
    used = {"prompt", "text", "messages", "margin", *completions}
    return Prompt(id=id, text=clean(text), columns={k: v for k, v in values.items() if k not in used})


_READERS: Mapping[Format, Callable[[Mapping[str, Any], str], Read]] = {
    Format.preference: _preference,
    Format.implicit_preference: _implicit,
    Format.prompt_completion: _prompt_completion,
    Format.rated: _scored("ratings"),
    Format.ranked: _scored("ranks"),
    Format.unpaired: _unpaired,
    Format.messages: _messages,
    Format.text: _text,
}
