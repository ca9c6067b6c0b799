"""Chat template of a model directory, rendered without transformers to the same text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from workers.conversation import refused

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT = "default"  # name of the template that is used, if there are several
TOOLS = "tool_use"  # name of the template for conversations with tools


class ChatTemplate:
    """Jinja template in a sandbox, with the extensions of transformers."""

    def __init__(self, sources: Mapping[str, str], tokens: Mapping[str, str]) -> None:
        self._sources, self._tokens = sources, tokens
        self._compiled: dict[str, Any] = {}

    @classmethod
    def of(cls, directory: Path) -> ChatTemplate | None:
        """Return the template of a model directory; None: it has none."""
        sources = _sources(directory, read_object(directory / "tokenizer_config.json"))
        return cls(sources, named_tokens(directory)) if sources else None

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **arguments: Any) -> str:
        """Render a conversation. Raise TextError if the template fails."""
        tools = arguments.pop("tools", None)
        given = {"documents": None, **self._tokens, **arguments}
        try:
            rendered = self._template(TOOLS if tools is not None and TOOLS in self._sources else DEFAULT).render(
                messages=[dict(m) for m in messages], tools=tools, add_generation_prompt=add_generation_prompt, **given
            )
        except Exception as error:  # templates raise errors of any type
            raise refused(error) from error
        return str(rendered)

    def _template(self, name: str) -> Any:
        if name not in self._sources:
            raise ValueError(f"none of several is called {DEFAULT}: {', '.join(sorted(self._sources))}")
        if name not in self._compiled:
            self._compiled[name] = _environment().from_string(self._sources[name])
        return self._compiled[name]


def _sources(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name. Template files take precedence over tokenizer_config.json."""
    files = {DEFAULT: directory / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    from_files = {name: file.read_text("utf-8") for name, file in files.items() if file.is_file()}
    given = settings.get("chat_template")
    if from_files or not given:
        return from_files
    if isinstance(given, list):
        return {str(each["name"]): str(each["template"]) for each in given if isinstance(each, dict)}
    return {name: str(text) for name, text in given.items()} if isinstance(given, dict) else {DEFAULT: str(given)}


def named_tokens(directory: Path) -> dict[str, str]:
    """Return the texts of `eos_token` and the other named tokens, read from the same files as by transformers."""
    settings = read_object(directory / "tokenizer_config.json")
    legacy = {} if "added_tokens_decoder" in settings else read_object(directory / "special_tokens_map.json")
    tokens = {**settings, **legacy}
    texts = {name: value.get("content") if isinstance(value := tokens.get(name), dict) else value for name in NAMED}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty: there is none, or it cannot be read."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _environment() -> Any:
    # Imported here because a recipe with plain text needs no templates.
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Tag `{% generation %}`, which marks the assistant's text and does not change it."""

        tags = {"generation"}  # noqa: RUF012, as jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

        def _unchanged(self, caller: Any) -> Any:
            return caller()

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
