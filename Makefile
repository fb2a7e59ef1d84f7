# Targets: quickstart, test, test-full, lint, format, bench, setup, clean. Each sets up .venv from the lock first.
# TORCH_INDEX=URL takes torch from another package index (a plain Linux machine gets the CUDA build, gigabytes).
# PYTHON=python3.12 chooses the interpreter; the default is the first of python3, python3.11, ... that is 3.11 or newer.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test test-full lint format bench setup clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n '1,3p' Makefile | cut -c3-

setup: $(READY)

$(READY): constraints.txt pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "minillm needs Python 3.11 or newer, found none; install one or say make PYTHON=/path/to/python"; exit 2; fi
	$(PYTHON) -m venv .venv
	@echo "installing the locked packages into .venv (one to three minutes with the CPU build of torch)"
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) --constraint constraints.txt torch)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

quickstart: $(READY)
	@$(BIN)/python -m minillm.quickstart

test: $(READY)
	$(BIN)/python -m pytest -q --durations=5

test-full: $(READY)
	$(BIN)/python -m pytest -q -m 'slow or not slow' --durations=20

# BENCH holds options, such as BENCH="--quick --only ops". Where PYTHON has what it takes, nothing is installed.
NEEDED := torch triton numpy matplotlib pytest
bench:
	@if [ ! -e $(READY) ] && $(PYTHON) -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))' $(NEEDED); \
	then PYTHONPATH=.:kernels $(PYTHON) -m benchmarks $(BENCH); \
	else make --no-print-directory setup && $(BIN)/python -m benchmarks $(BENCH); fi

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
