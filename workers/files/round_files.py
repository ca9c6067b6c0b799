"""Files of a round: its pairs and scored groups, and pairs made again from the groups. Light at import.

groups.parquet ──paired──► pairs.parquet    pairs of the round's own samples
                           mixed.parquet    pairs mixed in, with the same columns; `rounds/N/ID` is the `prompt_id` of a
                                            pair of an earlier round
"""

from __future__ import annotations

from pathlib import Path

from workers.algorithms.pairs import pair_metrics, pairs_of
from workers.config import PairsConfig
from workers.files.groups_file import GROUPS, read_groups, write_groups
from workers.files.pairs_file import Decoder, write_pairs
from workers.given import batch_without_given, is_given
from workers.gold import sampled_batch
from workers.stats import Metrics
from workers.types import ScoredBatch, TrainBatch

MIXED = "mixed.parquet"  # name of the file of the pairs mixed in, beside that of the round's own


def write_round(
    path: Path, batch: TrainBatch, scored: ScoredBatch, decoder: Decoder, *, keep_groups: bool
) -> list[Path]:
    """Write the pairs of a round to `path`, if it has any, and its scored groups and the pairs mixed in beside them.

    Return the files.
    """
    written = list[Path]()
    if keep_groups:
        written.append(path.with_name(GROUPS))
        write_groups(written[-1], batch_without_given(scored), decoder)
    if not batch.num_rows:
        return written
    assert batch.sources is not None
    assert batch.margins is not None
    chosen, rejected = batch.sources[0::2], batch.sources[1::2]
    given = is_given(scored.experience)[chosen]
    for target, kept in ((path, ~given), (path.with_name(MIXED), given)):
        if kept.any():
            write_pairs(target, chosen[kept], rejected[kept], batch.margins[kept], scored, decoder)
            written.append(target)
    return written


def pair_again(groups: Path, output: Path, config: PairsConfig) -> Metrics:
    """Make pairs of stored groups, write them to `output`, and return their metrics, those of a round.

    With the settings of the run the pairs are those of the round. With `gold: never` stored gold answers are left out.
    Nothing is written if there is no pair.

    Raises:
        GroupsError: `groups` does not hold the scored groups of a round.
    """
    scored, texts = read_groups(groups)
    if config.gold == "never":
        scored = sampled_batch(scored)
    pairs, _ = pairs_of(scored, config)
    if len(pairs):
        write_pairs(output, pairs.chosen, pairs.rejected, pairs.margins, scored, texts)
    return pair_metrics(pairs, scored.experience, config)
