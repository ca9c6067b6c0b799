"""Files of a gang in a checkpoint, as a rank is told of them when it loads. Light at import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """Files of a gang in a checkpoint.

    Example: `Saved(files={"state/zero_pp_rank_1_….pt": {"bytes": 4096, "sha256": "9a12…", "rank": 1}})`.
    """

    files: Mapping[str, Mapping[str, Any]]  # bytes, sha256 and the rank that wrote it, by name
    prefix: str = ""  # name of the gang's directory in the storage of the run; empty: the run has none

    @property
    def num_ranks(self) -> int | None:
        """Number of ranks that wrote files; None in a checkpoint that names no ranks."""
        ranks = {file.get("rank") for file in self.files.values()}
        return None if None in ranks or not ranks else len(ranks)

    def of_rank(self, rank: int, num_ranks: int) -> Mapping[str, Mapping[str, Any]]:
        """Return the files that a rank of a gang of `num_ranks` needs.

        They are those that it wrote. If one rank has written the state of all, or the gang had another size, every rank
        needs all files.
        """
        if self.num_ranks != num_ranks:
            return self.files
        return {name: file for name, file in self.files.items() if file["rank"] == rank}
