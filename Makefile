.PHONY: help install demo test test-portable check fix bench clean
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# Spinning threads starve each other on shared cores.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s ':'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kflats needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[demo,glue,onnx,dev]'
	@touch $@ $(VENV)/.demo

install: $(VENV)/.dev  ## Create .venv with everything for development

demo: $(VENV)/.demo  ## Compress the real all-MiniLM-L6-v2 and show what it costs
	@rm -rf kflats-demo
	$(BIN)/kflats demo -o kflats-demo

test: $(VENV)/.dev  ## Run the tests (offline, CPU)
	$(PYTEST) $(TESTS)

test-portable: $(VENV)/.dev  ## Run them as older processors compute, with one thread and with two
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) $(TESTS)
	OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(TESTS)
	OMP_NUM_THREADS=2 MKL_ENABLE_INSTRUCTIONS=SSE4_2 $(PYTEST) $(TESTS)

check: $(VENV)/.dev  ## Check format, lint and types, as CI does
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/.dev  ## Format, and repair what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## Measure speed and memory against the baselines
	$(BIN)/python -m benchmarks

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
