"""Whether the rows of a recipe can become tokens: rendered and encoded as the actors will, before any of them starts.

All rows where that is cheap. Of large files one row of every kind (roles, tools, tool calls, template arguments), and
further ones from beginning to end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from orchestrator.config.run import RunConfig
from orchestrator.data.audit import listed, row_number
from orchestrator.data.rows import RowProblems
from orchestrator.data.sources import local
from orchestrator.data.tokens import TokenCounter, num_bytes
from orchestrator.errors import BadInput, Problem
from workers.config import ModelConfig, ModelRewardConfig
from workers.conversation import TextError
from workers.types import Example, Prompt, Text

CHEAP_BYTES = 2**20  # of text that is encoded whole: under a second of one core
MOST_KINDS = 500
OVERHEAD_BYTES = 200  # a row's rendering costs as much as encoding so many
MOVED = (
    "have an answer that does not go on where the generation prompt ends (a thinking template, or a token across the "
    "boundary); from the first difference on it is learned as the answer"
)
LEFT_OUT = "have an answer that the chat template does not write in full; what it leaves out is not learned"
ANSWER = [{"role": "assistant", "content": "a"}]
THOUGHT = re.compile(r"think|thought|reason|answer|solution", re.IGNORECASE)

Dated = TypeVar("Dated", ModelConfig, ModelRewardConfig)


def look(config: RunConfig, name: str, source: str, rows: Sequence[Any], tokens: TokenCounter | None) -> list[str]:
    """What is worth saying of the rows of `data.NAME` as tokens. `tokens`: the policy's, where they can be read.

    Raises:
        BadInput: with every row looked at that cannot become tokens.
    """
    picked = pick(rows)
    told = _of_policy(config, name, source, rows, picked, tokens)
    plain = [p for p in map(_prompt, rows) if isinstance(p.text, str) and p.columns.get("tools")]
    if plain:
        what = "are plain text and have `tools`, which a chat template alone shows to the model"
        told.append(f"{len(plain)} of {len(rows)} rows {what}: {listed(plain)}")
    if name in ("prompts", "eval_prompts"):
        for i, reward in enumerate(config.reward):
            if isinstance(reward, ModelRewardConfig):
                _of_reward(reward, f"reward.{i}", source, [rows[j] for j in picked])
    return told


def pick(rows: Sequence[Any]) -> list[int]:
    """Rows to look at, by index: all, or one of every kind and further ones at equal distances."""
    sizes = [_size(row) for row in rows]
    if sum(sizes) <= CHEAP_BYTES:
        return list(range(len(rows)))
    first = {_kind(row): i for i, row in reversed(list(enumerate(rows)))}
    each = max(1, CHEAP_BYTES // max(1, sum(sizes) // len(rows)))
    step = max(1, len(rows) // each)
    return sorted({*sorted(first.values())[:MOST_KINDS], *range(0, len(rows), step)})


def _size(row: Any) -> int:
    """Bytes that are encoded: the prompt by itself, and with each answer."""
    times = 1 + len(_answers(row))
    return times * (num_bytes(_prompt(row).text) + OVERHEAD_BYTES) + sum(map(num_bytes, _answers(row)))


def _kind(row: Any) -> object:
    """What a template may make a difference of."""
    columns = _prompt(row).columns
    given = (bool(columns.get("tools")), str(columns.get("chat_template_kwargs")))
    return given, tuple(_turns(text) for text in (_prompt(row).text, *_answers(row)))


def _turns(text: Text) -> object:
    if isinstance(text, str):
        return "text"
    return tuple((m["role"], bool(m.get("tool_calls")), m.get("content") is None) for m in text)


def dated(config: RunConfig, began: float) -> RunConfig:
    """The config with what templates that ask for the date are told, where the recipe does not say it: when the run
    began (Unix seconds; UTC), whatever day a resume is on and wherever."""
    moment = datetime.fromtimestamp(began, UTC).replace(tzinfo=None).isoformat(timespec="seconds")

    def with_date(model: Dated) -> Dated:
        return model if model.template_date is not None else model.model_copy(update={"template_date": moment})

    teacher = config.teacher
    return config.model_copy(
        update={
            "model": with_date(config.model),
            "reward": tuple(with_date(r) if isinstance(r, ModelRewardConfig) else r for r in config.reward),
            "teacher": teacher and teacher.model_copy(update={"model": with_date(teacher.model)}),
        }
    )


def _of_policy(
    config: RunConfig,
    name: str,
    source: str,
    rows: Sequence[Any],
    picked: Sequence[int],
    tokens: TokenCounter | None,
) -> list[str]:
    conversational = any(not isinstance(_prompt(row).text, str) for row in rows)
    if tokens is None:
        tokens = _template_alone(config) if conversational else None
        if tokens is None:
            return _not_tried(config)
    if conversational and tokens.tokenizer.template is None:
        return []  # the model's check says so
    problems = RowProblems(source)
    moved, short = [], []
    for i in picked:
        prompt, answers = _prompt(rows[i]), _answers(rows[i])
        try:
            if answers:
                encoded = tokens.codec.row(prompt.text, answers, prompt.columns)
                moved += [prompt] if encoded.moved else []
                short += [prompt] if encoded.left_out else []
            else:
                tokens.codec.encode_prompt(prompt.text, prompt.columns)
        except TextError as error:
            problems.add(row_number(prompt), error.what, fix=error.fix)
    problems.raise_if_any()
    of = f"{len(rows)} rows" if len(picked) == len(rows) else f"{len(picked)} rows looked at"
    told = [f"{len(at)} of {of} {what}: {listed(at)}" for at, what in ((moved, MOVED), (short, LEFT_OUT)) if at]
    if conversational:
        told += _of_template(config, tokens, [_prompt(rows[i]) for i in picked])
    hidden = [token for token in tokens.special if THOUGHT.search(token)]
    if name == "prompts" and config.reward and config.reward_workers.skip_special_tokens and hidden:
        told.append(
            f"rewards do not see {', '.join(hidden[:6])}: they are special tokens; "
            "set reward_workers.skip_special_tokens to false to show them"
        )
    return told


def _not_tried(config: RunConfig) -> list[str]:
    """What could not be looked at, where a model's files are elsewhere or of a kind that is not read here."""
    folder = local(str(config.model.path))
    if not folder.is_dir():
        return [f"the tokenizer of {config.model.path} is not on this machine: no row was tried with it"]
    if not (folder / "tokenizer.json").is_file():
        return [
            f"{config.model.path} has no tokenizer.json: no row was tried with its tokenizer, and no tokens counted"
        ]
    return []


