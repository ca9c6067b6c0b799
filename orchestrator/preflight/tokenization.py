"""Check that the rows of a recipe can be tokenised: they are rendered and encoded as the actors will do it.

Small files are checked completely. In large ones one row of every kind (roles, tools, tool calls, template arguments)
is checked, and further rows at equal distances.
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
from workers.config import ChatScorerConfig, ModelConfig, ModelRewardConfig
from workers.conversation import TextError
from workers.types import Example, Prompt, Text

CHEAP_BYTES = 2**20  # text that is encoded completely: under a second on one core
MAX_KINDS = 500
OVERHEAD_BYTES = 200  # rendering a row takes as long as encoding so many bytes
MOVED = (
    "have a completion that does not start where the generation prompt ends (a thinking template, or a token across "
    "the boundary); the policy is trained on all tokens from the first difference on"
)
MOVED_GOLD = "the gold answer does not start where the generation prompt ends, so the policy would never sample it"
MOVED_GOLD_FIX = "use a chat template that continues its generation prompt, or set algorithm.pairs.gold to never"
LEFT_OUT = "have a completion that the chat template renders only in part; the policy is not trained on the rest"
COMPLETION = [{"role": "assistant", "content": "a"}]
THOUGHT = re.compile(r"think|thought|reason|answer|solution", re.IGNORECASE)

Dated = TypeVar("Dated", ModelConfig, ChatScorerConfig)


def check_rows(
    config: RunConfig, name: str, source: str, rows: Sequence[Any], tokens: TokenCounter | None
) -> list[str]:
    """Tokenise rows of `data.NAME` as a trial and return remarks on the result.

    Args:
        tokens: the policy's tokenizer; None: it cannot be read here.

    Raises:
        BadInput: with every checked row that cannot be tokenised.
    """
    picked = pick(rows)
    remarks = _check_for_policy(config, name, source, rows, picked, tokens)
    plain = [p for p in map(_prompt, rows) if isinstance(p.text, str) and p.columns.get("tools")]
    if plain:
        what = "are plain text and have `tools`, which only a chat template shows to the model"
        remarks.append(f"{len(plain)} of {len(rows)} rows {what}: {listed(plain)}")
    if name in ("prompts", "eval_prompts"):
        for i, reward in enumerate(config.reward):
            if isinstance(reward, ModelRewardConfig):
                _check_for_reward(reward, f"reward.{i}", source, [rows[j] for j in picked])
    return remarks


def pick(rows: Sequence[Any]) -> list[int]:
    """Return the indices of the rows to check: all, or one of every kind and further ones at equal distances."""
    sizes = [_size(row) for row in rows]
    if sum(sizes) <= CHEAP_BYTES:
        return list(range(len(rows)))
    first = {_kind(row): i for i, row in reversed(list(enumerate(rows)))}
    each = max(1, CHEAP_BYTES // max(1, sum(sizes) // len(rows)))
    step = max(1, len(rows) // each)
    return sorted({*sorted(first.values())[:MAX_KINDS], *range(0, len(rows), step)})


def _size(row: Any) -> int:
    """Return the bytes that encoding a row processes: the prompt alone, and with each completion."""
    times = 1 + len(_answers(row))
    return times * (num_bytes(_prompt(row).text) + OVERHEAD_BYTES) + sum(map(num_bytes, _answers(row)))


def _kind(row: Any) -> object:
    """Return the properties of a row that a template may depend on."""
    columns = _prompt(row).columns
    arguments = (bool(columns.get("tools")), str(columns.get("chat_template_kwargs")))
    return arguments, tuple(_turns(text) for text in (_prompt(row).text, *_answers(row)))


def _turns(text: Text) -> object:
    if isinstance(text, str):
        return "text"
    return tuple((m["role"], bool(m.get("tool_calls")), m.get("content") is None) for m in text)


def dated(config: RunConfig, began: float) -> RunConfig:
    """Return the config with `template_date` set to the start of the run, where the recipe does not set it.

    Templates that print the date then give the same text after a resume, on any day and in any time zone.

    Args:
        began: start of the run in Unix seconds; rendered as UTC.
    """
    moment = datetime.fromtimestamp(began, UTC).replace(tzinfo=None).isoformat(timespec="seconds")

    def with_date(model: Dated) -> Dated:
        return model if model.template_date is not None else model.model_copy(update={"template_date": moment})

    teacher = config.teacher
    return config.model_copy(
        update={
            "model": with_date(config.model),
            "reward": tuple(with_date(r) if isinstance(r, ChatScorerConfig) else r for r in config.reward),
            "teacher": teacher and teacher.model_copy(update={"model": with_date(teacher.model)}),
        }
    )


def _check_for_policy(
    config: RunConfig,
    name: str,
    source: str,
    rows: Sequence[Any],
    picked: Sequence[int],
    tokens: TokenCounter | None,
) -> list[str]:
    conversational = any(not isinstance(_prompt(row).text, str) for row in rows)
    if tokens is None:
        tokens = _template_only(config) if conversational else None
        if tokens is None:
            return _unchecked_remarks(config)
    if conversational and tokens.tokenizer.template is None:
        return []  # check_directory reports it
    problems = RowProblems(source)
    moved, left_out = [], []
    for i in picked:
        prompt, answers = _prompt(rows[i]), _answers(rows[i])
        try:
            if answers:
                encoded = tokens.codec.row(prompt.text, answers, prompt.columns)
                moved += [prompt] if encoded.moved else []
                if encoded.moved and prompt.gold is not None:
                    problems.add(row_number(prompt), MOVED_GOLD, fix=MOVED_GOLD_FIX)
                left_out += [prompt] if encoded.left_out else []
            else:
                tokens.codec.encode_prompt(prompt.text, prompt.columns)
        except TextError as error:
            problems.add(row_number(prompt), error.what, fix=error.fix)
    problems.raise_if_any()
    of = f"{len(rows)} rows" if len(picked) == len(rows) else f"{len(picked)} checked rows"
    remarks = [f"{len(at)} of {of} {what}: {listed(at)}" for at, what in ((moved, MOVED), (left_out, LEFT_OUT)) if at]
    if conversational:
        remarks += _template_remarks(config, tokens, [_prompt(rows[i]) for i in picked])
    hidden = [token for token in tokens.special if THOUGHT.search(token)]
    if name == "prompts" and config.reward and config.reward_workers.skip_special_tokens and hidden:
        remarks.append(
            f"rewards do not see {', '.join(hidden[:6])}: they are special tokens; "
            "set reward_workers.skip_special_tokens to false to show them"
        )
    return remarks


def _unchecked_remarks(config: RunConfig) -> list[str]:
    """Return a remark that no row was checked, if the tokenizer is not on this machine or has another format."""
    folder = local(str(config.model.path))
    if not folder.is_dir():
        return [f"the tokenizer of {config.model.path} is not on this machine: rows were not tokenised"]
    if not (folder / "tokenizer.json").is_file():
        return [f"{config.model.path} has no tokenizer.json: rows were not tokenised, and no tokens counted"]
    return []


def _template_only(config: RunConfig) -> TokenCounter | None:
    """Return the chat template of a policy whose tokenizer cannot be read here; None: it has none."""
    path = config.model.path
    return None if path is None else TokenCounter.of_template(local(path), config.model.chat_template_kwargs)


def _template_remarks(config: RunConfig, tokens: TokenCounter, prompts: Sequence[Prompt]) -> list[str]:
    remarks = []
    with_tools = [prompt for prompt in prompts if prompt.columns.get("tools")]
    if with_tools and _ignores_tools(tokens, with_tools[0]):
        remarks.append("the chat template ignores `tools`: no prompt shows them to the model")
    if not tokens.is_exact:
        what = f"{config.model.path} has no tokenizer.json that can be read here"
        return [*remarks, f"{what}: rows were rendered with the chat template, but no tokens counted"]
    if (end := tokens.codec.turn_end) is None:
        remarks.append(
            "the chat template ends the assistant's turn without a token: completions of a dataset do not train the "
            "policy to stop, and sampled ones stop only at the end of sequence"
        )
    elif end not in tokens.tokenizer.stops:
        token = tokens.tokenizer.decode([end])
        remarks.append(
            f"the chat template ends the assistant's turn with {token}, which is an end of sequence neither in "
            f"tokenizer_config.json nor in generation_config.json; sampled completions stop at it as well"
        )
    return remarks


def _ignores_tools(tokens: TokenCounter, prompt: Prompt) -> bool:
    if isinstance(prompt.text, str):
        return False
    without = {key: value for key, value in prompt.columns.items() if key != "tools"}
    return tokens.codec.encode_prompt(prompt.text, prompt.columns) == tokens.codec.encode_prompt(prompt.text, without)


def _check_for_reward(reward: ModelRewardConfig, where: str, source: str, rows: Iterable[Any]) -> None:
    """Check that a reward model can read the rows, which it renders by its own chat template."""
    assert reward.path is not None
    folder = local(reward.path)
    arguments: Mapping[str, Any] = reward.chat_template_kwargs
    tokens = TokenCounter.of(folder, arguments) or TokenCounter.of_template(folder, arguments)
    if tokens is None or tokens.tokenizer.template is None:
        return
    checked: set[object] = set()
    for row in rows:
        prompt, kind = _prompt(row), _kind(row)
        if isinstance(prompt.text, str) or kind in checked:
            continue
        checked.add(kind)
        try:
            tokens.codec.row(prompt.text, [COMPLETION], prompt.columns)
        except TextError as error:
            raise BadInput(
                Problem(
                    what=f"the reward model cannot read it: {error.what}",
                    where=f"{source}:{row_number(prompt)}",
                    why=f"{where}.path = {reward.path} has its own chat template",
                    fix=error.fix,
                )
            ) from None


def _prompt(row: Any) -> Prompt:
    return row.prompt if isinstance(row, Example) else row


def _answers(row: Any) -> Sequence[Text]:
    if isinstance(row, Example):
        return row.completions
    return () if row.gold is None else (row.gold,)
