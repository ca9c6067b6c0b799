"""Recommend a method from the data and the cluster: facts ──rules──► methods ──planner──► advice.

Pure arithmetic on the rows that `orchestrator.data` reads and on the planner's estimates; nothing heavy is imported.
"""
