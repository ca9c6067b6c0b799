"""Seeds of completions: one for each, and stable for a prompt that occurs once."""

from __future__ import annotations

from workers.rollout import completion_seed, seeds


def test_a_prompt_that_comes_again_gets_other_seeds() -> None:
    found = seeds(7, ["a", "b", "a"], num_generations=2, version=3)
    own = [[completion_seed(7, id, sample, 3) for sample in (0, 1)] for id in ("a", "b")]
    assert found[:2] == own
    assert found[2] == [completion_seed(7, "a", sample, 3) for sample in (2, 3)]
    assert len({seed for group in found for seed in group}) == 6


def test_a_seed_never_changes() -> None:
    """Check the first 63 bits of BLAKE2b of 0/p.jsonl:1/0/0: a change would break resuming older runs."""
    assert completion_seed(0, "p.jsonl:1", 0, 0) == 2613144498831103627
