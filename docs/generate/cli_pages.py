"""Command reference: one page for each command of `rlhf`, from the command line's own parser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import typer

from orchestrator.cli.main import app


def commands() -> Mapping[str, Any]:
    """Return every command that is not hidden by its full name, such as `run` or `ledger verify`."""
    return dict(_commands(typer.main.get_command(app), ()))


def _commands(command: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(names), command
        return
    for name, one in inner.items():
        if one.hidden:
            continue
        yield from _commands(one, (*names, name))


def pages() -> dict[str, str]:
    """Return the text of every page by its path below `docs/`."""
    found = commands()
    return {"reference/cli/index.md": _index(found)} | {path_of(name): _page(name, c) for name, c in found.items()}


def path_of(name: str) -> str:
    return f"reference/cli/{name.replace(' ', '-')}.md"


def _index(found: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| [`rlhf {name}`]({path_of(name).rpartition('/')[2]}) | {_cell(_summary(command))} |"
        for name, command in found.items()
    )
    return f"""# Commands

```
rlhf [--version] [--debug] COMMAND
```

`rlhf COMMAND --help` shows the same texts in a terminal. `--debug`, before or after the command, shows tracebacks.

| command | what it does |
|---|---|
{rows}

{app.info.epilog}
"""


def _page(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    parts = [f"# rlhf {name}", f"```\n{_usage(name, arguments, options)}\n```", _help(command)]
    if arguments:
        needed = {True: "yes", False: "no"}
        rows = [f"| `{_cell(_metavar(p))}` | {needed[p.required]} | {_cell(p.help or '')} |" for p in arguments]
        parts.append("\n".join(["| argument | required | meaning |", "|---|---|---|", *rows]))
    if options:
        head = ["| option | value | default | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([*head, *map(_option, options)]))
    return "\n\n".join(parts) + "\n"


def _usage(name: str, arguments: list[Any], options: list[Any]) -> str:
    needed = [f"{o.opts[0]} {_value(o)}" for o in options if o.required]
    rest = ["[OPTIONS]"] if any(not o.required for o in options) else []
    given = [_given(argument) for argument in arguments]
    return " ".join(["rlhf", name, *needed, *rest, *given])


def _given(argument: Any) -> str:
    text = _metavar(argument)
    if argument.nargs == -1 and "..." not in text and "[" not in text:
        text += " ..."
    return text if argument.required or text.startswith("[") else f"[{text}]"


def _help(command: Any) -> str:
    paragraphs = (command.help or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _summary(command: Any) -> str:
    return _help(command).split("\n\n")[0].split(". ")[0].rstrip(".:")


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f"`{_cell(_value(option))}`"
    default = "required" if option.required else _default(option)
    meaning = option.help or ""
    if option.envvar:
        meaning += f" Environment variable: `{option.envvar}`."
    return f"| {names} | {value} | {default} | {_cell(meaning)} |"


def _value(option: Any) -> str:
    return str(option.metavar or option.name.upper())


def _default(option: Any) -> str:
    if option.is_flag or option.default is None:
        return ""
    return f"`{option.default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
