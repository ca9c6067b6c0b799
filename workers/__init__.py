"""Code that runs in worker processes. Imports neither `orchestrator` nor `ray`."""
