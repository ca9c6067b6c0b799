"""Settings of several sources of rows in one run: shares, limits, and the objectives that they are reported as."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from workers.config import Count, Objective, PathText, Positive, Settings


class SourceConfig(Settings):
    """Source of rows, alone or one of several."""

    path: PathText  # local .jsonl or .parquet file, `datasets` folder, or name of a Hub dataset
    # name of the earlier stage of type generate whose data set is the source, in the place of path; not in eval_dataset
    from_stage: str | None = None
    # share of the rows that are trained on, relative to the weights of the other sources; None, in all of them: the
    # sources are one after the other, as in one file, so that each has the share of its size
    weight: Positive | None = None
    max_rows: Count | None = None  # number of rows taken, the first ones of the source; None: all
    # name under which the metrics of these rows are reported, which several sources may share; None: they are not
    # reported apart
    objective: Objective | None = None


Sources: TypeAlias = Annotated[tuple[PathText | SourceConfig, ...], Field(min_length=1)]
"""Several sources; a path alone has neither weight nor limit nor objective."""


def sources_of(given: str | SourceConfig | tuple[str | SourceConfig, ...] | None) -> tuple[SourceConfig, ...]:
    """Return the sources of a setting, in their order; empty: none is given.

    >>> [source.path for source in sources_of("a.jsonl")]
    ['a.jsonl']
    """
    several = () if given is None else given if isinstance(given, tuple) else (given,)
    return tuple(SourceConfig(path=source) if isinstance(source, str) else source for source in several)


def shares_of(sources: tuple[SourceConfig, ...]) -> tuple[float, ...] | None:
    """Return the share of each source in the rows of the run; None: they have no weights."""
    weights = [source.weight for source in sources if source.weight is not None]
    return tuple(weight / sum(weights) for weight in weights) if weights else None
