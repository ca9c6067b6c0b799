"""Parsers of everything that people, or a damaged disk, may have written: one function of bytes each, with its seeds.

The contract of each parser: it returns, or it raises an RlhfError. Anything else is a crash.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from orchestrator.config import load, resolved
from orchestrator.config.key_index import PEERS, all_keys
from orchestrator.config.recipe import from_resolved
from orchestrator.data import read_examples, read_prompts
from orchestrator.data.formats import ACCEPTS, SPELLINGS
from orchestrator.driver import checkpoint
from orchestrator.errors import BadInput, RlhfError
from orchestrator.preflight.preflight import preflight
from orchestrator.rundir import ledger as ledgers
from orchestrator.rundir import manifest as manifest_file
from orchestrator.rundir.directory import RunDirectory

ROOT = Path(__file__).parents[2]
RECIPE = b"""name: base
model: {path: ./model}
data: {prompts: ./prompts.jsonl}
algorithm: {type: grpo, max_steps: 10}
reward: [{type: math}]
"""
PROMPT_ROWS = (
    {"prompt": "1+1=", "solution": "2", "level": 3},
    {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1="}], "solution": None},
    {
        "prompt": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
        ]
    },
)
EXAMPLE_ROWS = (
    {"prompt": "1+1=", "chosen": "2", "rejected": "3", "margin": 1.5},
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    {"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}],
     "rejected": [{"role": "assistant", "content": "c"}]},
    {"prompt": "1+1=", "completion": "2", "label": True},
    {"prompt": "1+1=", "completions": ["2", "3"], "ratings": [5, 1.5]},
    {"prompt": "1+1=", "completions": ["2", "3"], "ranks": [1, 2]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"text": "all of it"},
)  # fmt: skip
UNUSUAL = (b" ", b"\n", b"\r\n", b"\t", b"\0", b"\xff", b"\x85", b"\x0c", "é".encode(), "\u2028".encode(), b"9" * 400)
JSON_WORDS = (
    *rb'" \ { } [ ] , : null true NaN -Infinity 1e999 -0 0.1 \ud800 \u0000'.split(b" "),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"PAR1", b"1" * 5000, b"[" * 2000, b'{"":' * 500),
    *UNUSUAL,
)
YAML_WORDS = (
    *b"{ } [ ] &a *a << !!python/name:os.system !!binary !!set !!int !!float ? | > --- ... %YAML # ' = @ ` ~".split(
        b" "
    ),
    *rb'null no off .nan -.inf 1e-6 1e999 1_000 0x1f 0o17 1:30 2020-01-01 2020-99-99 " "\ud800" stages recipe'.split(
        b" "
    ),
    *(b": ", b"- ", b"\n  "),
    *UNUSUAL,
)


@dataclass(frozen=True, kw_only=True)
class Parser:
    """A parser under test. `parse` takes an input and an empty directory; the mutator inserts `words` into inputs."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes]
    parse: Callable[[bytes, Path], None]


def allowed(call: Callable[[], Any]) -> Any:
    """Return the result of `call`, or None if it refuses its input by an RlhfError with a message."""
    try:
        return call()
    except RlhfError as error:
        if not str(error):
            raise AssertionError("an error that says nothing") from error
        return None


# ------------------------------------------------------------------------------------------------ recipes


def _recipe(content: bytes, directory: Path) -> None:
    (directory / "recipe.yaml").write_bytes(content)
    loaded = allowed(lambda: load(directory / "recipe.yaml"))
    if loaded is not None:
        allowed(lambda: preflight(loaded))
    for config in loaded.stages if loaded else ():  # an accepted recipe can be written and read again
        assert from_resolved(json.loads(json.dumps(resolved(config))), "resolved.json") == config


def _recipes() -> Sequence[bytes]:
    return [RECIPE, *(path.read_bytes() for path in sorted(ROOT.glob("configs/**/*.yaml")))]


def _overrides(content: bytes, directory: Path) -> None:
    """Parse one override per line, decoded as the arguments of a command are."""
    (directory / "recipe.yaml").write_bytes(b"stages:\n- {" + b", ".join(RECIPE.splitlines()) + b"}\n")
    texts = content.decode("utf-8", "surrogateescape").split("\n")
    allowed(lambda: load(directory / "recipe.yaml", texts))


