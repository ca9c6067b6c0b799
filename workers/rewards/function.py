"""A user's Python function, with TRL's signature."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from workers.rewards.base import Completed, RewardError, checked
from workers.types import Floats

SIGNATURE = "reward(prompts, completions, completion_ids, **columns) -> list[float | None]"


class FunctionScorer:
    """Calls the function once per batch, with the dataset's columns as keyword lists. Async functions are awaited."""

    def __init__(self, target: str) -> None:
        self._function = load(target)
        self.name = self._function.__name__

    def score(self, completed: Completed) -> Floats:
        prompts = completed.prompts
        columns = sorted({name for p in prompts for name in p.columns})
        arguments: dict[str, Any] = {name: [p.columns.get(name) for p in prompts] for name in columns}
        arguments |= {
            "prompts": [p.text for p in prompts],
            "completions": list(completed.completions),
            "completion_ids": list(completed.completion_ids),
        }
        try:
            answer = self._function(**arguments)
            if inspect.isawaitable(answer):
                answer = asyncio.run(_awaited(answer))
        except Exception as error:
            raise RewardError(f"reward {self.name} raised {type(error).__name__}: {error}") from error
        return checked(self.name, answer, prompts)


async def _awaited(answer: Any) -> Any:
    return await answer


def load(target: str) -> Callable[..., Any]:
    """The function at `path/to/file.py:name` or `package.module:name`; raises RewardError when there is none."""
    place, _, name = target.rpartition(":")
    if not place:
        raise RewardError(
            f"reward function {target!r} names no function; write path/to/file.py:name or package.module:name"
        )
    module = _module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise RewardError(f"{place} has no function {name!r}; a reward function looks like {SIGNATURE}")
    return cast("Callable[..., Any]", function)


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise RewardError(f"reward function file {path} does not exist")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
