# `make bench` and `make test` do all their own set-up on a fresh machine; nothing else needs to be run first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export MUJOCO_GL ?= disabled
export OMP_NUM_THREADS ?= 1

.PHONY: bench test test-slow setup check docs clean

bench: setup  ## train and score every setting of the open inventory suite, at most 8 minutes on 2 cores
	$(BIN)/decisionrl bench inventory --profile quick

test: setup  ## all quick tests, under 10 minutes on 2 cores
	$(BIN)/python -m pytest -q -n auto

test-slow: setup  ## the heavier checks
	$(BIN)/python -m pytest -q -m slow

setup: $(BIN)/.ready

$(BIN)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

check: setup  ## format, lint, types and import direction
	BIN=$(BIN) sh .ci/check

docs: setup  ## build the documentation into site/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --target build/package .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache
