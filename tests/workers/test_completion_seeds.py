"""The seeds of completions: each its own, and those of a prompt that comes once as they always were."""

from __future__ import annotations

from workers.rollout import completion_seed, seeds


def test_a_prompt_that_comes_again_gets_other_seeds() -> None:
    found = seeds(7, ["a", "b", "a"], num_generations=2, version=3)
    own = [[completion_seed(7, id, sample, 3) for sample in (0, 1)] for id in ("a", "b")]
    assert found[:2] == own
    assert found[2] == [completion_seed(7, "a", sample, 3) for sample in (2, 3)]
    assert len({seed for group in found for seed in group}) == 6


def test_a_seed_never_changes() -> None:
    """A completion that was lost last year is drawn again, equal: the first 63 bits of BLAKE2b of 0/p.jsonl:1/0/0."""
    assert completion_seed(0, "p.jsonl:1", 0, 0) == 2613144498831103627
