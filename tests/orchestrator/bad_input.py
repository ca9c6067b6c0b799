"""Write docs/evidence/bad_input.md: every class of bad input, and the tests that show its error text.

    python tests/orchestrator/bad_input.py        (or `make bad-input`)

A test belongs to a class if its name, or the name of one of its cases, has the number: `test_b63_…`, `b33-twenty-…`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "evidence" / "bad_input.md"
NUMBERED = re.compile(r"\bb(\d\d)[-_](?=[a-z])|\btest_((?:b\d\d_)+)")

CATALOGUE: Mapping[str, Mapping[int, str]] = {
    "Recipe": {
        1: "misspelt key",
        2: "key on the wrong level",
        3: "duplicate key",
        4: "`1e-6` is text to YAML",
        5: "`no` or `off` is a boolean to YAML",
        6: "beta below 0, 0, NaN, infinite",
        7: "learning rate 0, or above 1",
        8: "groups of one completion",
        9: "batch that cannot be split as requested",
        10: "clip range 0, gamma or lambda outside of 0 to 1",
        11: "contradictory lengths",
        12: "no model, config or weights; a Git LFS pointer",
        13: "tokenizer of another model",
        14: "no end-of-sequence token; an end-of-sequence token that is also padding",
        15: "conversations without a chat template",
        16: "reward model whose head has the wrong size",
        17: "reference of another architecture",
        18: "more GPUs or CPUs than the cluster has",
        19: "attention heads that cannot be split across GPUs",
        20: "ZeRO stage that does not fit into memory",
        21: "run name that leads out of the output directory",
        22: "run directory of another config",
        23: "resume without a checkpoint",
        24: "run that would never save a checkpoint",
        25: "seed below 0",
        26: "unknown algorithm, loss or reward",
        27: "reward URL that is invalid or contains credentials",
        28: "secret in a recipe",
        29: "mutually exclusive settings",
        30: "recipe that is a list, empty, binary, too large, or an alias bomb",
    },
    "Data": {
        31: "no rows",
        32: "missing columns",
        33: "chosen equals rejected",
        34: "empty text",
        35: "not text",
        36: "lines of 10 MB and of 1 GB",
        37: "prompts that are too long",
        38: "pairs that are equal after truncation",
        39: "not UTF-8: BOM, UTF-16, surrogates, NUL",
        40: "repeated pairs",
        41: "contradictory pairs",
        42: "held-out prompts that are also in the training data",
        43: "parquet: schema, footer, types that execute code",
        44: "files that are not JSON Lines",
        45: "NaN, duplicate keys, huge numbers, deep nesting",
        46: "roles in the wrong order",
        47: "special tokens in the text",
        48: "compressed file; decompression bomb",
        49: "path that is not a file; file that cannot be read",
        50: "fewer rows than a batch",
    },
    "Reward function": {
        51: "raises, exits, crashes the process",
        52: "returns something that is not a number",
        53: "returns too few or too many rewards",
        54: "hangs, forks, floods its output, leaks memory",
        55: "cannot be imported or called",
        56: "changes its arguments",
        57: "the same reward for everything",
    },
    "Command line and cluster": {
        58: "unknown command or option; option or override given twice",
        59: "no cluster, wrong address, wrong token",
        60: "another version of Ray or Python on the cluster",
        61: "job that is unknown or has ended",
        62: "closed output; no terminal; narrow or ASCII-only terminal",
        63: "output that cannot be written; HOME not set",
    },
}
NOT_SHOWN: Mapping[int, str] = {
    27: "only judges have a URL; credentials in any URL are redacted (`tests/orchestrator/test_errors.py`)",
}
ELSEWHERE: Mapping[int, tuple[str, ...]] = {
    # tests without the number of the class in their name
    51: ("tests/stack/test_failures.py::test_a_reward_function_that_raises_ends_the_run_with_its_own_traceback",),
    52: ("tests/workers/test_rewards.py::test_an_answer_that_cannot_be_trusted_names_the_row",),
    53: ("tests/workers/test_rewards.py::test_an_answer_that_cannot_be_trusted_names_the_row",),
    57: (
        "tests/orchestrator/driver/test_recorder.py::test_the_end_of_a_run_reports_the_share_of_steps_without_an_update",
    ),
    18: ("tests/stack/test_failures.py::test_a_plan_that_asks_for_more_gpus_than_there_are_names_the_roles",),
    23: ("tests/orchestrator/driver/test_checkpoint.py::test_without_a_checkpoint_the_error_lists_what_was_found",),
}
NOTES: Mapping[int, str] = {
    13: "the tokenizer of a reward model may differ, because it reads text",
    14: "rows are not padded, so an end-of-sequence token that is also padding is trained on like any other token",
    17: "no setting allows it: the reference is the model that the run starts from, or an earlier policy",
    18: "exit code 3, because only the cluster knows its resources",
    25: "there is always a seed: 0 if none is given",
    33: "`data.equal_pairs: drop` drops and counts them",
    37: "reported with their rows before the run, and as `data/dropped` in every step; refused if all are too long",
    38: "reported with their rows; refused if all pairs become equal",
    40: "reported with their rows",
    41: "reported with both rows",
    42: "reported with their rows",
    47: "`data.special_tokens`: keep (reported), drop or fail",
    60: "tested for another Ray version; Ray itself refuses another Python version",
}


def shown_by() -> dict[int, list[str]]:
    """Return the tests of each class as `file::name`, in the order of the files."""
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
        lines += [f"## {title}\n", "| | bad input | tests | remarks |", "|---|---|---|---|"]
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

Generated by `make bad-input` from the names of the tests.

All problems are reported at once, before any actor starts, and without a traceback. Each error text says what is wrong,
where, why, and how to fix it. The exit code is 2 unless noted otherwise. The exact texts are in `tests/golden/errors/`,
in files named after the test cases. Findings that are not errors are reported with their rows, as a `note` by
`rlhf validate` and once at the start of a run.

{shown} of 63 classes are covered by {cases} tests and cases.
"""


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"wrote {PAGE.relative_to(ROOT)}\n")
