"""A user's Python function, with TRL's signature, in a process of its own."""

from __future__ import annotations

import signal
from typing import Any

from workers.config import FunctionRewardConfig
from workers.rewards.base import Completed, RewardError, checked, rows
from workers.rewards.function_process import Died, FunctionProcess, raised
from workers.types import Floats


class FunctionScorer:
    """Calls the function once per batch, with the dataset's columns as keyword lists. Async functions are awaited.

    A function that raises, hangs, leaks or dies ends the run with an error that says so: a reward is never guessed. It
    is asked a second time only where it cannot be to blame, when its process was killed from outside.
    """

    def __init__(self, config: FunctionRewardConfig) -> None:
        self._config = config
        self._process = self._started()
        self.name = self._process.name

    def score(self, completed: Completed) -> Floats:
        prompts = completed.prompts
        columns = sorted({name for p in prompts for name in p.columns})
        arguments: dict[str, Any] = {name: [p.columns.get(name) for p in prompts] for name in columns}
        arguments |= {
            "prompts": [p.text for p in prompts],
            "completions": list(completed.completions),
            "completion_ids": list(completed.completion_ids),
        }
        told = self._ask(arguments)
        if "raised" in told:
            limit = f" (its limit is memory_mib = {self._config.memory_mib})" if "MemoryError" in told["raised"] else ""
            raise raised(
                f"reward {self.name}", told, f"{limit}, on a batch of {len(prompts)} completions ({rows(prompts)})"
            )
        if changed := told.get("changed"):
            raise RewardError(
                f"reward {self.name} changed its argument `{changed[0]}`, which the rest of the recipe reads too; "
                "work on a copy"
            )
        return checked(self.name, told, prompts)

    def _ask(self, arguments: dict[str, Any]) -> Any:
        if not self._process.close.alive:  # an earlier batch ended it, and whoever asks again wants an answer
            self._process = self._started()
        try:
            return self._process.ask(arguments)
        except Died as death:
            if death.signal not in (signal.SIGKILL, signal.SIGTERM):
                raise
        self._process = self._started()
        return self._process.ask(arguments)

    def _started(self) -> FunctionProcess:
        config = self._config
        return FunctionProcess(config.function, timeout_s=config.timeout_s, memory_mib=config.memory_mib)
