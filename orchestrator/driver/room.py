"""Waits of an attempt: for a stage that another driver runs, and for room on the cluster. A stop ends both at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.cluster.turn import Changes
from orchestrator.driver.door import held_text
from orchestrator.monitor.monitor import Monitor
from orchestrator.signals import StopRequest


def wait_for_stage(name: str, stage: tuple[int, int], stop: StopRequest) -> Callable[[str], None] | None:
    """Return the function that is called with the name of the process that runs a stage, while it does.

    None for the last stage of a recipe, which is the run itself: it is refused instead. `stage`: its number, and the
    number of stages.
    """
    if stage[0] == stage[1]:
        return None
    changes = Changes(print)

    def on_wait(holder: str) -> None:
        changes(held_text(name, holder))
        stop.poll()

    return on_wait


def wait_for_room(
    roles: Sequence[str], monitor: Monitor, stop: StopRequest, placed: Callable[[], object]
) -> Callable[[str], None]:
    """Return the function that `Cluster.spawn` calls while it waits. `placed` is called when it no longer does."""
    shown: list[str] = []

    def on_wait(text: str) -> None:
        if shown[-1:] != [text]:
            shown[:] = [text]
            monitor.phase("driver", text)
        if not text:
            placed()
            for role in roles:
                monitor.phase(role, "loading")
        stop.poll()

    return on_wait
