# The project's commands. `make` prints them.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

TELEMETRY ?=
ONCE ?=
PEERS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint protos properties bench sample clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## set up .venv with everything, nothing else

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: install ## telemetry to a decision, everything running (TELEMETRY=PATH, ONCE=1)
	$(BIN)/drl demo $(if $(TELEMETRY),--telemetry '$(TELEMETRY)') $(if $(filter-out 0,$(ONCE)),--once)

test: install ## the whole suite: lint, types, import rules, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

lint: install ## format, lint, types, import rules
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/mypy
	$(BIN)/lint-imports

protos: install ## the code of the protocol buffers, after a change to a .proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. drl_core/protos/*.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
		drl_serving/open_inference/grpc/protos/*.proto

properties: install ## the table of the 44 correctness properties, with results
	$(BIN)/python -m tests.properties.table

bench: install ## benchmarks against named peers, in one run (PEERS=PYTHON for those of serving)
	$(BIN)/python -m benchmarks.ingest
	$(BIN)/python -m benchmarks.freshness
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.serving $(if $(PEERS),--peers '$(PEERS)')

sample: install ## record the sample again (needs strace)
	$(BIN)/python samples/record.py

clean: ## remove state and caches, keep .venv
	rm -rf .drl .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
