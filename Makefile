# Everything a fresh clone needs is a target here; `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE # tests start hundreds of processes: modules are compiled once
.PHONY: help setup quickstart docs test test-quick test-faults test-cluster fuzz bad-input check bench back-test table alarms families parity \
    proof audit refusals streaming frontier objectives gpu-check golden golden-check kuberay lock clean

BIN := .venv/bin
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps
TEST_PARALLEL := python -m pytest -n $(or $(JOBS),2) --dist loadfile
COMPILE := uv pip compile pyproject.toml --python-platform x86_64-manylinux_2_31 --generate-hashes --no-emit-index-url \
    --no-header --quiet
COMPILE_GPU = $(COMPILE) requirements/gpu.in --extra gpu --extra math --extra storage --extra data
CPU_INDEX := https://download.pytorch.org/whl/cpu

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: .venv/project.stamp ## create .venv with the locked CPU stack (2-3 minutes, 3 GB)

quickstart: setup ## train a tiny base model, then three rounds of iterative DPO on it
	@$(IN_VENV) python configs/quickstart/task.py
	@$(IN_VENV) rlhf run configs/quickstart/iterative_dpo.yaml

docs: .venv-docs/lock.stamp ## build the documentation in site/, in an environment of its own
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict
	@echo "docs: done; open site/index.html"

test: setup ## run all tests: those in one process, then those on real DeepSpeed ranks, Ray and vLLM (15 minutes)
	@$(IN_VENV) $(TEST_PARALLEL) -m 'not stack and not long'
	@$(IN_VENV) $(TEST_PARALLEL) -m 'stack and not long'

test-quick: setup ## run the tests that are over soon and start neither Ray nor vLLM nor DeepSpeed ranks (3 minutes)
	@$(IN_VENV) $(TEST_PARALLEL) -m 'not stack and not slow and not long'

test-faults: setup ## kill, stop, starve and damage runs, in one process and on real Ray: docs/evidence/reliability.md (hours)
	@$(IN_VENV) python -m pytest -m 'long and not cluster'
	@$(IN_VENV) python tests/faults/report.py --anew

test-cluster: setup ## run jobs on a real Slurm, build images, ask a real Prometheus; takes root and Debian's packages (an hour)
	@$(IN_VENV) python -m pytest -m cluster

fuzz: setup ## fuzz every parser for MINUTES=20 each, one after another: docs/evidence/fuzzing.md
	@$(IN_VENV) python tests/fuzz/fuzz.py --minutes $(or $(MINUTES),20)

bad-input: setup ## write docs/evidence/bad_input.md from the names of the tests
	@$(IN_VENV) python tests/orchestrator/bad_input.py

check: setup ## lint, format, types, the rules of the house, and every command and link in README and docs
	@$(IN_VENV) ruff check
	@$(IN_VENV) ruff format --check
	@$(IN_VENV) mypy
	@$(IN_VENV) python -m pytest -q tests/test_house.py tests/test_architecture.py tests/docs

bench: setup ## measure side by side with TRL
	@$(IN_VENV) TORCH_CPU_INDEX=$(CPU_INDEX) python -m benchmarks.run

back-test: setup ## compare the planner with published runs: docs/evidence/back_test.md
	@$(IN_VENV) python -m benchmarks.back_test

table: setup ## every quickstart recipe over three seeds: docs/evidence/learning.md and the table in the README (hours)
	@$(IN_VENV) python -m benchmarks.learning

alarms: setup ## plant faults in small runs and see which alarms ring: docs/evidence/alarms.md (25 minutes)
	@$(IN_VENV) python -m benchmarks.alarms

families: setup ## judge every family of transformers against its own forward pass: docs/families.md (an hour)
	@$(IN_VENV) python -W ignore -m tests.families.table
	@$(IN_VENV) python -W ignore -m tests.families.engine
	@$(IN_VENV) python -m pytest -m long tests/families

parity: setup ## compute TRL's losses and gradients anew in TRL's own environment, and docs/evidence/parity.md
	@$(IN_VENV) TORCH_CPU_INDEX=$(CPU_INDEX) python -c 'from benchmarks import sides; sides.trl_python(sides.ROOT / ".venv-trl")'
	@.venv-trl/bin/python tests/workers/parity/trl_values.py
	@$(IN_VENV) python tests/workers/parity/ours.py

proof: setup ## train every method on a world with a known optimum: docs/evidence/proof.md (6 minutes)
	@$(IN_VENV) python tests/workers/algorithms/proof.py

audit: setup ## plant faults in preference data and see what `rlhf audit` finds: docs/evidence/audit.md (15 minutes)
	@$(IN_VENV) python -m benchmarks.audit

refusals: setup ## train the classifier of refusals and compare it with the patterns: docs/evidence/refusals.md (1 minute)
	@$(IN_VENV) python -m benchmarks.refusals

streaming: setup ## time to the first step and driver memory by number of rows: docs/evidence/streaming.md (10 minutes)
	@$(IN_VENV) python -m benchmarks.streaming

frontier: setup ## reward against KL of each method in a world whose best policies are known (3 minutes)
	@$(IN_VENV) python -m benchmarks.frontier

