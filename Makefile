# The developer's interface: `make` lists the commands.

PYTHON ?= python3
UV_VERSION := 0.13.9
LOCK_FLAGS ?=

# Tests of the pure core, for `make coverage`
CORE := audit compare datasets judge ledger scoring scoring_benchmarks scoring_library scoring_official statistics store study

# One more than there are cores: many tests wait for models, servers and processes.
TEST_WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv of the machine, else our own, which the first rule below puts into the environment
UV = $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage check fix bench bench-sandbox bench-reports bench-runner bench-serving bench-suites bench-scoring bench-tracking bench-optimize bench-modal escape docs wheel lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## install everything, exact versions, into .venv

demo: $(STAMP) ## score a simulated model on the quickstart suite: no key needed
	$(BIN)/fleet-eval run quickstart

# dspy chooses demos by a hash of pickled sets: with another seed it compiles another program.
test: $(STAMP) ## run the tests, offline
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -n $(TEST_WORKERS)

coverage: $(STAMP) ## lines of the pure core that its tests run; fails below 90 %
	$(BIN)/python -m pytest -q -n auto $(addprefix tests/test_,$(addsuffix .py,$(CORE))) --cov

check: $(STAMP) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(STAMP) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run all benchmarks, rewrite docs/performance.md; one of them: bench-sandbox, -reports, -serving, -runner, -suites, -scoring, -tracking, -optimize, -modal
	$(BIN)/python tests/bench

bench-sandbox bench-reports bench-runner bench-serving bench-suites bench-scoring bench-tracking bench-optimize bench-modal: $(STAMP)
	$(BIN)/python tests/bench $(@:bench-%=%)

escape: $(STAMP) ## attack the sandbox: every attack, at every level that holds here, as you and as nobody
	$(BIN)/python tests/escape.py

# An environment over .venv, where this release of the SDK hides the locked one.
.PHONY: modal-lowest
modal-lowest: $(STAMP) ## the tests of Modal with the lowest SDK that is supported
	@$(uv_present)
	VIRTUAL_ENV=$(abspath $(VENV)) PYTHONHASHSEED=0 $(UV) run --quiet --no-project --active --with modal==1.6.0 \
		python -m pytest -n $(TEST_WORKERS) $(wildcard tests/test_modal*.py)

.PHONY: postgres
postgres: $(STAMP) ## mirror runs into a PostgreSQL that it starts; skipped, and said, where none is installed
	cd tests && $(abspath $(BIN))/python postgres_store.py

.PHONY: fuzz
fuzz: $(STAMP) ## attack the HTTP server: requests made from its own description; none may be a server error
	$(BIN)/python tests/fuzz.py

docs: $(STAMP) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(STAMP) ## build wheel and source archive into dist/
	$(BIN)/python -m build --no-isolation --outdir dist

lock: $(BIN)/python ## bring requirements.lock in step with pyproject.toml; LOCK_FLAGS=--upgrade
	@$(uv_present)
	$(UV) pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --quiet $(LOCK_FLAGS) -o requirements.lock

clean: ## remove builds and caches; runs and .venv stay
	rm -rf build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find fleet_rlm tests -name __pycache__ -prune -exec rm -rf {} +

define uv_present
command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fleet-rlm needs Python 3.11 or newer. Try: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Compiled at once: without .pyc files every first start is 2-5 times slower.
$(STAMP): requirements.lock pyproject.toml | $(BIN)/python
	@$(uv_present)
	$(UV) pip install --python $(BIN)/python --require-hashes --compile-bytecode --quiet -r requirements.lock
	$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation --quiet --editable .
	$(BIN)/python -m compileall -q fleet_rlm
	@touch $@
