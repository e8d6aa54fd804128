# `make run` and `make test` do all set-up themselves; nothing needs to be there but Python 3.11 and make.

PYTHON ?= python3
DATA ?= ./.hermetic
VENV := .venv
BIN := $(VENV)/bin
HERMES := .cache/hermes-venv
NPM_LOCKS := $(wildcard tests/*/package-lock.json)

.PHONY: help run test lint docs vendor screenshots bench clients clean

help:
	@echo 'make run     start the server; ARGS="--bind 127.0.0.1:8000" passes options on'
	@echo 'make test    run all tests; ARGS="tests/protocol -k frame" runs some'
	@echo 'make lint    style, types and import contracts'
	@echo 'make docs    write the generated parts of docs/ again'
	@echo 'make vendor  fetch the libraries of the page again (needs npm)'
	@echo 'make screenshots  take the pictures of docs/screenshots/ again'
	@echo 'make bench   run the measurements'
	@echo 'make clean   remove everything that these commands made, but not $(DATA)'

# exec: Ctrl-C and SIGTERM reach the server itself.
run: $(VENV)/run.stamp
	@exec $(BIN)/hermetic serve --data $(DATA) $(ARGS)

test: $(VENV)/work.stamp clients $(HERMES)/hermes.stamp
	$(BIN)/python -m pytest -n auto -ra $(ARGS)

lint: $(VENV)/work.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/work.stamp
	$(BIN)/python -m hermetic.protocol.reference docs/protocol.md

vendor: | $(BIN)/python
	$(BIN)/python scripts/vendor.py

screenshots: $(VENV)/work.stamp clients
	HERMETIC_SCREENSHOTS=$(CURDIR)/docs/screenshots $(BIN)/python -m pytest -q tests/page -k pictures

bench: $(VENV)/bench.stamp
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) $(HERMES) tests/*/node_modules dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# JavaScript readers of event streams, and what the page's tests need. Without npm those tests are skipped and say so.
clients:
	@command -v npm >/dev/null || { echo 'npm is not on the PATH: tests in JavaScript will be skipped.'; exit 0; }; \
	for lock in $(NPM_LOCKS); do \
		folder=$$(dirname $$lock); \
		[ $$folder/node_modules/.package-lock.json -nt $$lock ] || \
			npm ci --prefix $$folder --no-audit --no-fund --loglevel=error || exit; \
	done

# hermes-agent in an environment of its own, for its tests. Where pip cannot get it, those are skipped and say so.
$(HERMES)/hermes.stamp: tests/hermes/hermes_environment.py | $(BIN)/python
	@$(BIN)/python $< $(HERMES)

# A stamp names the folder that it was made in: an environment that was moved or copied holds the old paths. One whose
# Python is gone (an upgrade of the system, say) cannot be mended either. Without its Python both are made again.
ifneq ($(wildcard $(VENV)),)
ifneq ($(shell $(BIN)/python -c 'import pip, sys; print(sys.version_info >= (3, 11))' 2>/dev/null),True)
$(shell rm -f $(VENV)/*.stamp $(BIN)/python)
endif
ifneq ($(filter-out $(CURDIR),$(shell cat $(VENV)/*.stamp 2>/dev/null)),)
$(shell rm -f $(VENV)/*.stamp $(BIN)/python)
endif
endif

$(VENV)/run.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@echo '$(CURDIR)' > $@

$(VENV)/work.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@echo '$(CURDIR)' | tee $(VENV)/run.stamp > $@

$(VENV)/bench.stamp: $(VENV)/work.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@echo '$(CURDIR)' > $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo 'Hermetic needs Python 3.11 or newer, and there is no $(PYTHON) on the PATH.' >&2; \
		echo 'Install it, or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Hermetic needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
		echo 'Name a newer one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make virtual environments.' >&2; \
		echo 'On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
