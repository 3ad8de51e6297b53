# Everything runs in .venv, made from requirements.lock.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/quickstart

# Two test workers want one thread each; a training wants all cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup quickstart test test-slow lint format clean

help:
	@echo "make setup        .venv with the pinned packages"
	@echo "make quickstart   the whole of PAFO on the shipped corpus (OUT=folder, ARGS='more flags')"
	@echo "make test         ruff, mypy and the tests"
	@echo "make test-slow    the tests that take minutes"

setup: $(STAMP)

$(STAMP): requirements.lock requirements-nodeps.lock setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make setup PYTHON=path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

quickstart: setup
	HF_HUB_OFFLINE=1 $(BIN)/trl-pafo quickstart --output_dir $(OUT) $(ARGS)

test: setup lint
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -q

test-slow: setup
	$(TEST_ENV) $(BIN)/python -m pytest -q -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
