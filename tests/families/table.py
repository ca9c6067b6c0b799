"""Judge every family of the installed transformers and write down what came of it:

    docs/families.md           the table, with the figures
    workers/families.json      which are refused, and which are read apart: what `rlhf validate` knows

    python -m tests.families.table [--jobs N] [FAMILY ...]

Each family is a process of its own. With names nothing is written. Fails when any family is wrong without a word.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, TABLE = ROOT / "docs" / "families.md", ROOT / "workers" / "families.json"
SECONDS = 900  # for one family
COLUMNS = ("float32", "bfloat16", "zero", "lora", "export")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    from tests.families.tiny import families

    names, started = given.names or families(), time.monotonic()
    with ThreadPoolExecutor(given.jobs) as pool:
        found = dict(zip(names, pool.map(one, names), strict=True))
    wrong = sorted(name for name, row in found.items() if row["wrong"])
    if not given.names:
        TABLE.write_text(json.dumps({n: known(row) for n, row in found.items() if row["rows"] != "-"}, indent=1) + "\n")
        PAGE.write_text(page(found, minutes=(time.monotonic() - started) / 60))
    print(f"{len(found)} families, {len(wrong)} wrong without a word: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def one(name: str) -> dict[str, Any]:
    """What a process of its own found of a family, told as it comes."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.families.of_one", name]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, json.JSONDecodeError, IndexError) as error:
        row = {"rows": "-", "why": f"no answer: {error}", "wrong": ["no answer"]}
    print(f"{name}: {row['rows']} {row['why']} {'; '.join(row['wrong'])}", flush=True)
    return row


def known(row: dict[str, Any]) -> dict[str, str]:
    return {"rows": row["rows"]} | ({"why": row["why"]} if row["why"] else {})


def page(found: dict[str, dict[str, Any]], minutes: float) -> str:
    counts = {kind: sum(row["rows"] == kind for row in found.values()) for kind in ("packed", "apart", "refused", "-")}
    lines = [
        HEAD.format(
            date=datetime.now(UTC).date(), minutes=minutes, total=len(found), **{**counts, "unbuilt": counts["-"]}
        )
    ]
    lines += [
        "| model type | rows | float32 | bfloat16 | ZeRO 0-3 | LoRA, merged | export |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in sorted(found.items()):
        if row["rows"] in ("packed", "apart"):
            figures = [row.get(column, "") for column in COLUMNS]
            lines.append(f"| `{name}` | {row['rows']} | {' | '.join(figures)} |")
    lines += ["", "## Read apart, and why", ""]
    lines += [f"- `{n}`: {row['why']}" for n, row in sorted(found.items()) if row["rows"] == "apart"]
    lines += ["", "## Refused, and why", ""]
    lines += [f"- `{n}`: {row['why']}" for n, row in sorted(found.items()) if row["rows"] == "refused"]
    lines += ["", "## Not judged: no small model of them runs on tokens alone", ""]
    lines += [f"- `{n}`: {row['why']}" for n, row in sorted(found.items()) if row["rows"] == "-"]
    return "\n".join(lines) + "\n"


HEAD = """# Families of models

Written by `make families` ({date}, {minutes:.0f} minutes on 2 cores): of {total} families of the installed transformers {packed} are
packed, {apart} are read apart, {refused} are refused, and of {unbuilt} no small model can be built here. Each is a random model of
two to four layers with what is special in the family switched on (windows of 6 tokens, chunks of 8, sinks, soft-caps, experts,
states), and 14 completions of 6 prompts of 1 to 81 tokens.

- **packed**: rows share a forward pass, completions their prompt. **apart**: each completion is a row of its own, filled up to
  the longest, so a prompt is computed once per completion; right, and slower. **refused**: `rlhf validate` says why.
- **float32**, **bfloat16**: log-probabilities at temperature 0.8 against plain transformers, one text at a time with `eager`
  attention: the largest difference in float32, the median in bfloat16 (nats), and how far the gradient is off, as a share of
  its length. In bfloat16 a token that rounding sends to another expert differs alone, and so do gradients of small experts.
- **ZeRO 0-3**: the same through DeepSpeed at stages 0, 1, 2 and 3, in both dtypes, log-probabilities and gradients: the worst
  in float32. One rank; gangs of two are in `tests/workers/test_deepspeed.py`.
- **LoRA, merged**: the merged export against the adapted module. **export**: the exported directory, loaded by transformers,
  against the module. The largest difference of log-probabilities.

Every rank checks its own model at load in the same way ([numerics.md](numerics.md)), so a family that is not here, or a config
that is, is refused then. Engines: a recipe that samples also needs vLLM to have the family
([operations.md](operations.md)). Not run on a GPU.
"""

if __name__ == "__main__":
    sys.exit(main())
