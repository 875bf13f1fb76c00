# Two commands on a fresh machine: `make demo` and `make test`. Nothing but Python >= 3.11 and a package registry is needed.
PYTHON ?= python3
BIN := .venv/bin

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.PHONY: demo
demo: .venv/installed  ## train on the built-in synthetic photos, on the CPU
	$(BIN)/python -m defectcls.train experiment=demo

.PHONY: test
test: .venv/installed  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

.PHONY: test-slow
test-slow: .venv/installed  ## what takes longer, or needs DEFECTCLS_DATA and DEFECTCLS_WEIGHTS
	$(BIN)/pytest -m 'slow and not realdata'
	if [ -n "$$DEFECTCLS_DATA" ]; then $(BIN)/pytest -m realdata; fi
