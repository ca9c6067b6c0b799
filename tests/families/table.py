"""Judge every family of the installed transformers and write the results:

    docs/families.md           the table, with the figures
    workers/families.json      the families that are refused or read apart, for `rlhf validate`

    tests/families/found.json  the data from which the other two are generated

    python -m tests.families.table [--jobs N] [FAMILY ...]

Each family runs in a process of its own. With names, only the rows of these families are updated. The command fails if
any family is silently wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, TABLE = ROOT / "docs" / "families.md", ROOT / "workers" / "families.json"
SECONDS = 900  # for one family
FOUND = Path(__file__).with_name("found.json")
PARTLY = {
    "lora": "Not with adapters (`model.lora`)",
    "bfloat16": "Only in float32",
    "zero3": "Not at ZeRO stage 3",
    "engine": "Not with vLLM",
    "engine_lora": "Not with adapters in vLLM",
    "engine_lora_cpu": "Not with adapters in vLLM's build for CPUs",
}
ENGINE = ("engine", "engine_lora", "engine_lora_cpu", "asked", "published")  # written by tests/families/engine.py
COLUMNS = ("float32", "bfloat16", "zero", "lora", "export")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Imported before processes are forked, so that no process repeats the imports.
    import transformers

    import workers.engines.deepspeed_engine  # noqa: F401
    from tests.families.tiny import families

    transformers.logging.set_verbosity_error()
    names = given.names or families()
    with multiprocessing.get_context("fork").Pool(given.jobs, maxtasksperchild=1) as pool:
        found = gathered(pool, names)
    wrong = sorted(name for name, row in found.items() if row["wrong"])
    before = json.loads(FOUND.read_text())
    engines = {name: {k: row[k] for k in ENGINE if k in row} for name, row in before.items()}
    write({**(before if given.names else {}), **{name: row | engines.get(name, {}) for name, row in found.items()}})
    print(f"{len(found)} families, {len(wrong)} silently wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def one(name: str) -> dict[str, Any]:
    """Return the row of a family. Runs in a forked process that has everything imported already."""
    import torch

    from tests.families.of_one import row_of

    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return row_of(name)


def gathered(pool: Any, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of all families, and print each as it arrives."""
    asked = {name: pool.apply_async(one, (name,)) for name in names}
    found: dict[str, dict[str, Any]] = {}
    for name, answer in asked.items():
        try:
            row = answer.get(SECONDS)
        except Exception as error:
            row = {"rows": "-", "why": f"no answer: {error!r}", "wrong": ["no answer"]}
        print(f"{name}: {row['rows']} {row['why']} {'; '.join(row['wrong'])}", flush=True)
        found[name] = row
    return found


