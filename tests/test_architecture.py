"""Rules of DESIGN.md checked on the source: allowed imports, light modules, no unpickling, valid shipped files."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from shipped import RECIPES, SUITES

from orchestrator.config import load, resolved
from orchestrator.config.recipe import from_resolved
from orchestrator.evaluation.suite import load_suite

ROOT = Path(__file__).parent.parent

# A module may import modules of its own line and of earlier lines. The longest matching prefix decides its line.
ORDER = [
    {"workers.stats"},
    {"workers.ragged", "workers.types", "workers.vocabulary", "workers.positions", "workers.families"},
    {"workers.progress"},
    {"workers.storage"},
    {"workers.conversation"},
    {"workers.codec"},
    {"workers.spans"},
    {"workers.config"},
    {"workers.repetition", "workers.near_duplicates", "workers.given", "workers.gold", "workers.votes"},
    {"workers.packing"},
    {"workers.scoring"},
    {"workers.margins"},
    {"workers.step_inputs", "workers.objectives"},
    {"workers.weights", "workers.segment"},
    {"workers.algorithms"},
    {"workers.engines"},
    {"workers.files"},
    {"workers.sender"},
    {"workers.mixing"},
    {"workers.updates"},
    {"workers.encoder"},
    {"workers.chat_endpoint"},
    {"workers.judging"},
    {"workers.rewards"},
    {"workers.rollout", "workers.reference", "workers.reward", "workers.learner", "workers.writer"},
    {"orchestrator.errors"},
    {"orchestrator.terminal", "orchestrator.disk", "orchestrator.limits", "orchestrator.signals"},
    {"orchestrator.data"},
    {"orchestrator.config"},
    {"orchestrator.preflight"},
    {"orchestrator.cluster"},
    {"orchestrator.rundir"},
    {"orchestrator.pipeline"},
    {"orchestrator.monitor"},
    {"orchestrator.evaluation"},
    {"orchestrator.generation"},
    {"orchestrator.labelling"},
    {"orchestrator.report"},
    {"orchestrator.audit"},
    {"orchestrator.plan"},
    {"orchestrator.advise"},
    {"orchestrator.driver"},
    {"orchestrator.compare"},
    {"orchestrator.launch"},
    {"orchestrator.cli"},
]

ONE_ADDRESS = {
    "vllm": "workers/engines/vllm_",
    "deepspeed": "workers/engines/deepspeed_engine.py",
    "transformers": "workers/engines/hf_",
    "peft": "workers/engines/lora.py",
    "ray": "orchestrator/cluster/",
    "obstore": "workers/storage.py",
    "openai": "workers/chat_endpoint.py",
    "rensa": "orchestrator/data/minhash.py",
    "krippendorff": "orchestrator/audit/agreement.py",
    "sklearn": "orchestrator/audit/small_model.py",
    "scipy": "orchestrator/audit/small_model.py",
    "py3langid": "orchestrator/generation/filters.py",
}

LIGHT = (
    "orchestrator.advise",
    "orchestrator.audit",
    "orchestrator.cli",
    "orchestrator.compare",
    "orchestrator.config",
    "orchestrator.data",
    "orchestrator.cluster.turn",
    "orchestrator.driver.door",
    "orchestrator.driver.resume_overrides",
    "orchestrator.driver.supervise",
    "orchestrator.errors",
    "orchestrator.evaluation.agreement",
    "orchestrator.evaluation.agreement_show",
    "orchestrator.evaluation.answer",
    "orchestrator.evaluation.best_round",
    "orchestrator.evaluation.figures",
    "orchestrator.evaluation.judge",
    "orchestrator.evaluation.judge_file",
    "orchestrator.evaluation.judge_labels",
    "orchestrator.evaluation.models",
    "orchestrator.evaluation.result",
    "orchestrator.evaluation.rows",
    "orchestrator.evaluation.show",
    "orchestrator.evaluation.statistics",
    "orchestrator.evaluation.suite",
    "orchestrator.generation",
    "orchestrator.labelling",
    "orchestrator.launch",
    "orchestrator.monitor",
    "orchestrator.plan",
    "orchestrator.preflight",
    "orchestrator.report",
    "orchestrator.rundir",
    "workers.algorithms.pairs",
    "workers.codec",
    "workers.config",
    "workers.conversation",
    "workers.encoder",
    "workers.families",
    "workers.files.round_files",
    "workers.learner",
    "workers.reference",
    "workers.repetition",
    "workers.reward",
    "workers.rollout",
    "workers.types",
    "workers.writer",
)
HEAVY = (
    "torch", "matplotlib", "jinja2", "ray", "vllm", "deepspeed", "transformers", "datasets", "wandb", "peft",
    "rensa", "krippendorff", "sklearn", "scipy",
)  # fmt: skip

UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for package in ("workers", "orchestrator") for p in (ROOT / package).rglob("*.py")}


@cache
def trees() -> dict[str, ast.Module]:
    """Return the syntax tree of every module, by its name."""
    return {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> Iterator[str]:
    """Yield every name that a module imports, also inside functions.

    For `from a import b`, yield `a.b` if that is a module of this repository, else `a`.
    """
    for node in ast.walk(trees()[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{name} has a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [i for i in inner if i in MODULES]
            yield from modules
            if len(modules) < len(inner):
                yield node.module


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def line_of(name: str) -> int:
    """Return the index of a module's line in ORDER, or -1 for the two root packages."""
    found = [(len(entry), i) for i, line in enumerate(ORDER) for entry in line if is_in(name, entry)]
    if not found and name in ("workers", "orchestrator"):
        return -1
    assert found, f"{name} has no place in ORDER yet"
    return max(found)[1]


