# Each target does its own set-up, in .venv and build/; all that is needed is Python 3.10 or newer (with venv) and make.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# Four files at a time, each in one process; those that measure time or load the machine, two.
TESTS := $(BIN)/python -m pytest -n 4 --dist loadfile -m "not timing"
TIMING_TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile -m timing
IN_PROCESS := tests/unit tests/synapse

# Otherwise each Synapse process would compile all that it imports, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-long test-oldest test-pythons coverage mutate lint format screenshots bench bench-million performance package clean

run: .venv/run ## Start a throw-away homeserver, play a rendezvous, and serve a page to pair devices. Options: make run ARGS="--port 0 --ttl 30s --once"
	@$(BIN)/python -m synapse_rendezvous demo $(ARGS)

test: .venv/dev ## Run all tests; with options for pytest, those alone: make test ARGS="-k preconditions"
	$(BIN)/python tests/tools/fetch_synapse_tests.py
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(TESTS) $(IN_PROCESS) $(if $(CI),--cov)
	$(TESTS) tests/live
	$(TIMING_TESTS)
endif

test-long: export FUZZ_REQUESTS = 100000
test-long: export FUZZ_RESOURCE_REQUESTS = 100000
test-long: export MODEL_STEPS = 20000
test-long: export OPENAPI_EXAMPLES = 100
test-long: export RENDEZVOUS = 2000
test-long: export RACES = 10000
test-long: export WAITS = 20000
test-long: export FLOOD = 40000
test-long: export FLOOD_S = 20
test-long: export SLOW_CLIENTS = 500
test-long: export SLOW_S = 5
test-long: .venv/dev ## Run all tests, those with random input or load in their long forms.
	$(BIN)/python tests/tools/fetch_synapse_tests.py
	$(TESTS)
	$(TIMING_TESTS)

coverage: .venv/dev ## Show which lines and branches the tests in tests/unit and tests/synapse reach.
	$(BIN)/python tests/tools/fetch_synapse_tests.py
	$(TESTS) $(IN_PROCESS) --cov

mutate: .venv/dev ## Change the code that decides who is served, in one place at a time, and see whether a test notices. For some modules: make mutate ARGS="synapse_rendezvous.clients*"; then a survivor: .venv/bin/mutmut show NAME
	$(PIP) install mutmut
	$(BIN)/python tests/tools/fetch_synapse_tests.py
	mkdir -p mutants && ln -sfn ../build mutants/build
	$(BIN)/mutmut run --max-children 2 $(ARGS)
	$(BIN)/mutmut results

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
	$(BIN)/python benchmarks/transactions.py $(ARGS)
	$(BIN)/python benchmarks/shares.py $(ARGS)

bench-million: .venv/dev ## Let a million sessions live in one Synapse process.
	$(BIN)/python benchmarks/million.py $(ARGS)

performance: .venv/dev ## Write the tables and plots of docs/performance.md.
	$(BIN)/python benchmarks/report.py $(ARGS)

package: .venv/dev ## Build wheel and sdist, install each into an empty environment, and start from it.
	$(BIN)/python tests/tools/check_package.py

test-oldest: .venv/dev ## Run the tests that touch Synapse with the oldest Synapse supported and the lowest releases of what we require; and, with two releases in between, those of what is no promise of Synapse's.
	$(BIN)/tox run -e oldest,synapse-1.148,synapse-1.156

test-pythons: .venv/dev ## Run the tests with each Python that is there; one that is missing is named and left out.
	$(BIN)/tox run -e py312,py313

clean: ## Remove everything that the other targets made.
	rm -rf .venv .tox build mutants dist .coverage .coverage.* *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis _trial_temp*

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python setup.cfg pyproject.toml
	@echo "Installing Synapse and this package into .venv (once, about a minute) ..."
	@$(PIP) install --editable '.[demo]' 'matrix-synapse>=1.140'
	@touch $@

.venv/dev: .venv/bin/python setup.cfg pyproject.toml
	@echo "Installing Synapse and the tools for tests into .venv (once, about a minute) ..."
	@$(PIP) install uv # installs in seconds; it does not read pip's configuration, so pip is tried where it fails
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --editable '.[dev]' || $(PIP) install --editable '.[dev]'
	@touch $@ .venv/run
