"""Which method to try first, from the data and the cluster: facts ──rules──► methods ──planner──► advice.

Pure arithmetic over what the readers of `orchestrator.data` read and what the planner says; nothing heavy is imported.
"""