def test_imports_only_point_upward() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name in MODULES
        for imported in imports(name)
        if imported in MODULES and line_of(imported) > line_of(name)
    ]
    assert wrong == []


def test_workers_import_neither_orchestrator_nor_ray() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name in MODULES
        if is_in(name, "workers")
        for imported in imports(name)
        if is_in(imported, "orchestrator") or is_in(imported, "ray")
    ]
    assert wrong == []


@pytest.mark.parametrize("library", ONE_ADDRESS)
def test_a_third_party_library_has_one_address(library: str) -> None:
    users = {str(MODULES[name].relative_to(ROOT)) for name in MODULES for i in imports(name) if is_in(i, library)}
    assert users, f"nothing imports {library}: the rule has lost its object"
    assert [user for user in sorted(users) if not user.startswith(ONE_ADDRESS[library])] == []


def test_the_light_half_imports_nothing_heavy() -> None:
    light = sorted(name for name in MODULES if any(is_in(name, package) for package in LIGHT))
    assert len(light) > len(LIGHT)
    script = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    if heavy := sorted({set(HEAVY)!r} & set(sys.modules)):\n"
        "        sys.exit(f'{name} imports {heavy}')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_nothing_evaluates_or_unpickles_what_it_was_sent() -> None:
    calls = [
        f"{name}:{node.lineno} calls {node.func.id}"
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
    ]
    unpickled = [f"{name} imports {i}" for name in MODULES for i in imports(name) if i.split(".")[0] in UNPICKLERS]
    assert calls + unpickled == []


def test_insecure_serialization_is_only_ever_looked_up() -> None:
    """Check that we only read the variable with which vLLM falls back to pickle (to refuse it), and never set it."""
    variable = "VLLM_ALLOW_INSECURE_SERIALIZATION"
    mentions, lookups = 0, 0
    for tree in trees().values():
        for node in ast.walk(tree):
            mentions += isinstance(node, ast.Constant) and node.value == variable
            lookups += isinstance(node, ast.Call) and ast.unparse(node).startswith(f"os.environ.get('{variable}'")
    assert mentions == lookups > 0
    others = [p for pattern in ("configs/**/*", "deploy/**/*", "Makefile", ".ci/*") for p in ROOT.glob(pattern)]
    assert [str(p) for p in others if p.is_file() and variable in p.read_text("utf-8", "replace")] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_validates(path: Path) -> None:
    for stage in load(path).stages:
        assert from_resolved(resolved(stage), "resolved.json") == stage


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_suite_validates(path: Path) -> None:
    assert load_suite(path).source == path