def _template_alone(config: RunConfig) -> TokenCounter | None:
    """Where tokens cannot be known here; the template can."""
    path = config.model.path
    return None if path is None else TokenCounter.of_template(local(path), config.model.chat_template_kwargs)


def _of_template(config: RunConfig, tokens: TokenCounter, prompts: Sequence[Prompt]) -> list[str]:
    told = []
    with_tools = [prompt for prompt in prompts if prompt.columns.get("tools")]
    if with_tools and _ignores_tools(tokens, with_tools[0]):
        told.append("the chat template makes nothing of `tools`: no prompt shows them to the model")
    if not tokens.is_exact:
        what = f"there is no tokenizer.json of {config.model.path} that can be read here"
        return [*told, f"{what}: the chat template was tried on these rows, and no tokens were counted"]
    if (end := tokens.codec.turn_end) is None:
        told.append(
            "the chat template ends the assistant's turn with no token of its own: answers of a dataset teach no end, "
            "and sampled ones stop at the end of sequence alone"
        )
    elif end not in tokens.tokenizer.stops:
        word = tokens.tokenizer.decode([end])
        told.append(
            f"the chat template ends the assistant's turn with {word}, which neither tokenizer_config.json nor "
            f"generation_config.json calls an end of sequence; answers that are sampled here stop at it, too"
        )
    return told


def _ignores_tools(tokens: TokenCounter, prompt: Prompt) -> bool:
    if isinstance(prompt.text, str):
        return False
    without = {key: value for key, value in prompt.columns.items() if key != "tools"}
    return tokens.codec.encode_prompt(prompt.text, prompt.columns) == tokens.codec.encode_prompt(prompt.text, without)


def _of_reward(reward: ModelRewardConfig, where: str, source: str, rows: Iterable[Any]) -> None:
    """A reward model reads conversations by its own template."""
    assert reward.path is not None
    folder = local(reward.path)
    arguments: Mapping[str, Any] = reward.chat_template_kwargs
    tokens = TokenCounter.of(folder, arguments) or TokenCounter.of_template(folder, arguments)
    if tokens is None or tokens.tokenizer.template is None:
        return
    seen: set[object] = set()
    for row in rows:
        prompt, kind = _prompt(row), _kind(row)
        if isinstance(prompt.text, str) or kind in seen:
            continue
        seen.add(kind)
        try:
            tokens.codec.row(prompt.text, [ANSWER], prompt.columns)
        except TextError as error:
            raise BadInput(
                Problem(
                    what=f"the reward model cannot read it: {error.what}",
                    where=f"{source}:{row_number(prompt)}",
                    why=f"{where}.path = {reward.path} has a chat template of its own",
                    fix=error.fix,
                )
            ) from None


def _prompt(row: Any) -> Prompt:
    return row.prompt if isinstance(row, Example) else row


def _answers(row: Any) -> Sequence[Text]:
    return row.completions if isinstance(row, Example) else ()
