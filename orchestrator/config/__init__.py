"""What a run is told to do: recipe files, overrides, and the frozen `RunConfig` that comes of them.

recipe.yaml ──document──► plain data with places ──overrides──► ──RunConfig──► Recipe (frozen stages)
                                every problem on the way, with file:line, in one BadInput
"""

from orchestrator.config.recipe import Recipe, load, resolved
from orchestrator.config.run import ClusterConfig, DataConfig, RunConfig

__all__ = ["ClusterConfig", "DataConfig", "Recipe", "RunConfig", "load", "resolved"]
