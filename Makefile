# `make demo` and `make test` set everything up themselves: a fresh clone needs git, make and Python 3.10 or later.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --editable
LISTED := pyproject.toml constraints.txt

.PHONY: help demo test check lint bench clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

demo: .venv/.demo ## train a small model and show what a run gives
	$(BIN)/leyden demo

test: lint ## everything that must pass: format, lint, types, all tests
	$(BIN)/python -m pytest

check: lint ## the same without the slow tests
	$(BIN)/python -m pytest -m 'not slow'

lint: .venv/.dev ## format, lint and types alone
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: .venv/.dev ## time everything against the loops written by hand (some minutes)
	$(BIN)/python benchmarks/run.py

clean: ## remove caches and builds; .venv stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache lightning_logs
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

# The empty files .demo and .dev say what .venv holds, and since when.
.venv/.demo: $(LISTED) | $(BIN)/pip
	@echo 'Installing Leyden and PyTorch into .venv: once, some minutes.'
	@$(INSTALL) '.[demo]'
	@touch $@

.venv/.dev: $(LISTED) | $(BIN)/pip
	@echo 'Installing Leyden, PyTorch and the tools for tests into .venv: once, some minutes.'
	@$(INSTALL) '.[dev]'
	@touch $@ .venv/.demo

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit(f"Leyden needs Python 3.10 or later; $(PYTHON) is {v.major}.{v.minor}. Name another: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv
