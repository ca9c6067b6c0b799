"""docs/bad_input.md: every class of bad input, and the tests that show what is said of it.

    python tests/orchestrator/bad_input.py        (or `make bad-input`)

A test belongs to a class when its name, or the name of one of its cases, has the number: `test_b63_…`, `b33-twenty-…`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "bad_input.md"
NUMBERED = re.compile(r"\bb(\d\d)[-_](?=[a-z])|\btest_((?:b\d\d_)+)")

CATALOGUE: Mapping[str, Mapping[int, str]] = {
    "Recipe": {
        1: "misspelt key",
        2: "key at the wrong level",
        3: "key given twice",
        4: "`1e-6` is text to YAML",
        5: "`no` or `off` is a boolean to YAML",
        6: "beta below 0, 0, NaN, infinite",
        7: "learning rate 0, or above 1",
        8: "groups of one completion",
        9: "a batch that cannot be cut as asked",
        10: "clip range 0, gamma or lambda not a share",
        11: "lengths that do not go together",
        12: "no model, config or weights; a Git LFS pointer",
        13: "a tokenizer that is another model's",
        14: "no end of sequence; an end that is also padding",
        15: "conversations without a chat template",
        16: "a reward model whose head has the wrong size",
        17: "a reference of another architecture",
        18: "more GPUs or CPUs than the cluster has",
        19: "heads that cannot be shared out among GPUs",
        20: "a ZeRO stage that does not fit into memory",
        21: "a run's name that would leave its directory",
        22: "a directory of another config",
        23: "resume without a checkpoint",
        24: "nothing would ever be saved",
        25: "seed below 0",
        26: "unknown algorithm, loss or reward",
        27: "a reward URL that is none, or holds credentials",
        28: "a secret in a recipe",
        29: "settings that exclude one another",
        30: "a list, nothing, binary, too large, an alias bomb",
    },
    "Data": {
        31: "no rows",
        32: "missing columns",
        33: "chosen equals rejected",
        34: "empty text",
        35: "not text",
        36: "a line of 10 MB, of 1 GB",
        37: "prompts that are too long",
        38: "pairs that are equal once they are cut",
        39: "not UTF-8: BOM, UTF-16, surrogates, NUL",
        40: "repeated pairs",
        41: "pairs that contradict one another",
        42: "held-out prompts that are trained on",
        43: "parquet: schema, footer, types that run code",
        44: "JSON Lines that are none",
        45: "NaN, keys given twice, huge numbers, deep nesting",
        46: "roles in the wrong order",
        47: "special tokens in a text",
        48: "compressed; a decompression bomb",
        49: "not a file, or one that cannot be read",
        50: "fewer rows than a batch",
    },
    "Reward function": {
        51: "raises, exits, crashes the process",
        52: "returns what is no number",
        53: "returns too few or too many",
        54: "hangs, forks, floods, leaks",
        55: "cannot be imported or called",
        56: "changes its arguments",
        57: "the same reward for everything",
    },
    "Command line and cluster": {
        58: "unknown command or option, one given twice",
        59: "no cluster, wrong address, wrong token",
        60: "another version of Ray or Python on the cluster",
        61: "a job that is unknown or has ended",
        62: "output closed, no terminal, narrow, ASCII only",
        63: "nowhere to write, no HOME",
    },
}
NOT_SHOWN: Mapping[int, str] = {
    27: "judges are what is asked by URL; credentials in any URL are redacted (`tests/orchestrator/test_errors.py`)",
}
ELSEWHERE: Mapping[int, tuple[str, ...]] = {
    # tests whose names say something else
    51: ("tests/stack/test_failures.py::test_a_reward_function_that_raises_ends_the_run_with_its_own_traceback",),
    52: ("tests/workers/test_rewards.py::test_an_answer_that_cannot_be_trusted_names_the_row",),
    53: ("tests/workers/test_rewards.py::test_an_answer_that_cannot_be_trusted_names_the_row",),
    57: (
        "tests/orchestrator/driver/test_recorder.py::test_the_end_of_a_run_tells_the_share_of_turns_that_learned_nothing",
    ),
    18: ("tests/stack/test_failures.py::test_a_plan_that_asks_for_more_gpus_than_there_are_names_the_roles",),
    23: ("tests/orchestrator/driver/test_checkpoint.py::test_with_nothing_to_go_on_from_it_says_what_it_found",),
}
NOTES: Mapping[int, str] = {
    13: "a reward model reads text with its own tokenizer, so that one may differ",
    14: "nothing is padded, so an end that is also padding is learned like another",
    17: "cannot be written: the reference is the model that the run starts from, or an earlier policy",
    18: "exit code 3: it takes a cluster to know",
    25: "there is always a seed: 0 where none is given",
    33: "`data.equal_pairs: drop` leaves them out and counts them",
    37: "counted with their rows before the run, and as `data/dropped` in every step; refused when it is all of them",
    38: "counted; refused when it is all of them",
    40: "counted, with the rows",
    41: "counted, with both rows",
    42: "counted, with the rows",
    47: "`data.special_tokens`: keep (counted), drop or fail",
    60: "of Ray; a client and a cluster of different Python is refused by Ray itself",
}


def shown_by() -> dict[int, list[str]]:
    """Class → where its tests are: `file::name`, in the order of the files."""
    found: dict[int, list[str]] = defaultdict(list)
    for file in sorted((ROOT / "tests").glob("**/test_*.py")):
        path = file.relative_to(ROOT).as_posix()
        for line in file.read_text().splitlines():
            for match in NUMBERED.finditer(line):
                name = re.match(r"[\w-]+", line[match.start() :])
                assert name is not None
                for number in re.findall(r"b(\d\d)", match[0]):
                    found[int(number)].append(f"{path}::{name[0]}")
    for number, others in ELSEWHERE.items():
        found[number] += others
    return {number: list(dict.fromkeys(where)) for number, where in found.items()}


def page() -> str:
    found = shown_by()
    lines = [
        _HEAD.format(shown=sum(n in found for g in CATALOGUE.values() for n in g), cases=sum(map(len, found.values())))
    ]
    for title, classes in CATALOGUE.items():
        lines += [f"## {title}\n", "| | bad input | shown by | |", "|---|---|---|---|"]
        for number, what in classes.items():
            note = NOTES.get(number, "") if number in found else NOT_SHOWN.get(number, "")
            lines.append(f"| B{number} | {what} | {_shown(found.get(number, []))} | {note} |")
        lines.append("")
    return "\n".join(lines)


def _shown(where: list[str]) -> str:
    by_file: dict[str, list[str]] = defaultdict(list)
    for test in where:
        file, _, name = test.partition("::")
        by_file[file].append(name)
    return "; ".join(f"{Path(file).name}: {', '.join(f'`{n}`' for n in names)}" for file, names in by_file.items())


_HEAD = """# Bad input

Written by `make bad-input` from the names of the tests.

What is wrong is said before any actor starts, all of it at once, each with what, where, why and the fix, without a
traceback; the exit code is 2 where nothing else is noted. The texts are kept word for word in `tests/golden/errors/`,
in files of the same names. What is no error but worth knowing is counted, with its rows: `rlhf validate` shows it as
a `note`, and a run says it once when it begins.

{shown} of 63 classes are shown by {cases} tests and cases.
"""


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"wrote {PAGE.relative_to(ROOT)}\n")
