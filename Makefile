# Each target does its own set-up, in .venv and build/; all that is needed is Python 3.10 or newer (with venv) and make.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: run test lint format screenshots bench bench-million performance package test-oldest clean

run: .venv/run ## Start a throw-away homeserver, play a rendezvous, and serve a page to pair devices. Options: make run ARGS="--port 0 --ttl 30s --once"
	@$(BIN)/python -m synapse_rendezvous demo $(ARGS)

test: .venv/dev ## Run all tests. Options for pytest: make test ARGS="-k preconditions"
	$(BIN)/python tests/tools/fetch_synapse_tests.py
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/dev ## Check style, types and layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: .venv/dev ## Take the pictures of the demonstration's page that the documents show; needs chromium and chromedriver.
	$(BIN)/python tests/tools/take_screenshots.py

bench: .venv/dev ## Compare with the nearest servers; needs wrk and redis-server. Options: make bench ARGS="--json FILE"
	$(BIN)/python benchmarks/compare.py $(ARGS)
	$(BIN)/python benchmarks/flood.py $(ARGS)
	$(BIN)/python benchmarks/waiting.py $(ARGS)
	$(BIN)/python benchmarks/shares.py $(ARGS)

bench-million: .venv/dev ## Let a million sessions live in one Synapse process.
	$(BIN)/python benchmarks/million.py $(ARGS)

performance: .venv/dev ## Write the tables and plots of docs/performance.md.
	$(BIN)/python benchmarks/report.py $(ARGS)

package: .venv/dev ## Build wheel and sdist, install each into an empty environment, and start from it.
	$(BIN)/python tests/tools/check_package.py

test-oldest: .venv/dev ## Run the tests with the oldest Synapse supported.
	$(BIN)/tox run -e oldest

clean: ## Remove everything that the other targets made.
	rm -rf .venv .tox build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis _trial_temp*

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python setup.cfg pyproject.toml
	@echo "Installing Synapse and this package into .venv (once, about a minute) ..."
	@$(PIP) install --editable '.[demo]' 'matrix-synapse>=1.140'
	@touch $@

.venv/dev: .venv/bin/python setup.cfg pyproject.toml
	@echo "Installing Synapse and the tools for tests into .venv (once, about a minute) ..."
	@$(PIP) install --editable '.[dev]'
	@touch $@ .venv/run
