# make setup | quickstart | test | lint | bench | clean
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PYTHONWARNINGS ?= default
# Accelerate's question-and-answer file, W&B's and matplotlib's caches stay out of the way.
export WANDB_SILENT ?= true

.PHONY: setup test test-slow lint bench gpu-check quickstart clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[train,deepspeed,dev]'
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
