"""Reports of a run in progress: a metrics file, a console, and services that never block the run.

driver ──► Monitor.start · phase · advance · update · step · note · close ──► every sink
"""

from orchestrator.monitor.base import Outcome, RunInfo, Sink
from orchestrator.monitor.monitor import Monitor, open_monitor

__all__ = ["Monitor", "Outcome", "RunInfo", "Sink", "open_monitor"]
