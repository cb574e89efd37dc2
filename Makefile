# Every target makes .venv first when it is missing or older than what it is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check bench bench-peers clean
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

demo: $(STAMP) ## a golden dump of the packaged model, a good port of it, and a broken one
	$(BIN)/hf-dumper demo

test: $(STAMP) ## run every test that needs no network and no accelerator
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

check: $(STAMP) ## lint, format and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## measure what dumping costs, about 13 minutes; options in ARGS
	$(BIN)/python benchmarks/bench.py $(ARGS)

bench-peers: ## measure other tools beside hf_dumper, in an environment of their own
	$(PYTHON) benchmarks/peers.py $(ARGS)

clean: ## remove the environment, the caches and what builds leave behind
	rm -rf $(VENV) .venv-peers build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard hf_dumper/*/*.c)
	@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' here: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hf_dumper needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=python3.11" >&2; exit 1; }
	@echo "Making $(VENV): some minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