OVERRIDES = (
    b"seed=3",
    b"algorithm.beta=0.1\nreward.0.weight=2",
    b"stages.base.name=x",
    b"reward=[{type: math}]",
    b"model.path=/a=b",
)


# ------------------------------------------------------------------------------------------------ data


def _rows(path: Path) -> None:
    allowed(lambda: read_prompts(str(path)))
    for algorithm in ACCEPTS:
        allowed(lambda: read_examples(str(path), algorithm=algorithm))  # noqa: B023 - called at once


def _jsonl(content: bytes, directory: Path) -> None:
    (directory / "data.jsonl").write_bytes(content)
    _rows(directory / "data.jsonl")


def _jsonl_seeds() -> Sequence[bytes]:
    files = [PROMPT_ROWS, *((row, row) for row in EXAMPLE_ROWS)]
    return [b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows) for rows in files]


def _parquet(content: bytes, directory: Path) -> None:
    (directory / "data.parquet").write_bytes(content)
    _rows(directory / "data.parquet")


def _parquet_seeds() -> Sequence[bytes]:
    """Return files that are plain, compressed, dictionary-encoded or nested, and one with types that JSON lacks."""
    tables = [pa.Table.from_pylist([row, row]) for row in EXAMPLE_ROWS]
    strange = {
        "prompt": pa.array(["a", "b"]),
        "when": pa.array([0, 2**62], pa.timestamp("us")),
        "day": pa.array([0, 2**31 - 1], pa.date32()),
        "took": pa.array([1, 2**62], pa.duration("s")),
        "price": pa.array([Decimal("1.25"), None], pa.decimal128(20, 2)),
        "raw": pa.array([b"\xff", b""]),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "kind": pa.array(["x", "x"]).dictionary_encode(),
    }
    found = []
    for table, settings in [(t, {"compression": "none", "use_dictionary": False}) for t in tables] + [
        (pa.table(strange), {"compression": "none"}),
        (tables[0], {"compression": "snappy"}),
        (tables[0], {"compression": "zstd", "data_page_version": "2.0"}),
    ]:
        parquet.write_table(table, buffer := io.BytesIO(), **settings)
        found.append(buffer.getvalue())
    return found


# ------------------------------------------------------------------------------------------------ files of a run


def _ledger(content: bytes, directory: Path) -> None:
    """Parse the ledger as it is, and with every JSON object signed again, to get past the checksums."""
    for name, raw in (("raw", content), ("signed", _signed(content))):
        (path := directory / name).write_bytes(raw)
        allowed(lambda: _open_and_append(path))


def _open_and_append(path: Path) -> None:
    with ledgers.Ledger.open(path) as ledger:
        ledgers.account(ledger.records)
        ledger.append(ledgers.Fact.attempt, attempt=1, step=0)
        expected = list(ledger.records)
    assert ledgers.read_ledger(path)[0] == expected


def _signed(content: bytes) -> bytes:
    lines = content.split(b"\n")
    for i, line in enumerate(lines):
        try:
            body = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(body, dict):
            body.pop("sha256", None)
            lines[i] = json.dumps({**body, "sha256": ledgers._digest(body)}).encode()
    return b"\n".join(lines)


def _ledger_seeds() -> Sequence[bytes]:
    facts = [(ledgers.Fact.attempt, 0), *((fact, step) for step in (1, 2) for fact in ledgers.Fact)]
    records = [
        ledgers.Record(seq=i, attempt=1, step=step, fact=fact, details={"n": i}, time=1.5)
        for i, (fact, step) in enumerate(facts)
    ]
    return [b"", b"".join(record.line() for record in records), records[0].line()]


STATE = b"\n--- state.json\n"


def _manifest(content: bytes, directory: Path) -> None:
    """Parse a manifest and the state that follows the `STATE` separator, as they are and signed again."""
    manifest, _, state = content.partition(STATE)
    (step := directory / "step-3").mkdir()
    (directory / "outside").write_bytes(b"")
    for raw in (manifest, _signed_manifest(manifest, state)):
        (step / manifest_file.MANIFEST).write_bytes(raw)
        (step / "state.json").write_bytes(state)
        if (found := allowed(lambda: checkpoint.newest(directory))) is not None:
            assert found[1].next_step >= 0
            names = [(step / name).resolve() for name in json.loads(raw)["files"]]
            assert all(name.is_relative_to(step.resolve()) for name in names)


