# Targets: quickstart, test, test-full, test-interop, lint, format, bench, setup, clean. Each sets up .venv from the lock first.
# TORCH_INDEX=URL takes torch from another package index (a plain Linux machine gets the CUDA build, gigabytes).
# PYTHON=python3.12 chooses the interpreter; the default is the first of python3, python3.11, ... that is 3.11 or newer.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test test-full test-interop lint format bench setup clean
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
	@$(BIN)/minillm quickstart

# A process on each core, and then by one what starts processes itself: beside the others one of torchrun's died in malloc
# in two of three runs (why is not known), in none of 65 without them. TEST holds options of pytest for a single run in
# their place, such as a file.
TORCHRUN := tests/minillm/training/test_distributed.py tests/end_to_end/test_torchrun.py tests/end_to_end/test_several_machines.py
test: $(READY)
ifdef TEST
	$(BIN)/python -m pytest -q --durations=5 $(TEST)
else
	$(BIN)/python -m pytest -q --durations=5 -n auto --dist loadfile --no-loadscope-reorder $(addprefix --ignore=,$(TORCHRUN))
	$(BIN)/python -m pytest -q --durations=5 $(TORCHRUN)
endif

test-full: $(READY)
	$(BIN)/python -m pytest -q -m 'not interop' --durations=20

# llama.cpp in an environment and with a lock of its own; its converter runs in the other one. It needs a C++ compiler.
INTEROP := .venv-interop
# no pictures, tools, server or threads of OpenMP: less to build
LLAMA_CPP_OPTIONS := -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
	-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF -DGGML_OPENMP=OFF
$(INTEROP)/.ready: tests/interop/constraints.txt tests/interop/source.txt | $(READY)
	rm -rf $(INTEROP)
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
		--require-hashes --requirement tests/interop/source.txt --dest $(INTEROP)/source
	mkdir -p $(INTEROP)/llama_cpp_python
	tar --extract --gzip --strip-components=1 --file $(INTEROP)/source/llama_cpp_python-*.tar.gz --directory $(INTEROP)/llama_cpp_python
	@echo "building llama.cpp (about five minutes on two cores)"
	CMAKE_BUILD_PARALLEL_LEVEL=2 CMAKE_ARGS="$(LLAMA_CPP_OPTIONS)" PIP_CONSTRAINT=tests/interop/constraints.txt \
		$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check $(INTEROP)/llama_cpp_python
	@touch $(INTEROP)/.ready

# lm-evaluation-harness beside transformers and torch as the lock has them; lm_eval.txt holds what it alone needs.
LM_EVAL := .venv-lm-eval
$(LM_EVAL)/.ready: tests/interop/lm_eval.txt constraints.txt | $(READY)
	rm -rf $(LM_EVAL)
	$(PYTHON) -m venv $(LM_EVAL)
	@echo "installing lm-evaluation-harness (two to four minutes with the CPU build of torch)"
	$(if $(TORCH_INDEX),$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) --constraint constraints.txt torch)
	$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--constraint tests/interop/lm_eval.txt 'lm_eval[hf]'
	@touch $(LM_EVAL)/.ready

test-interop: $(INTEROP)/.ready $(LM_EVAL)/.ready
	$(BIN)/python -m pytest -q -m interop tests/interop

# BENCH holds options, such as BENCH="--quick --only ops". Where PYTHON has what it takes, nothing is installed.
NEEDED := torch triton numpy matplotlib pytest
bench:
	@if [ ! -e $(READY) ] && $(PYTHON) -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))' $(NEEDED); \
	then PYTHONPATH=.:kernels$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m benchmarks $(BENCH); \
	else make --no-print-directory setup && $(BIN)/python -m benchmarks $(BENCH); fi

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-interop .venv-lm-eval .pytest_cache .ruff_cache *.egg-info
