.PHONY: help install demo test check fix bench clean
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s ':'

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
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile  # spinning threads starve each other on shared cores

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
