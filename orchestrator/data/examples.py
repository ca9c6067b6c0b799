"""Prompts that come with their completions: preferences, and demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from orchestrator.data.formats import (
    ACCEPTS,
    COLUMNS,
    Format,
    clean,
    common_beginning,
    detect,
    equal_to_a_reader,
    has_other_turns,
    is_conversation,
    joined,
    missing,
    nearest,
    starts_before_the_answer,
    wrong_completion,
    wrong_prompt,
    wrong_text,
)
from orchestrator.data.ratings import Scale, best_first, without_preference, wrong_margin, wrong_scored
from orchestrator.data.rows import Row, RowProblems, kind_of
from orchestrator.data.sources import label, read_rows
from workers.types import Example, Prompt


def read_examples(
    source: str,
    *,
    algorithm: str,
    split: str = "train",
    max_rows: int | None = None,
    equal_pairs: RowProblems | None = None,
) -> tuple[Example, ...]:
    """The rows of a dataset that `algorithm` learns from: pairs for dpo (best first), demonstrations for sft.

    All rows have the format of the first one. A `margin` column becomes the scores (margin, 0.0); without it
    they are (1.0, 0.0). A `label` becomes the score 1.0 or 0.0, `ratings` are scores, of `ranks` the score is −rank.
    Demonstrations have no scores. `max_rows`: only look at so many. `equal_pairs`: who is told of rows whose two sides
    are equal, which are then left out; None: they cannot be used, like others that are wrong.

    Raises:
        BadInput: with every row that cannot be used, or when the format is not one for this algorithm.
    """
    problems, examples, name = RowProblems(source), [], label(source)
    whole_rows = algorithm == "reward_model"  # it learns a number for a text, and no token of it
    format: Format | None = None
    for row in islice(read_rows(source, split, problems), max_rows):
        given = [key for key, value in row.values.items() if value is not None]
        format = format or _format(given, row, algorithm, problems)
        if not set(COLUMNS[format]) <= set(given):
            what, fix = missing(given, COLUMNS[format])
            problems.add(row.number, what, why=f"the rows before it are in {format} format", fix=fix)
            continue
        wrong, example = _READERS[format](row.values, f"{name}:{row.number}")
        if example is not None and not whole_rows and any(map(has_other_turns, example.completions)):
            wrong, example = OTHER_TURNS, None
            fix = "give a row for each answer, with the turns before it in `prompt`"
            problems.add(row.number, wrong, why=OTHER_TURNS_WHY, fix=fix)
        elif wrong == EQUAL:
            fix = "remove these rows, or leave them out with data.equal_pairs: drop"
            (problems if equal_pairs is None else equal_pairs).add(row.number, wrong, fix=fix)
        elif example is None:
            problems.add(row.number, wrong, fix="mend or remove these rows")
        else:
            examples.append(example)
    problems.raise_if_any()
    if not examples and equal_pairs is not None and equal_pairs.problems():
        raise problems.stop("0 rows are left", why=f"in each of them {EQUAL}", fix="give rows with a preference")
    if not examples:
        columns = ", ".join(f"`{column}`" for column in COLUMNS[ACCEPTS[algorithm][0]])
        raise problems.stop("0 rows", why="there is nothing to learn from", fix=f"write rows with {columns}")
    if max_rows is None:
        _not_all_the_same(examples, format, problems)
    return tuple(examples)


def _not_all_the_same(examples: Sequence[Example], format: Format | None, problems: RowProblems) -> None:
    """Raises BadInput when the whole dataset has one label only, or rates nothing above anything else."""
    if format in (Format.rated, Format.ranked) and without_preference([example.scores for example in examples]):
        what = f"the {COLUMNS[format][-1]} of every row are equal, so there is no preference"
        raise problems.stop(what, fix="give rows in which some completions are better than others")
    good = sum(example.scores == (1.0,) for example in examples)
    if format == Format.unpaired and good in (0, len(examples)):
        what = f"{good} rows with `label` true, {len(examples) - good} with `label` false"
        why = "what is good is learned from the difference to what is bad"
        raise problems.stop(what, why=why, fix="add rows with the other label, or choose sft for good answers alone")


def _format(columns: list[str], row: Row, algorithm: str, problems: RowProblems) -> Format:
    """Of the first row. Raises BadInput when this algorithm cannot learn from it."""
    found = detect(columns)
    accepted = ACCEPTS[algorithm]
    if found in accepted:
        return found
    if found is None or (found == Format.prompt_only and set(columns) != {"prompt"}):
        what, fix = missing(columns, COLUMNS[nearest(columns, accepted)])
        raise problems.stop(what, row=row.number, why=f"{algorithm} learns from {_listed(accepted)} data", fix=fix)
    why = f"{algorithm} learns from {_listed(accepted)} data"
    fix = "give data in one of these formats, or choose another algorithm"
    if found == Format.prompt_only:
        fix = "to sample completions for prompts give data.prompts instead of data.dataset (dpo, grpo, ppo)"
    elif found == Format.stepwise:
        fix = f"{found} data are not supported by any algorithm here yet: " + fix
    raise problems.stop(f"the rows are in {found} format", row=row.number, why=why, fix=fix)


def _listed(formats: tuple[Format, ...]) -> str:
    return " or ".join(part for part in (", ".join(formats[:-1]), formats[-1]) if part)


Read = tuple[str, Example | None]
"""What is wrong with a row (empty: nothing), and the example it makes."""
OTHER_TURNS = "an answer has turns of users or tools in it"
OTHER_TURNS_WHY = "every token of an answer is learned, and these would be, too"
EQUAL = "`chosen` and `rejected` are equal, so there is no preference"


def _preference(values: Mapping[str, Any], id: str) -> Read:
    chosen, rejected = values["chosen"], values["rejected"]
    if not (starts_before_the_answer(chosen) and starts_before_the_answer(rejected)):
        return _pair(values, id, values["prompt"], chosen, rejected)
    # As in many hub datasets, where `prompt` repeats the start, or has the part of it that the others lack.
    wrong = wrong_text(values["prompt"], "prompt") or wrong_text(chosen, "chosen") or wrong_text(rejected, "rejected")
    if wrong:
        return wrong, None
    both = joined(values["prompt"], chosen), joined(values["prompt"], rejected)
    if both[0] is None or both[1] is None:
        side = "chosen" if both[0] is None else "rejected"
        return f"`{side}` begins with another turn than `prompt` has, so the two contradict each other", None
    return _implicit({**values, "chosen": both[0], "rejected": both[1]}, id)


def _implicit(values: Mapping[str, Any], id: str) -> Read:
    chosen, rejected = values["chosen"], values["rejected"]
    if wrong := wrong_text(chosen, "chosen") or wrong_text(rejected, "rejected"):
        return wrong, None
    if isinstance(chosen, str) != isinstance(rejected, str):
        return "one of `chosen` and `rejected` is text, the other a list of messages", None
    if equal_to_a_reader(chosen, rejected):
        return EQUAL, None
    length = common_beginning(chosen, rejected)
    while (
        length == min(len(chosen), len(rejected))
        and is_conversation(chosen)
        and length
        and (chosen[length - 1].get("role") == "assistant")
    ):
        length -= 1  # one is the beginning of the other: its last turn is its answer
    if not length:
        return "no `prompt`, and `chosen` and `rejected` have no common beginning to take it from", None
    prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    return _pair(values, id, prompt, chosen, rejected, prompt_is="the common beginning")


def _pair(
    values: Mapping[str, Any], id: str, prompt: Any, chosen: Any, rejected: Any, *, prompt_is: str = "prompt"
) -> Read:
    conversational, margin = is_conversation(prompt), values.get("margin")
    wrong = wrong_prompt(prompt, prompt_is)
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        if text != "" or prompt_is == "prompt":  # of two texts without a prompt one may end where the other goes on
            wrong = wrong or wrong_completion(text, side, conversational=conversational)
    if not wrong and equal_to_a_reader(chosen, rejected):
        wrong = EQUAL
    if not wrong and margin is not None:
        wrong = wrong_margin(margin)
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
    """The last turn is learned; all before it is the prompt."""
    messages = values["messages"]
    if isinstance(messages, str):
        return "`messages` is text, not a list of messages", None
    wrong = wrong_text(messages, "messages")
    if not wrong and len(messages) < 2:
        wrong = "`messages` has one message: a question and an answer are needed"
    wrong = wrong or wrong_prompt(messages[:-1], "messages before the last")
    wrong = wrong or wrong_completion(messages[-1:], "messages", conversational=True)
    if wrong:
        return wrong, None
    return "", Example(prompt=_prompt(values, id, messages[:-1]), completions=(clean(messages[-1:]),))


def _text(values: Mapping[str, Any], id: str) -> Read:
    """No prompt: every token is learned."""
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
