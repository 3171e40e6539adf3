# Every target works in a new clone, on a machine with make and Python 3.11 or newer. All packages
# that it needs are first installed into .venv.

.DEFAULT_GOAL := help
.PHONY: help demo demo-pipeline test test-all lint docs bench clean

# The Python of .venv; by default the first one that is new enough.
PYTHON ?=
# Further arguments of pytest, such as: make test ARGS="-k ledger -x"
ARGS ?=
# The number of xdist's workers: more than processors, as tests often wait for engines and servers.
WORKERS ?= 4

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The command that installs into .venv.
INSTALL ?= $(PIP) install

# Tests start Python a thousand times: each would compile anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE
SHOP := examples/shop
PYTEST := python -m pytest -n $(WORKERS) --dist loadgroup

help: ## List the targets
	@echo "Usage: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/test.stamp ## Bake a web shop, bring it up, test it, and show that nothing is left
	@echo "== Building the artifact: $(SHOP)/dist/shop-*.whl"
	@cd $(SHOP) && rm -f dist/shop-*.whl && $(PIP) wheel --no-deps --wheel-dir dist .
	@echo "== Baking it, bringing it up, testing it: pytest --ephemeral-env -n 2"
	@cd $(SHOP) && PATH="$(BIN):$$PATH" python -m pytest --ephemeral-env -n 2 \
	    --ephemeral-report dist/report.json $(ARGS)
	@echo "== Looking for what is left"
	@cd $(SHOP) && $(BIN)/python ../nothing_left.py dist/report.json && $(BIN)/pytest-ephemeral list

demo-pipeline: $(VENV)/test.stamp ## Take three versions of the shop to production: one replaces another, one fails
	@rm -rf build/pipeline
	@PATH="$(BIN):$$PATH" python examples/pipeline/demo.py build/pipeline $(ARGS)

test: $(VENV)/test.stamp ## Run the fast tests: no engine, machine, simulated account, browser, kills or whole projects
	@PATH="$(BIN):$$PATH" $(PYTEST) -m "not (aws or browser or engine or kills or projects or vm)" $(ARGS)

test-all: $(VENV)/test.stamp ## Run all tests; tests that this machine can't run are left out and counted
	@PATH="$(BIN):$$PATH" $(PYTEST) $(ARGS)

lint: $(VENV)/test.stamp $(VENV)/lint.stamp ## Check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy --strict tests/typing
	@$(BIN)/basedpyright --pythonpath $(BIN)/python -p tests/typing >/dev/null || \
	    $(BIN)/basedpyright --pythonpath $(BIN)/python -p tests/typing
	@$(BIN)/mypy --strict pytest_ephemeral benchmarks examples/nothing_left.py examples/pipeline/demo.py .ci/skips.py .ci/matrix/run.py
	@cd tests && MYPYPATH=. $(BIN)/mypy --config-file ../pyproject.toml --strict -p support -m conftest

docs: $(VENV)/docs.stamp ## Build the documentation into docs/_build
	@$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

bench: $(VENV)/test.stamp ## Measure the time that environments add to a test run
	@PATH="$(BIN):$$PATH" python -m benchmarks
	@PATH="$(BIN):$$PATH" python -m benchmarks.containers
	@PATH="$(BIN):$$PATH" python -m benchmarks.machines
	@PATH="$(BIN):$$PATH" python -m benchmarks.cloud
	@PATH="$(BIN):$$PATH" python -m benchmarks.rollback

clean: ## Remove all files that these targets made
	rm -rf $(VENV) benchmarks/$(VENV) docs/_build build dist $(SHOP)/dist $(SHOP)/.ephemeral
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis $(SHOP)/.pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# One stamp file for each extra, whose time is that of the last installation.
$(VENV)/%.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "== Installing into $(VENV): pytest-ephemeral[$*]"
	@$(INSTALL) --editable '.[$*]'
	@touch $@

$(VENV)/bin/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "== Making $(VENV) with $$($$python --version)"; \
	        $$python -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); \
	        echo "$$python can't make virtual environments; on Debian: apt install python3-venv" >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "Python 3.11 or newer is needed. If there is one: make PYTHON=/path/to/python3" >&2; exit 1
