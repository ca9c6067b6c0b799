"""Recipe files, overrides, and the frozen `RunConfig` made of them.

recipe.yaml ──document──► plain data with locations ──overrides──► ──RunConfig──► Recipe (frozen stages)

All problems on the way are collected, each with file:line, and raised as one BadInput.
"""

from orchestrator.config.recipe import Recipe, load, resolved
from orchestrator.config.run import ClusterConfig, DataConfig, RunConfig

__all__ = ["ClusterConfig", "DataConfig", "Recipe", "RunConfig", "load", "resolved"]