def write(found: dict[str, dict[str, Any]]) -> None:
    """Write the results, and the page and the table that are generated from them."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT

    FOUND.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    families = {name: known(row) for name, row in sorted(found.items()) if row["rows"] != "-"}
    others = sorted({*CONFIG_MAPPING_NAMES} - {*CAUSAL} - {*IMAGE_TEXT} - {*found})
    unmeasured = sorted({*found} - {*families})
    told = {"families": families, "others": others, "unmeasured": unmeasured}
    TABLE.write_text(json.dumps(told, indent=1) + "\n")
    PAGE.write_text(page(found))


def known(row: dict[str, Any]) -> dict[str, str]:
    def refusal(column: str) -> str:
        kind, _, why = row.get(column, "").partition(": ")
        return why.removeprefix("model.lora: ").partition("; ")[0] if kind == "refused" else ""  # our error has a fix

    told = {"why": row["why"], "lora": refusal("lora"), "zero3": refusal("zero")}
    told["bfloat16"] = row.get("refused_bfloat16", "")
    told |= {key: row.get(key, "") for key in ENGINE[:3]}
    if told["engine_lora"]:
        told["engine_lora_cpu"] = ""  # implied by engine_lora
    return {"rows": row["rows"]} | {key: text for key, text in told.items() if text}


def page(found: dict[str, dict[str, Any]]) -> str:
    counts = {kind: sum(row["rows"] == kind for row in found.values()) for kind in ("packed", "apart", "refused", "-")}
    lines = [HEAD.format(date=datetime.now(UTC).date(), total=len(found), **{**counts, "unbuilt": counts["-"]})]
    lines += [
        "| model type | rows | float32 | bfloat16 | ZeRO | LoRA, merged | export | vLLM | published |",
        "|---|---|--:|--:|--:|--:|--:|---|--:|",
    ]
    for name, row in sorted(found.items()):
        if row["rows"] in ("packed", "apart"):
            figures = [row.get(column, "").partition(":")[0] for column in COLUMNS]
            figures += [served(row), row.get("published", "-").partition(":")[0]]
            lines.append(f"| `{name}` | {row['rows']} | {' | '.join(figures)} |")
    lines += ["", "## Apart: reasons", ""]
    lines += [f"- `{n}`: {row['why']}" for n, row in sorted(found.items()) if row["rows"] == "apart"]
    for key, title in PARTLY.items():
        lines += ["", f"## {title}: reasons", ""]
        lines += by_reason({n: why for n, row in sorted(found.items()) if (why := known(row).get(key))})
    lines += ["", "## Publication not measured: no engine on a CPU starts with the small model", ""]
    cells = {name: row.get("published", "").partition(": ") for name, row in sorted(found.items())}
    lines += by_reason({name: why for name, (kind, _, why) in cells.items() if kind == "-"})
    lines += ["", "## Refused: reasons", ""]
    lines += [f"- `{n}`: {row['why']}" for n, row in sorted(found.items()) if row["rows"] == "refused"]
    lines += ["", "## Not tested: no small model runs on tokens alone", ""]
    lines += [f"- `{n}`: {row['why']}" for n, row in sorted(found.items()) if row["rows"] == "-"]
    return "\n".join(lines) + "\n"


def by_reason(why: dict[str, str]) -> list[str]:
    """Return one line per reason, with the families to which it applies."""
    names: dict[str, list[str]] = {}
    for name, reason in why.items():
        names.setdefault(reason, []).append(f"`{name}`")
    return [f"- {', '.join(these)}: {reason}" for reason, these in names.items()]


def served(row: dict[str, Any]) -> str:
    """Return a word on whether vLLM samples from a family, or "-" if that was not measured."""
    if "asked" not in row:
        return "-"
    if "engine" in row:
        return "only adapters" if "engine_lora" not in row else "no"
    return "no adapters" if "engine_lora" in row else "yes"


HEAD = """# Model families

Written by `make families` ({date}; an hour on 2 cores). The installed transformers has {total} families: {packed} are
packed, {apart} are computed apart, {refused} are refused, and of {unbuilt} no small model can be built here. Each
family is tested on a random model of two to four layers with its special features switched on (windows of 6 tokens,
chunks of 8, sinks, soft-caps, experts, states). The test data are 14 completions of 6 prompts, in texts of 3 to 81
tokens.

- **packed**: rows share a forward pass, and completions share their prompt. **apart**: each completion is a separate
  row, padded to the longest one. The results are right, but slower, because a prompt is computed once per completion.
  **refused**: `rlhf validate` reports the reason.
- **float32**, **bfloat16**: two differences from plain transformers, which computes one text at a time with `eager`
  attention. The first is the difference of log-probabilities at temperature 0.8 in nats: the maximum in float32, the
  median in bfloat16. The second is the norm of the difference of gradients, relative to the norm of the gradient. The
  median is used because rounding in bfloat16 may route single tokens to another expert, and such tokens differ a lot.
- **ZeRO**: the same comparison through DeepSpeed, in both dtypes, at stages 0, 1, 2 and 3, on one rank. The figures are
  the worst of float32. `tests/workers/test_deepspeed.py` tests two ranks.
- **LoRA, merged**: largest difference of log-probabilities between the merged export and the module with adapters.
  **export**: largest difference of log-probabilities between the export, loaded by transformers, and the module.
- **vLLM**: whether vLLM samples from the family, according to its registry and the measurements. "no adapters": with
  full weights only. "only adapters": with adapters only, and on a GPU. "-": not determined, because vLLM needs
  torchvision for models that also read images.
- **published**: largest difference of log-probabilities between an engine on a CPU and the model, in four states: as
  started, after the same weights were published, after other weights were published, and after the first weights were
  published again. "-": not measured, or no engine on a CPU starts with the small model (listed below).

When a rank loads its model, it checks the model in the same way. A model that fails this check is refused at load.
The check covers families and configs that are not on this page as well. Nothing here was run on a GPU.
"""

if __name__ == "__main__":
    sys.exit(main())