objectives: setup ## two objectives in conflict: weights, soups and a two-headed reward on one frontier (40 minutes)
	@$(IN_VENV) python -m benchmarks.objectives

# Without `setup`: the CPU stack is not what a GPU needs. PYTHON is the interpreter with the extra `gpu` and pytest.
gpu-check: ## check and measure the GPU paths on one GPU, without a network: gpu-check.jsonl, or $OUT/gpu-check.jsonl (not run yet)
	@rm -f "$(or $(OUT),.)/gpu-check.jsonl"
	@status=0; RLHF_GPU_FIGURES="$(abspath $(or $(OUT),.))/gpu-check.jsonl" DS_ACCELERATOR=cuda \
	    $(or $(PYTHON),.venv-gpu/bin/python) -m pytest -o addopts= -ra -p no:xdist tests/gpu || status=$$?; \
	    PYTHONPATH=tests $(or $(PYTHON),.venv-gpu/bin/python) tests/gpu/figures.py "$(or $(OUT),.)/gpu-check.jsonl"; \
	    exit $$status

golden: setup ## run the first steps of every quickstart recipe and keep their figures in tests/golden/traces/ (10 minutes)
	@$(IN_VENV) python tests/stack/traces.py

golden-check: setup ## run them again and compare
	@$(IN_VENV) python tests/stack/traces.py --check

kuberay: setup ## write the jobs of deploy/kuberay/overlays
	@$(IN_VENV) python deploy/kuberay/generate.py

lock: ## resolve requirements/cpu.txt and gpu.txt again (needs uv)
	@$(COMPILE) requirements/cpu.in --extra dev --extra math --extra storage --extra data \
	    --excludes requirements/cpu-excluded.txt --python-version 3.11 $(UPGRADE) -o requirements/cpu.txt
	@$(call with_comment,cpu)
	@cat requirements/cpu.txt requirements/gpu.txt > requirements/gpu-3.11.txt # pins that are kept where they fit
	@$(COMPILE_GPU) --python-version 3.11 $(UPGRADE) -o requirements/gpu-3.11.txt
	@cp requirements/gpu-3.11.txt requirements/gpu-3.12.txt
	@$(COMPILE_GPU) --python-version 3.12 -o requirements/gpu-3.12.txt
	@diff <(grep -v '^ *#' requirements/gpu-3.11.txt) <(grep -v '^ *#' requirements/gpu-3.12.txt) >&2 \
	    || { echo "lock: Python 3.11 and 3.12 need different GPU stacks; pin what differs in gpu.in" >&2; exit 1; }
	@mv requirements/gpu-3.11.txt requirements/gpu.txt
	@rm requirements/gpu-3.12.txt
	@$(call with_comment,gpu)

clean: ## remove .venv and caches (runs/, data/ and models/ stay)
	rm -rf .venv .venv-docs .venv-trl build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for the lock and one for the project, so that a change costs only what it touches.
.venv/lock.stamp: requirements/torch-cpu.txt requirements/cpu.txt
	@[ "$$(uname -sm)" = "Linux x86_64" ] \
	    || { echo "setup: the CPU engine is built for Linux on x86_64 only, this is $$(uname -sm)" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || { $(call create_venv,.venv); }
	@echo "setup: torch, CPU build"
	@$(PIP) -r requirements/torch-cpu.txt 2> .venv/torch.log \
	    || $(PIP) -r requirements/torch-cpu.txt --index-url $(CPU_INDEX) || { cat .venv/torch.log >&2; exit 1; }
	@echo "setup: the locked stack, up to 3 minutes and 3 GB"
	@$(PIP) --require-hashes -r <(sed -n '/^setuptools==/,/^ *#/p' requirements/cpu.txt)
	@$(PIP) --require-hashes --no-build-isolation -r requirements/cpu.txt
	@touch $@

.venv/project.stamp: .venv/lock.stamp pyproject.toml
	@$(PIP) --no-build-isolation --editable .
	@touch $@
	@echo "setup: done; the command is $(BIN)/rlhf"

.venv-docs/lock.stamp: requirements/docs.txt
	@[ -x .venv-docs/bin/pip ] || { $(call create_venv,.venv-docs); }
	@.venv-docs/bin/python -m pip --disable-pip-version-check install -qq --no-deps -r requirements/docs.txt
	@touch $@

define create_venv
for python in $(or $(PYTHON),python3.11 python3.12 python3); do \
    $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2> /dev/null || continue; \
    echo "setup: $$($$python --version) in $(1)"; \
    $$python -m venv --clear $(1); \
    break; \
done; \
[ -x $(1)/bin/pip ] \
    || { echo "setup: needs Python 3.11 or 3.12 with venv; name one with make PYTHON=/path/to/python3.11" >&2; exit 1; }
endef

# The comment at the top of NAME.in becomes that of NAME.txt.
define with_comment
{ sed '/^#/!Q' requirements/$(1).in; cat requirements/$(1).txt; } > requirements/$(1).txt.new; \
    mv requirements/$(1).txt.new requirements/$(1).txt
endef
