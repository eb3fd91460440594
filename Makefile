# Daily commands; CONTRIBUTING.md says when to use which.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# The editable install reads pyproject.toml only, and never asks an index.
EDITABLE := install --no-deps --no-build-isolation --no-index -e .

.PHONY: install dev run test unit chaos lint types bench lock clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'classpulse needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created requirements.lock pyproject.toml
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) $(EDITABLE)
	@touch $@

$(VENV)/.dev: $(VENV)/.installed requirements-dev.lock
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

install: $(VENV)/.installed ## .venv from the hash-pinned lock; quick and safe to repeat

dev: $(VENV)/.dev ## the same, with what tests and linters need

run: install ## the daemon on its embedded PostgreSQL
	@exec $(BIN)/classpulse serve

test: dev ## every test (installs what they need)
	@.ci/tools
	$(BIN)/pytest $(PYTEST_ARGS)

unit: dev ## the fast ones, for every save
	$(BIN)/pytest -q -m 'not slow' tests/engine tests/actors tests/config $(PYTEST_ARGS)

chaos: dev ## random faults for 15 minutes; SEED=n repeats a run
	@.ci/tools
	CLASSPULSE_CHAOS_S=900 CLASSPULSE_SEED=$(SEED) $(BIN)/pytest -q -s tests/faults/test_chaos.py $(PYTEST_ARGS)

lint: dev ## ruff, format and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: dev ## strict mypy
	$(BIN)/mypy

bench: dev ## ratios to a floor measured in the same run
	@.ci/tools wrk
	$(BIN)/python -m loadtest.bench

lock: dev ## renew both locks from pyproject.toml
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command 'make lock' pyproject.toml .ci/build.in -o requirements.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command 'make lock' -c requirements.lock pyproject.toml .ci/build.in --group dev -o requirements-dev.lock

clean: ## forget the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build ./*.egg-info