def _signed_manifest(manifest: bytes, state: bytes) -> bytes:
    """Return the manifest with the right size and digest of state.json, if it lists that file at all."""
    try:
        body = json.loads(manifest)
        body.pop("sha256", None)
        if "state.json" in body["files"]:
            digest = hashlib.sha256(state).hexdigest()
            body["files"]["state.json"] = {"bytes": len(state), "sha256": digest}
        return json.dumps({**body, "sha256": manifest_file._digest(body)}).encode()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return manifest


def _manifests() -> Sequence[bytes]:
    state = b'{"next_step": 3, "reference_version": 0}'
    body = {"schema": manifest_file.SCHEMA, "files": {"state.json": {"bytes": 0, "sha256": ""}}}
    unsigned = json.dumps(body).encode()
    outside = unsigned.replace(b"state.json", b"../outside")
    return [_signed_manifest(unsigned, state) + STATE + state, outside + STATE + state, unsigned]


def _run_name(content: bytes, directory: Path) -> None:
    """Check that a name is refused, or gives a directory directly under output_dir and touches nothing else."""
    name = content.decode("utf-8", "surrogateescape")
    (root := directory / "runs").mkdir()
    data = {"name": name, "output_dir": str(root), "model": {"path": "m"}, "data": {"prompts": "p.jsonl"},
            "algorithm": {"type": "grpo", "max_steps": 1}, "reward": [{"type": "math"}]}  # fmt: skip
    config = allowed(lambda: from_resolved(data, "here"))
    if config is not None:
        created = allowed(lambda: RunDirectory.create(config, "text"))
        assert created.path.parent == root
        assert created.path.is_dir()
    assert sorted(p.name for p in directory.iterdir()) == ["runs"]
    assert [p.name for p in root.iterdir()] == ([name] if config else [])
    shutil.rmtree(root)
    try:  # the same text as an argument of `rlhf resume`
        RunDirectory.open(Path(name))
    except BadInput:
        return
    raise AssertionError("an empty directory is no run")


NAMES = (
    b"arith",
    b"../x",
    b"/abs",
    b"a/b",
    b".",
    b"x" * 64,
    b"A-1.b_c",
    "é".encode(),
    b"a\nb",
    b"a\0b",
    b"~",
    b"~root",
    b"a" * 300,
)
NAME_WORDS = (
    b"..",
    b"/",
    b"\\",
    b"\0",
    b"\n",
    b"~",
    b" ",
    b"-",
    b".",
    b"\xff",
    "\u202e".encode(),
    "🙂".encode(),
    b"x" * 64,
    b"x" * 5000,
)

PARQUET_WORDS = (b"PAR1", b"ARROW:schema", b"ray.", b"\0" * 8, b"\xff" * 8)
MANIFEST_WORDS = (b'"state.json"', b'"../outside"', b'"files"', b'"schema"', STATE)
KEYS = tuple(key.encode() for key in sorted({*(part for key in all_keys() for part in key.split(".")), *PEERS}))
COLUMN_WORDS = tuple(
    f'"{word}"'.encode() for word in (*SPELLINGS, "role", "content", "user", "assistant", "prompt", "label")
)

PARSERS = (
    Parser(name="recipe", seeds=_recipes, words=YAML_WORDS + KEYS, parse=_recipe),
    Parser(name="overrides", seeds=lambda: OVERRIDES, words=YAML_WORDS + KEYS, parse=_overrides),
    Parser(name="jsonl", seeds=_jsonl_seeds, words=JSON_WORDS + COLUMN_WORDS, parse=_jsonl),
    Parser(name="parquet", seeds=_parquet_seeds, words=PARQUET_WORDS, parse=_parquet),
    Parser(name="ledger", seeds=_ledger_seeds, words=JSON_WORDS, parse=_ledger),
    Parser(name="manifest", seeds=_manifests, words=JSON_WORDS + MANIFEST_WORDS, parse=_manifest),
    Parser(name="run-name", seeds=lambda: NAMES, words=NAME_WORDS, parse=_run_name),
)
