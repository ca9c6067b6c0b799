"""User's reward function with TRL's signature, in a process of its own."""

from __future__ import annotations

import signal
from typing import Any

from workers.config import FunctionRewardConfig
from workers.rewards.base import Completed, RewardError, rewards_of, rows
from workers.rewards.function_process import FunctionProcess, ProcessDied, raised_error
from workers.types import Floats


class FunctionScorer:
    """Calls the function once per batch, with the dataset's columns as keyword lists. Async functions are awaited.

    A function that raises an error, hangs, exceeds a limit or crashes stops the run with an error: a reward is never
    guessed. A batch is retried once only if the process was killed from outside.
    """

    def __init__(self, config: FunctionRewardConfig) -> None:
        self._config = config
        self._process = self._start()
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
        reply = self._call(arguments)
        if "raised" in reply:
            is_memory = "MemoryError" in reply["raised"]
            limit = f" (its limit is memory_mib = {self._config.memory_mib})" if is_memory else ""
            raise raised_error(
                f"reward {self.name}", reply, f"{limit}, on a batch of {len(prompts)} completions ({rows(prompts)})"
            )
        if changed := reply.get("changed"):
            raise RewardError(
                f"reward {self.name} changed its argument `{changed[0]}`, which other rewards read as well; "
                "work on a copy"
            )
        return rewards_of(self.name, reply, prompts)

    def _call(self, arguments: dict[str, Any]) -> Any:
        if not self._process.close.alive:  # an earlier batch ended the process, and this batch is a retry
            self._process = self._start()
        try:
            return self._process.call(arguments)
        except ProcessDied as death:
            if death.signal not in (signal.SIGKILL, signal.SIGTERM):
                raise
        self._process = self._start()
        return self._process.call(arguments)

    def _start(self) -> FunctionProcess:
        config = self._config
        return FunctionProcess(config.function, timeout_s=config.timeout_s, memory_mib=config.memory_mib)
