# `make demo` and `make test` need Python ≥ 3.11 and make, nothing else; each sets up .venv for itself.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Watch ten edge agents teach a model (ARGS="--agents 5 --help")
	@$(VENV)/bin/fedmq demo $(ARGS)

test: $(VENV)/.dev ## The quality gate and all tests
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/check
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/test $(ARGS)

check: $(VENV)/.dev ## The quality gate alone
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/check

bench: $(VENV)/.dev ## Race Flower, APPFL and a naive design: hours; ARGS=--quick takes minutes
	@$(VENV)/bin/python -m benchmarks.race $(ARGS)

clean: ## Remove what the above made, runs and all
	rm -rf $(VENV) build dist runs *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedmq needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing fedmq with torch and matplotlib into $(VENV): a minute or two, once."
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing fedmq and its tests' tools into $(VENV): a minute or two, once."
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
