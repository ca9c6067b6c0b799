"""What a run tells about itself while it runs: a file, a console, and services that are never waited for.

driver ──► Monitor.start · phase · step · note · close ──► every sink
"""

from orchestrator.monitor.monitor import Monitor, Outcome, RunInfo, Sink, open_monitor

__all__ = ["Monitor", "Outcome", "RunInfo", "Sink", "open_monitor"]
