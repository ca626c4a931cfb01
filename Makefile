# The project's commands. `make` prints them.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

# cpu: the build without CUDA, from PyTorch's own index; cuda: PyPI's
TORCH ?= cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# uv resolves and unpacks in parallel, from PyPI or where UV_DEFAULT_INDEX says.
# INSTALLER=pip takes longer, and everything from where pip is configured to look.
INSTALLER ?= uv
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
UV_INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt
INSTALL = $(if $(filter pip,$(INSTALLER)),$(PIP_INSTALL),$(UV_INSTALL))

TELEMETRY ?=
ONCE ?=
PEERS ?=
COVERAGE ?=
WORKERS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs constraints check-resolution protos properties bench sample clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-17s %s\n", $$1, $$2}'

install: $(VENV)/.dev ## set up .venv with everything, nothing else (TORCH=cuda, INSTALLER=pip)

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) uv

# torch comes first and by itself: whatever is installed after it finds its range satisfied. Where PyTorch's
# index cannot be reached, pip may be configured with another place for the CPU build; if not, it is PyPI's.
$(VENV)/.torch-cpu: constraints.txt | $(BIN)/uv
	@if $(BIN)/python -c 'from urllib.request import urlopen; urlopen("$(TORCH_INDEX)/torch/", timeout=5)' 2>/dev/null; \
	then set -x; $(PIP_INSTALL) --no-compile --no-deps --index-url $(TORCH_INDEX) torch; \
	else set -x; $(PIP_INSTALL) --no-compile torch; fi
	@rm -f $(VENV)/.torch-cuda && touch $@

$(VENV)/.torch-cuda: constraints.txt | $(BIN)/uv
	$(UV_INSTALL) --reinstall-package torch torch
	@rm -f $(VENV)/.torch-cpu && touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch-$(TORCH)
	$(INSTALL) --editable '.[assets,serving]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch-$(TORCH)
	$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/.demo $@

$(VENV)/.docs: $(VENV)/.dev
	$(INSTALL) --editable '.[docs]'
	@touch $@

demo: $(VENV)/.demo ## telemetry to a decision, everything running (TELEMETRY=PATH, ONCE=1)
	$(BIN)/drl demo $(if $(TELEMETRY),--telemetry '$(TELEMETRY)') $(if $(filter-out 0,$(ONCE)),--once)

test: $(VENV)/.dev ## the whole suite: lint, types, import rules, tests (COVERAGE=1, WORKERS=auto)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(if $(WORKERS),--numprocesses $(WORKERS)) $(if $(filter-out 0,$(COVERAGE)),--cov --cov-report=term --cov-report=xml:build/coverage.xml)

lint: $(VENV)/.dev ## format, lint, types, import rules
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# torch pins its CUDA packages itself
constraints: $(BIN)/uv ## the newest versions that fit together, of every package, into constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra docs \
		--no-header --no-annotate --upgrade --output-file $(VENV)/resolved.txt pyproject.toml
	grep -vE '^(cuda|nvidia|triton==)' $(VENV)/resolved.txt > constraints.txt

check-resolution: $(BIN)/uv ## that plain PyPI gives the versions of constraints.txt, and torch once
	$(BIN)/python .ci/check_resolution.py

protos: $(VENV)/.dev ## the code of the protocol buffers, after a change to a .proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. drl_core/protos/*.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
		drl_serving/open_inference/grpc/protos/*.proto

properties: $(VENV)/.dev ## the table of the 44 correctness properties, with results
	$(BIN)/python -m tests.properties.table

bench: $(VENV)/.dev ## benchmarks against named peers, in one run (PEERS=PYTHON for those of serving)
	$(BIN)/python -m benchmarks.ingest
	$(BIN)/python -m benchmarks.freshness
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.serving $(if $(PEERS),--peers '$(PEERS)')

sample: $(VENV)/.dev ## record the sample again (needs strace)
	$(BIN)/python samples/record.py

clean: ## remove state and caches, keep .venv
	rm -rf .drl .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
