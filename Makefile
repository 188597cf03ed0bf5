# Two commands: `make train` and `make test`. Both set up what they need.
PYTHON ?= python3
PY := .venv/bin/python
ARGS ?=

.PHONY: setup train test check lint types fast experiments clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: setup  ## train the default model on this machine (ARGS="key=value ..." overrides)
	$(PY) -m pipeline.train $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

fast: setup
	$(PY) -m pytest -m "not slow and not ray"

check: lint types fast  ## the quick one

test: setup  ## the whole suite
	$(PY) -m pytest

experiments: setup  ## the README's figures, from the runs themselves (about 10 minutes)
	$(PY) -m benchmarks.digits_rbm --json docs/digits_rbm.json

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
